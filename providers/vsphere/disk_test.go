package vsphere

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// plain is a VM whose only disk can be read.
func plain() (*machine, *types.VirtualDisk) {
	store := ref("Datastore", "datastore-1")
	m := &machine{
		VirtualMachine: mo.VirtualMachine{Config: &types.VirtualMachineConfigInfo{}},
		stores:         map[types.ManagedObjectReference]datastore{store: {name: "fast", kind: "VMFS"}},
	}
	m.Self = ref("VirtualMachine", "vm-42")
	m.Runtime.ConnectionState = types.VirtualMachineConnectionStateConnected
	d := &types.VirtualDisk{CapacityInBytes: 1 << 30}
	d.Key = 2000
	d.Backing = flatBacking(d, store)
	m.Config.Hardware.Device = []types.BaseVirtualDevice{d}
	return m, d
}

func flatBacking(d *types.VirtualDisk, store types.ManagedObjectReference) *types.VirtualDiskFlatVer2BackingInfo {
	b := &types.VirtualDiskFlatVer2BackingInfo{DiskMode: "persistent"}
	b.FileName, b.Datastore = "[fast] web/web.vmdk", &store
	return b
}

func snapshotTree(names ...string) *types.VirtualMachineSnapshotInfo {
	var list []types.VirtualMachineSnapshotTree
	for i := len(names) - 1; i >= 0; i-- { // each the parent of the next
		list = []types.VirtualMachineSnapshotTree{{
			Snapshot: ref("VirtualMachineSnapshot", names[i]), Name: names[i], CreateTime: time.Unix(int64(i), 0), ChildSnapshotList: list,
		}}
	}
	return &types.VirtualMachineSnapshotInfo{RootSnapshotList: list}
}

func TestWhenAVMCanBeReadFromItsDatastore(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*machine)
		mine   providers.SnapshotID
		reason providers.Reason
		says   string
	}{
		"plain":                         {func(*machine) {}, "", "", ""},
		"disconnected":                  {func(m *machine) { m.Runtime.ConnectionState = "disconnected" }, "", providers.Precondition, "disconnected"},
		"no configuration":              {func(m *machine) { m.Config = nil }, "", providers.Precondition, "configuration"},
		"template":                      {func(m *machine) { m.Config.Template = true }, "", providers.Unsupported, "template"},
		"encrypted":                     {func(m *machine) { m.Config.KeyId = &types.CryptoKeyId{} }, "", providers.Unsupported, "encrypted"},
		"unconsolidated":                {func(m *machine) { m.Runtime.ConsolidationNeeded = true }, "", providers.Precondition, "consolidation"},
		"before, a stranger's snapshot": {func(m *machine) { m.Snapshot = snapshotTree("nightly") }, "", providers.Precondition, `"nightly"`},
		"before, one of ours":           {func(m *machine) { m.Snapshot = snapshotTree("hypersdk a") }, "", "", ""},
		"before, two of ours":           {func(m *machine) { m.Snapshot = snapshotTree("hypersdk a", "hypersdk b") }, "", providers.Precondition, `"hypersdk b"`},
		"before, ours on a stranger's":  {func(m *machine) { m.Snapshot = snapshotTree("nightly", "hypersdk a") }, "", providers.Precondition, `"nightly"`},
		"mine alone":                    {func(m *machine) { m.Snapshot = snapshotTree("snapshot-7") }, "snapshot-7", "", ""},
		"mine on another":               {func(m *machine) { m.Snapshot = snapshotTree("hypersdk a", "snapshot-7") }, "snapshot-7", providers.Precondition, `"hypersdk a"`},
		"another on mine":               {func(m *machine) { m.Snapshot = snapshotTree("snapshot-7", "nightly") }, "snapshot-7", providers.Precondition, `"nightly"`},
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := plain()
			c.change(m)
			why := m.refuse(c.mine)
			if c.reason == "" {
				require.Nil(t, why)
				return
			}
			require.NotNil(t, why)
			require.Equal(t, c.reason, why.Reason)
			require.ErrorContains(t, why, c.says)
		})
	}
}

func TestWhenADiskCanBeReadFromItsDatastore(t *testing.T) {
	on := func(kind string) func(*machine, *types.VirtualDisk, *types.VirtualDiskFlatVer2BackingInfo) {
		return func(m *machine, _ *types.VirtualDisk, _ *types.VirtualDiskFlatVer2BackingInfo) {
			for ref := range m.stores {
				m.stores[ref] = datastore{name: "fast", kind: kind}
			}
		}
	}
	as := func(b types.BaseVirtualDeviceBackingInfo) func(*machine, *types.VirtualDisk, *types.VirtualDiskFlatVer2BackingInfo) {
		return func(_ *machine, d *types.VirtualDisk, _ *types.VirtualDiskFlatVer2BackingInfo) { d.Backing = b }
	}
	type backing = types.VirtualDiskFlatVer2BackingInfo
	for name, c := range map[string]struct {
		change func(*machine, *types.VirtualDisk, *backing)
		reason providers.Reason
		says   string
	}{
		"VMFS":                     {on("VMFS"), "", ""},
		"NFS":                      {on("NFS"), "", ""},
		"NFS 4.1":                  {on("NFS41"), "", ""},
		"vSAN":                     {on("vsan"), providers.Unsupported, `datastore "fast" of kind vsan`},
		"vVol":                     {on("VVOL"), providers.Unsupported, "VVOL"},
		"unknown":                  {on(""), providers.Unsupported, "kind unknown"},
		"independent":              {func(_ *machine, _ *types.VirtualDisk, b *backing) { b.DiskMode = "independent_persistent" }, providers.Unsupported, "independent"},
		"independent nonpersitent": {func(_ *machine, _ *types.VirtualDisk, b *backing) { b.DiskMode = "independent_nonpersistent" }, providers.Unsupported, "independent"},
		"shared":                   {func(_ *machine, _ *types.VirtualDisk, b *backing) { b.Sharing = "sharingMultiWriter" }, providers.Unsupported, "shared"},
		"encrypted":                {func(_ *machine, _ *types.VirtualDisk, b *backing) { b.KeyId = &types.CryptoKeyId{} }, providers.Unsupported, "encrypted"},
		"a delta": {func(_ *machine, _ *types.VirtualDisk, b *backing) {
			b.Parent = &backing{}
			b.Parent.FileName = "[fast] web/base.vmdk"
		}, providers.Precondition, "delta of [fast] web/base.vmdk"},
		"no datastore": {func(_ *machine, _ *types.VirtualDisk, b *backing) { b.Datastore = nil }, providers.Unsupported, "kind unknown"},
		"raw mapping":  {as(&types.VirtualDiskRawDiskMappingVer1BackingInfo{}), providers.Unsupported, "raw device mapping"},
		"sparse":       {as(&types.VirtualDiskSeSparseBackingInfo{}), providers.Unsupported, "sparsely"},
		"pmem":         {as(&types.VirtualDiskLocalPMemBackingInfo{}), providers.Unsupported, "VirtualDiskLocalPMemBackingInfo"},
	} {
		t.Run(name, func(t *testing.T) {
			m, d := plain()
			c.change(m, d, d.Backing.(*backing))
			why := m.refuseDisk(d)
			if c.reason == "" {
				require.Nil(t, why)
				return
			}
			require.NotNil(t, why)
			require.Equal(t, c.reason, why.Reason)
			require.ErrorContains(t, why, c.says)
		})
	}
}

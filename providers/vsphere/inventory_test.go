package vsphere

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

func ref(kind, id string) types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: kind, Value: id}
}

func entity(self types.ManagedObjectReference, name string, parent *types.ManagedObjectReference) mo.ManagedEntity {
	return mo.ManagedEntity{ExtensibleManagedObject: mo.ExtensibleManagedObject{Self: self}, Name: name, Parent: parent}
}

func TestPaths(t *testing.T) {
	root, outer, dc := ref("Folder", "group-d1"), ref("Folder", "group-d2"), ref("Datacenter", "dc-1")
	vmFolder, web, vapp, inner := ref("Folder", "group-v1"), ref("Folder", "group-v2"), ref("VirtualApp", "vapp-1"), ref("VirtualApp", "vapp-2")
	pool := ref("ResourcePool", "pool-1")
	a, b, c, lost := ref("VirtualMachine", "vm-1"), ref("VirtualMachine", "vm-2"), ref("VirtualMachine", "vm-3"), ref("VirtualMachine", "vm-4")

	tr := tree{}
	tr.add(mo.Folder{ManagedEntity: entity(root, "Datacenters", nil)})
	tr.add(mo.Folder{ManagedEntity: entity(outer, "Europe%2fNorth", &root)})
	tr.add(mo.Datacenter{ManagedEntity: entity(dc, "DC 1", &outer)})
	tr.add(mo.Folder{ManagedEntity: entity(vmFolder, "vm", &dc)})
	tr.add(mo.Folder{ManagedEntity: entity(web, "web", &vmFolder)})
	tr.add(mo.VirtualApp{ResourcePool: mo.ResourcePool{ManagedEntity: entity(vapp, "shop", &pool)}, ParentFolder: &web})
	tr.add(mo.VirtualApp{ResourcePool: mo.ResourcePool{ManagedEntity: entity(inner, "db", &vapp)}})
	tr.add(mo.VirtualMachine{ManagedEntity: entity(a, "a%2fb 100%25", &web)})
	tr.add(mo.VirtualMachine{ManagedEntity: entity(b, "in vApp", nil), ParentVApp: &vapp})
	tr.add(mo.VirtualMachine{ManagedEntity: entity(c, "in inner", nil), ParentVApp: &inner})
	tr.add(mo.VirtualMachine{ManagedEntity: entity(lost, "lost", nil)})

	require.Equal(t, "/Europe%2fNorth/DC 1/vm/web/a%2fb 100%25", tr.path(a))
	require.Equal(t, "/Europe%2fNorth/DC 1/vm/web/shop/in vApp", tr.path(b))
	require.Equal(t, "/Europe%2fNorth/DC 1/vm/web/shop/db/in inner", tr.path(c))
	require.Equal(t, "/", tr.path(ref("VirtualMachine", "unknown")))
	require.Equal(t, "Europe%2fNorth/DC 1", tr.datacenter(a))
	require.Equal(t, "Europe%2fNorth/DC 1", tr.datacenter(c))
	require.Empty(t, tr.datacenter(lost))
}

func TestPathsOfFoldersThatLieInOneAnother(t *testing.T) {
	a, b := ref("Folder", "group-1"), ref("Folder", "group-2")
	tr := tree{}
	tr.add(mo.Folder{ManagedEntity: entity(a, "a", &b)})
	tr.add(mo.Folder{ManagedEntity: entity(b, "b", &a)})
	require.Len(t, strings.Split(tr.path(a), "/"), maxDepth+1)
	require.Empty(t, tr.datacenter(a))
}

func TestUnescape(t *testing.T) {
	for stored, want := range map[string]string{
		"plain": "plain", "a%2fb": "a/b", "a%2Fb": "a/b", "a%5cb": `a\b`, "100%25": "100%", "%252f": "%2f", "%": "%", "%20": "%20",
	} {
		require.Equal(t, want, unescape(stored))
	}
}

func TestPick(t *testing.T) {
	vms := []providers.VM{
		{ID: "vm-1", Name: "web", Path: "/DC/vm/web"},
		{ID: "vm-2", Name: "web", Path: "/DC/vm/prod/web"},
		{ID: "vm-3", Name: "a/b", Path: "/DC/vm/a%2fb"},
		{ID: "vm-4", Name: "b", Path: "/DC/vm/a/b"},
		{ID: "vm-5", Name: "x/y", Path: "/DC/vm/x%2fy"},
		{ID: "vm-6", Name: "only", Path: "/DC/vm/only"},
	}
	for given, want := range map[string]providers.VMID{
		"/DC/vm/web":      "vm-1",
		"DC/vm/web/":      "vm-1",
		"/DC/vm/prod/web": "vm-2",
		"only":            "vm-6",
		"x/y":             "vm-5",
		"x%2fy":           "vm-5",
		"/DC/vm/x/y":      "vm-5",
		"/DC/vm/x%2Fy":    "vm-5",
		"/DC/vm/a%2fb":    "vm-3",
		"/DC/vm/a/b":      "vm-4",
	} {
		vm, err := pick(vms, given)
		require.NoError(t, err, given)
		require.Equal(t, want, vm.ID, given)
	}
	_, err := pick(vms, "web")
	require.ErrorIs(t, err, providers.Invalid)
	require.ErrorContains(t, err, "/DC/vm/web, /DC/vm/prod/web")
	_, err = pick(vms, "/DC/vm/a%2Fb")
	require.ErrorIs(t, err, providers.Invalid, "neither spelling decides")
	_, err = pick(vms, "nobody")
	require.ErrorIs(t, err, providers.NotFound)
	require.ErrorContains(t, err, "nobody")
}

func TestMatches(t *testing.T) {
	vm := providers.VM{Name: "Web-01", Path: "/DC/vm/a%2fb/Web-01", PowerState: providers.PowerOn}
	for _, c := range []struct {
		f    providers.Filter
		want bool
	}{
		{providers.Filter{}, true},
		{providers.Filter{Name: "web"}, true},
		{providers.Filter{Name: "db"}, false},
		{providers.Filter{Power: providers.PowerOn}, true},
		{providers.Filter{Power: providers.PowerOff}, false},
		{providers.Filter{Folder: "/DC/vm"}, true},
		{providers.Filter{Folder: "DC/vm/"}, true},
		{providers.Filter{Folder: "/DC/v"}, false},
		{providers.Filter{Folder: "/DC/vm/a%2fb"}, true},
		{providers.Filter{Folder: "/DC/vm/a%2Fb"}, true},
		{providers.Filter{Folder: "/DC/vm/a/b"}, true},
		{providers.Filter{Folder: "/DC/vm/a%2fb/Web-01"}, false},
		{providers.Filter{Folder: "/"}, true},
	} {
		require.Equal(t, c.want, matches(c.f, vm), "%+v", c.f)
	}
}

func TestUnion(t *testing.T) {
	require.Equal(t, []string{"name", "config", "runtime"},
		union([]string{"name", "config.hardware", "runtime.host"}, []string{"config", "runtime", "name"}))
	require.Equal(t, []string{"config.a", "configuration"}, union([]string{"config.a"}, []string{"configuration"}))
}

func TestSnapshotName(t *testing.T) {
	require.Equal(t, "hypersdk export-1/0", snapshotName("export-1/0"))
	long, other := snapshotName(strings.Repeat("ü", 200)), snapshotName(strings.Repeat("ü", 201))
	require.Len(t, []rune(long), maxName)
	require.NotEqual(t, long, other)
	require.Equal(t, long, snapshotName(strings.Repeat("ü", 200)))
	exact := strings.Repeat("k", maxName-len(prefix))
	require.Equal(t, prefix+exact, snapshotName(exact))
}

func TestIsID(t *testing.T) {
	for ref, want := range map[string]bool{"vm-42": true, "42": true, "vm-": false, "": false, "vm-42a": false, "web-42": false, "vm-4/2": false} {
		require.Equal(t, want, isID(ref), ref)
	}
}

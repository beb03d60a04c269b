package vsphere_test

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/providers/providertest"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

// config is the connection to a fake vCenter.
func config(s *vspheretest.Server) vsphere.Config {
	c := vsphere.Default()
	c.Server, c.Username, c.Password = s.URL().String(), s.Username(), providers.Secret(s.Password())
	c.Thumbprint = s.ThumbprintSHA256()
	return c
}

// connect opens a provider that is closed with the test, and makes sure that no session is left over.
func connect(t *testing.T, s *vspheretest.Server, change ...func(*vsphere.Config)) *vsphere.Provider {
	t.Helper()
	c := config(s)
	for _, f := range change {
		f(&c)
	}
	p, err := vsphere.Open(t.Context(), c, providers.Env{Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.Empty(t, s.Sessions(), "no session is left over")
	})
	return p
}

// disk is a disk of n bytes of content, different for each seed.
func disk(seed uint64, n int64) vspheretest.Disk {
	return vspheretest.Disk{Size: n, Content: vspheretest.Generated(seed, n/2)}
}

// content is all of disk i of a VM, as its snapshot has it.
func content(t *testing.T, s *vspheretest.Server, vm string, i int, snapshot string) []byte {
	t.Helper()
	im, err := s.DiskAt(vm, i, snapshot)
	require.NoError(t, err)
	p := make([]byte, im.Size())
	_, err = io.ReadFull(io.NewSectionReader(im, 0, im.Size()), p)
	require.NoError(t, err)
	return p
}

func TestProvider(t *testing.T) {
	for name, tls := range map[string]bool{"http": false, "https": true} {
		t.Run(name, func(t *testing.T) {
			s := vspheretest.Start(t, vspheretest.Options{TLS: tls, Datacenters: []string{"DC0", "DC 1"}, VMs: []vspheretest.VM{
				{Name: "web-01", Folder: "shop/front end", Hostname: "web-01", ISO: "[datastore1] iso/debian.iso", Disks: []vspheretest.Disk{disk(1, 24<<20), disk(2, 5<<20+3<<10)}},
				{Name: "twin", Disks: []vspheretest.Disk{disk(3, 1<<20)}},
				{Name: "twin", Datacenter: "DC 1", Disks: []vspheretest.Disk{disk(4, 1<<20)}},
			}})
			providertest.Run(t, providertest.Harness{
				Open: func(t *testing.T) providers.Provider {
					c := fmt.Sprintf(`{"server":%q,"username":%q,"password":%q,"thumbprint":%q}`, s.URL(), s.Username(), s.Password(), s.Thumbprint())
					p, err := vsphere.Driver().Open(t.Context(), []byte(c), providers.Env{Log: slog.New(slog.DiscardHandler)})
					require.NoError(t, err)
					return p
				},
				VM: "web-01", Absent: "vm-999999", Ambiguous: "twin",
				Want: []string{"change-tracking", "clone", "disk-leaser", "disk-source", "drives", "history", "infrastructure", "inventory", "metrics", "package-import", "power", "snapshot"},
				Write: func(t *testing.T, vm providers.VM, d providers.Disk, off int64, p []byte) {
					i := slices.IndexFunc(vm.Disks, func(x providers.Disk) bool { return x.ID == d.ID })
					require.NoError(t, s.GuestWrite("web-01", i, off, p))
				},
				Package: func(t *testing.T) (providers.Package, providers.ImportTarget) {
					to := toNetwork("imported")
					to.Folder = "/DC0/vm"
					return packaged(t, nil, guestDisk(3, 1<<20)), to
				},
				Truth: func(t *testing.T, vm providers.VM, d providers.Disk) []byte {
					snaps, err := s.Snapshots("web-01")
					require.NoError(t, err)
					for i := range vm.Disks {
						if vm.Disks[i].ID == d.ID {
							return content(t, s, "web-01", i, snaps[0].ID)
						}
					}
					t.Fatalf("no disk %s", d.ID)
					return nil
				},
			})
			require.Empty(t, s.Sessions(), "no session is left over")
			snaps, err := s.Snapshots("")
			require.NoError(t, err)
			require.Empty(t, snaps, "no snapshot is left over")
		})
	}
}

func TestFullDescription(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{
		Datastores: []vspheretest.Datastore{{Name: "fast"}, {Name: "share", Type: "NFS"}},
		VMs: []vspheretest.VM{
			{
				Name: "db-01", Folder: "prod", Datastore: "share", NumCPU: 4, MemoryMB: 8192, Firmware: "efi", Hardware: "vmx-20",
				Annotation: "the one that matters", Hostname: "db-01.example.com", Addresses: []string{"10.0.0.5", "fe80::5"},
				ISO: "[fast] iso/debian.iso", NICs: 2,
				Disks: []vspheretest.Disk{
					{Size: 1 << 30, Controller: "pvscsi"}, {Size: 2 << 30, Controller: "pvscsi", Thick: true},
					{Size: 1 << 20, Controller: "nvme"}, {Size: 1 << 20, Controller: "sata", Mode: "independent_persistent"},
					{Size: 1 << 20, Controller: "ide"}, {Size: 1 << 20, Controller: "lsilogic-sas"},
				},
			},
			{Name: "gold", Template: true, Disks: []vspheretest.Disk{{Size: 1 << 20}}},
		},
	})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "db-01")
	require.NoError(t, err)
	require.Equal(t, "/DC0/vm/prod/db-01", vm.Path)
	require.Equal(t, providers.PowerOn, vm.PowerState)
	require.Equal(t, 4, vm.NumCPU)
	require.EqualValues(t, 8192, vm.MemoryMB)
	require.Equal(t, "efi", vm.Firmware)
	require.Equal(t, "vmx-20", vm.HardwareVersion)
	require.Equal(t, "the one that matters", vm.Annotation)
	require.Equal(t, "db-01.example.com", vm.Hostname)
	require.Equal(t, []string{"10.0.0.5", "fe80::5"}, vm.Addresses)
	require.NotEmpty(t, vm.Host)
	require.NotEmpty(t, vm.UUID)
	require.Equal(t, "Ubuntu Linux (64-bit)", vm.GuestOS)
	require.False(t, vm.Template)
	require.Empty(t, vm.Snapshots)

	require.Len(t, vm.Disks, 6)
	first := vm.Disks[0]
	require.EqualValues(t, 1<<30, first.Size)
	require.True(t, first.Thin)
	require.False(t, vm.Disks[1].Thin)
	require.Equal(t, "share", first.Datastore)
	require.Equal(t, "NFS", first.DatastoreType)
	require.Equal(t, "persistent", first.Mode)
	require.Equal(t, "independent_persistent", vm.Disks[3].Mode)
	require.True(t, strings.HasPrefix(first.Path, "[share] "), first.Path)
	var kinds []string
	places := map[string]bool{}
	for _, d := range vm.Disks {
		kinds = append(kinds, d.Controller)
		place := fmt.Sprintf("%s %d:%d", d.Controller, d.Bus, d.Unit)
		require.False(t, places[place], "two disks at %s", place)
		places[place] = true
		_, err := strconv.Atoi(string(d.ID))
		require.NoError(t, err)
		require.NotEmpty(t, d.Label)
	}
	require.Equal(t, []string{"pvscsi", "pvscsi", "nvme", "sata", "ide", "lsilogicsas"}, kinds)

	require.Len(t, vm.NICs, 2)
	require.NotEmpty(t, vm.NICs[0].MAC)
	require.NotEmpty(t, vm.NICs[0].Network)
	require.NotEmpty(t, vm.NICs[0].Model)
	require.Len(t, vm.CDROMs, 1)
	require.Equal(t, "[fast] iso/debian.iso", vm.CDROMs[0].Media)

	gold, err := p.VM(t.Context(), "/DC0/vm/gold")
	require.NoError(t, err)
	require.True(t, gold.Template)
	transports, err := p.Transports(t.Context(), gold)
	require.NoError(t, err)
	require.Contains(t, transports[0].Why, "template")
}

func TestSnapshotsAreListedParentsFirst(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: []vspheretest.VM{{Name: "vm", Disks: []vspheretest.Disk{disk(1, 1<<20)}}}})
	p := connect(t, s)
	vm, err := p.VM(t.Context(), "vm")
	require.NoError(t, err)
	var ids []providers.SnapshotID
	for _, key := range []string{"a", "b", "c"} {
		snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: key, Description: "of " + key})
		require.NoError(t, err)
		ids = append(ids, snap.ID)
	}
	vm, err = p.VM(t.Context(), "vm")
	require.NoError(t, err)
	require.Len(t, vm.Snapshots, 3)
	for i, snap := range vm.Snapshots {
		require.Equal(t, ids[i], snap.ID)
		require.WithinDuration(t, time.Now(), snap.Created, time.Minute)
		if i > 0 {
			require.Equal(t, ids[i-1], snap.Parent)
		}
	}
	require.Equal(t, "of a", vm.Snapshots[0].Description)
}

// names are those that break paths, URLs, queries and XML.
var names = []string{
	"with space", "a/b", `back\slash`, "100% sure", "%2f", "quote\"and'apostrophe", "<tag>&amp;", "Ärzte-Ünïcode-名前-🚀",
	"plus+plus", "hash#tag?query=1&x=2", "semi;colon", strings.Repeat("long", 50), "[bracket] name", ".hidden", "tilde~$HOME", "-000001",
}

func TestNames(t *testing.T) {
	o := vspheretest.Options{Datacenters: []string{"Data & Center+1"}, Datastores: []vspheretest.Datastore{{Name: "data store+1&2"}}}
	for i, name := range names {
		o.VMs = append(o.VMs, vspheretest.VM{Name: name, Folder: "fol der", Disks: []vspheretest.Disk{disk(uint64(i), 1<<20)}})
	}
	s := vspheretest.Start(t, o)
	p := connect(t, s)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			vm, err := p.VM(t.Context(), name)
			require.NoError(t, err)
			require.Equal(t, name, vm.Name)
			require.Equal(t, 5, len(strings.Split(vm.Path, "/")), "%s has a part for each thing it lies in", vm.Path)
			byPath, err := p.VM(t.Context(), vm.Path)
			require.NoError(t, err)
			require.Equal(t, vm.ID, byPath.ID)
			plain, err := p.VM(t.Context(), "/Data & Center+1/vm/fol der/"+name)
			require.NoError(t, err)
			require.Equal(t, vm.ID, plain.ID, "a path may be written without escapes")

			snap, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "names/" + name})
			require.NoError(t, err)
			again, err := p.Snapshot(t.Context(), vm.ID, providers.SnapshotOptions{Key: "names/" + name})
			require.NoError(t, err)
			require.Equal(t, snap.ID, again.ID)
			im, err := p.OpenDisk(t.Context(), providers.DiskRef{VM: vm.ID, Snapshot: snap.ID, Disk: snap.Disks[0].ID})
			require.NoError(t, err)
			defer im.Close()
			got := make([]byte, im.Size())
			_, err = im.ReadAt(got, 0)
			require.NoError(t, err)
			require.Equal(t, content(t, s, string(vm.ID), 0, string(snap.ID)), got)
		})
	}
}

// patiently does again what cannot be done while another task, whose answer may be lost, is under way.
func patiently(do func() error) error {
	for {
		if err := do(); providers.ReasonOf(err) != providers.Precondition {
			return err
		}
	}
}

// eventually waits on a goroutine of a test for something that happens soon; false: it did not.
func eventually(t *testing.T, cond func() bool) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for late := time.After(time.Minute); !cond(); {
		select {
		case <-tick.C:
		case <-late:
			return false
		case <-t.Context().Done():
			return false
		}
	}
	return true
}

// Package providertest is the exam that every provider passes: what the prose of package providers
// promises, tried on a live connection.
package providertest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/providers"
)

// prompt is how long an operation may take to return once its context has ended.
const prompt = 2 * time.Second

// Harness is a platform to examine a provider on. The exam takes and deletes snapshots of one VM and
// leaves the platform as it found it, but for what an import makes.
type Harness struct {
	// Open connects anew each time.
	Open func(t *testing.T) providers.Provider
	// VM is the id, path or name of a VM that has disks and no snapshots.
	VM string
	// Want is what providers.Capabilities must answer, sorted.
	Want []string
	// Absent is an id that names no VM.
	Absent providers.VMID
	// Ambiguous is a name that several VMs have.
	Ambiguous string
	// Truth is the whole content of a disk of VM. Needed where Want has "disk-source".
	Truth func(t *testing.T, vm providers.VM, disk providers.Disk) []byte
	// Package is a package, and a name and a place for its VM, of which there is none yet. Needed where Want
	// has "package-import". The VM stays.
	Package func(t *testing.T) (providers.Package, providers.ImportTarget)
	// Write is the guest of VM writing to a disk. Needed where Want has "change-tracking"; the VM is not
	// tracked to begin with, nor at the end.
	Write func(t *testing.T, vm providers.VM, disk providers.Disk, off int64, p []byte)
}

// Run examines every capability of the provider.
func Run(t *testing.T, h Harness) {
	t.Run("provider", h.provider)
	exams := map[string]func(*testing.T){"inventory": h.inventory, "snapshot": h.snapshot, "disk-source": h.diskSource, "disk-leaser": h.diskLeaser,
		"power": h.power, "drives": h.drives, "clone": h.clone,
		"infrastructure": h.infrastructure, "history": h.history, "metrics": h.metrics, "package-import": h.packageImport,
		"change-tracking": h.changeTracking,
	}
	for _, name := range h.Want {
		exam, ok := exams[name]
		require.True(t, ok, "there is no exam for %q", name)
		t.Run(name, exam)
	}
}

// open connects, and fails the test where goroutines outlive the connection.
func (h Harness) open(t *testing.T) providers.Provider {
	t.Helper()
	before := goleak.IgnoreCurrent()
	p := h.Open(t)
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		goleak.VerifyNone(t, before)
	})
	return p
}

func capability[C any](t *testing.T, p providers.Provider) C {
	t.Helper()
	c, err := providers.As[C](p)
	require.NoError(t, err)
	return c
}

// cancelled is a context that has ended.
func cancelled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func (h Harness) provider(t *testing.T) {
	p := h.open(t)
	require.Equal(t, h.Want, providers.Capabilities(p), "the exam covers exactly what the provider can do")
	require.NotEmpty(t, p.Kind())
	require.NoError(t, p.Ping(t.Context()))
	require.ErrorIs(t, p.Ping(cancelled(t)), context.Canceled)
	require.NoError(t, p.Ping(t.Context()), "a cancelled call leaves the connection whole")
}

func (h Harness) inventory(t *testing.T) {
	p := h.open(t)
	inv := capability[providers.Inventory](t, p)
	list := func(f providers.Filter) []providers.VM {
		var out []providers.VM
		for vm, err := range inv.VMs(t.Context(), f) {
			require.NoError(t, err)
			out = append(out, vm)
		}
		return out
	}
	all := list(providers.Filter{})
	require.NotEmpty(t, all)
	full, err := inv.VM(t.Context(), h.VM)
	require.NoError(t, err)

	t.Run("ordered by path, each once", func(t *testing.T) {
		ids := map[providers.VMID]bool{}
		for i, vm := range all {
			require.NotEmpty(t, vm.ID)
			require.NotEmpty(t, vm.Name)
			require.NotEmpty(t, vm.Path)
			require.False(t, ids[vm.ID], "%s comes twice", vm.ID)
			ids[vm.ID] = true
			if i > 0 {
				require.LessOrEqual(t, all[i-1].Path, vm.Path)
			}
		}
		require.True(t, ids[full.ID])
	})
	t.Run("stops when asked", func(t *testing.T) {
		for range inv.VMs(t.Context(), providers.Filter{}) {
			break
		}
	})
	t.Run("filters", func(t *testing.T) {
		require.Empty(t, list(providers.Filter{Name: "no VM has this in its name"}))
		require.True(t, contains(list(providers.Filter{Name: full.Name}), full.ID))
		require.True(t, contains(list(providers.Filter{Power: full.PowerState}), full.ID))
		for _, vm := range list(providers.Filter{Power: full.PowerState}) {
			require.Equal(t, full.PowerState, vm.PowerState)
		}
		require.Empty(t, list(providers.Filter{Folder: full.Path}), "nothing lies below a VM")
	})
	t.Run("found by id, path and name", func(t *testing.T) {
		for _, ref := range []string{string(full.ID), full.Path, full.Name} {
			vm, err := inv.VM(t.Context(), ref)
			require.NoError(t, err, ref)
			require.Equal(t, full.ID, vm.ID, ref)
			require.NotEmpty(t, vm.Disks, ref)
		}
	})
	t.Run("not found", func(t *testing.T) {
		for _, ref := range []string{string(h.Absent), "/no/such/path", "no VM has this name"} {
			_, err := inv.VM(t.Context(), ref)
			require.ErrorIs(t, err, providers.NotFound, ref)
			require.ErrorContains(t, err, ref, "the error says what was looked for")
		}
		_, err := inv.VM(t.Context(), "")
		require.ErrorIs(t, err, providers.Invalid)
	})
	t.Run("ambiguous", func(t *testing.T) {
		_, err := inv.VM(t.Context(), h.Ambiguous)
		require.ErrorIs(t, err, providers.Invalid)
		n := 0
		for _, vm := range all {
			if vm.Name == h.Ambiguous {
				require.ErrorContains(t, err, vm.Path)
				n++
			}
		}
		require.Greater(t, n, 1, "the harness names VMs that share a name")
	})
	t.Run("cancelled", func(t *testing.T) {
		for _, err := range inv.VMs(cancelled(t), providers.Filter{}) {
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, providers.Canceled, providers.ReasonOf(err))
		}
	})
}

func contains(vms []providers.VM, id providers.VMID) bool {
	return slices.ContainsFunc(vms, func(vm providers.VM) bool { return vm.ID == id })
}

// vm is the VM that is examined.
func (h Harness) vm(t *testing.T, p providers.Provider) providers.VM {
	t.Helper()
	vm, err := capability[providers.Inventory](t, p).VM(t.Context(), h.VM)
	require.NoError(t, err)
	require.Empty(t, vm.Snapshots, "the VM has no snapshots to begin with")
	return vm
}

func (h Harness) snapshot(t *testing.T) {
	p := h.open(t)
	snap := capability[providers.Snapshotter](t, p)
	vm := h.vm(t, p)
	ctx := t.Context()
	opt := providers.SnapshotOptions{Key: "exam/1", Description: "taken by an exam"}

	_, err := snap.FindSnapshot(ctx, vm.ID, opt.Key)
	require.ErrorIs(t, err, providers.NotFound)
	first, err := snap.Snapshot(ctx, vm.ID, opt)
	require.NoError(t, err)
	t.Cleanup(func() { _ = snap.DeleteSnapshot(context.Background(), vm.ID, first.ID) })

	require.Contains(t, first.Name, opt.Key)
	require.False(t, first.Created.IsZero())
	require.Len(t, first.Disks, len(vm.Disks), "a new snapshot tells the disks as they are in it")
	for i, d := range first.Disks {
		require.Equal(t, vm.Disks[i].ID, d.ID)
		require.Equal(t, vm.Disks[i].Size, d.Size)
	}

	again, err := snap.Snapshot(ctx, vm.ID, opt)
	require.NoError(t, err)
	require.Equal(t, first, again, "the same key is the same snapshot")
	found, err := snap.FindSnapshot(ctx, vm.ID, opt.Key)
	require.NoError(t, err)
	require.Equal(t, first.ID, found.ID)
	require.Len(t, h.snapshotsOf(t, p), 1)

	second, err := snap.Snapshot(ctx, vm.ID, providers.SnapshotOptions{Key: "exam/2"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = snap.DeleteSnapshot(context.Background(), vm.ID, second.ID) })
	require.NotEqual(t, first.ID, second.ID, "another key is another snapshot")

	named := providers.SnapshotOptions{Key: "exam/3", Name: "a name of its own", Description: "and a description"}
	third, err := snap.Snapshot(ctx, vm.ID, named)
	require.NoError(t, err)
	t.Cleanup(func() { _ = snap.DeleteSnapshot(context.Background(), vm.ID, third.ID) })
	require.Equal(t, named.Name, third.Name)
	require.Equal(t, named.Description, third.Description)
	again, err = snap.Snapshot(ctx, vm.ID, named)
	require.NoError(t, err)
	require.Equal(t, third.ID, again.ID, "the same key is the same snapshot, whatever it is called")
	found, err = snap.FindSnapshot(ctx, vm.ID, named.Key)
	require.NoError(t, err)
	require.Equal(t, third.ID, found.ID)
	require.NoError(t, snap.DeleteSnapshot(ctx, vm.ID, third.ID))

	for range 2 {
		require.NoError(t, snap.DeleteSnapshot(ctx, vm.ID, first.ID))
	}
	require.Len(t, h.snapshotsOf(t, p), 1, "only the one that was named is gone")
	require.NoError(t, snap.DeleteSnapshot(ctx, vm.ID, second.ID))
	require.Empty(t, h.snapshotsOf(t, p))

	require.NoError(t, snap.DeleteSnapshot(ctx, h.Absent, first.ID), "a snapshot of a VM that is gone is gone")
	_, err = snap.Snapshot(ctx, h.Absent, opt)
	require.ErrorIs(t, err, providers.NotFound)
	_, err = snap.FindSnapshot(ctx, h.Absent, opt.Key)
	require.ErrorIs(t, err, providers.NotFound)
	_, err = snap.Snapshot(ctx, vm.ID, providers.SnapshotOptions{})
	require.ErrorIs(t, err, providers.Invalid, "a snapshot without a key could never be found again")
	_, err = snap.Snapshot(cancelled(t), vm.ID, opt)
	require.ErrorIs(t, err, context.Canceled)
}

func (h Harness) snapshotsOf(t *testing.T, p providers.Provider) []providers.Snapshot {
	t.Helper()
	vm, err := capability[providers.Inventory](t, p).VM(t.Context(), h.VM)
	require.NoError(t, err)
	return vm.Snapshots
}

package vsphere_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"hypersdk/providers"
	"hypersdk/providers/vsphere/vspheretest"
)

func TestAListingTakesAsManyCallsAsPages(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(40)})
	p := connect(t, s)
	s.ResetRecord()
	var got []providers.VM
	for vm, err := range p.VMs(t.Context(), providers.Filter{}) {
		require.NoError(t, err)
		got = append(got, vm)
	}
	require.Len(t, got, 40)
	require.Equal(t, "/DC0/vm/team-0/vm-00000", got[0].Path)
	require.Equal(t, providers.PowerOn, got[0].PowerState)
	require.Equal(t, 2, got[0].NumCPU)
	require.EqualValues(t, 2048, got[0].MemoryMB)
	require.Equal(t, map[string]int{"CreateContainerView": 1, "RetrievePropertiesEx": 1, "DestroyView": 1}, s.Calls())
}

func TestASessionThatEndsInTheMiddleOfAListing(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(3)})
	p := connect(t, s)
	// The view is made, then the session ends, and the view with it.
	in := inject(t, s, vspheretest.Fault{Call: "RetrievePropertiesEx", Delay: vspheretest.Duration(100 * time.Millisecond), Times: 1})
	done := make(chan struct{})
	go func() {
		defer close(done)
		if eventually(t, func() bool { return in.Struck() > 0 }) {
			s.ExpireSessions()
		}
	}()
	defer func() { <-done }()
	n := 0
	for _, err := range p.VMs(t.Context(), providers.Filter{}) {
		require.NoError(t, err)
		n++
	}
	require.Equal(t, 3, n)
	require.Equal(t, 2, s.Calls()["Login"])
	require.Equal(t, 2, s.Calls()["CreateContainerView"])
}

func TestManyWhoLookForVMsByNameShareAListing(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(40)})
	p := connect(t, s)
	s.ResetRecord()
	var all errgroup.Group
	for i := range 40 {
		name := fmt.Sprintf("vm-%05d", i)
		all.Go(func() error {
			vm, err := p.VM(t.Context(), name)
			if err == nil && vm.Name != name {
				err = fmt.Errorf("%s was found for %s", vm.Name, name)
			}
			return err
		})
	}
	require.NoError(t, all.Wait())
	require.LessOrEqual(t, s.Calls()["CreateContainerView"], 2, "one listing for the first, and one for all who came meanwhile")

	_, err := p.VM(t.Context(), "vm-00001")
	require.NoError(t, err)
	require.LessOrEqual(t, s.Calls()["CreateContainerView"], 2, "a name is looked up in the listing of a moment ago")
	_, err = p.VM(t.Context(), "nobody")
	require.ErrorIs(t, err, providers.NotFound)
	require.LessOrEqual(t, s.Calls()["CreateContainerView"], 3, "that there is no such VM is said of now, not of a moment ago")
}

func TestANameOfAMomentAgoIsCheckedBeforeItIsBelieved(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{VMs: vspheretest.GeneratedVMs(3)})
	p := connect(t, s)
	before, err := p.VM(t.Context(), "vm-00001")
	require.NoError(t, err)

	c, err := govmomi.NewClient(t.Context(), s.LoginURL(), true)
	require.NoError(t, err)
	vm := object.NewVirtualMachine(c.Client, types.ManagedObjectReference{Type: "VirtualMachine", Value: string(before.ID)})
	task, err := vm.Rename(t.Context(), "moved")
	require.NoError(t, err)
	require.NoError(t, task.Wait(t.Context()))
	require.NoError(t, c.Logout(t.Context()))

	_, err = p.VM(t.Context(), "vm-00001")
	require.ErrorIs(t, err, providers.NotFound)
	after, err := p.VM(t.Context(), "moved")
	require.NoError(t, err)
	require.Equal(t, before.ID, after.ID)
}

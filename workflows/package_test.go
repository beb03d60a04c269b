package workflows

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// newPackageStage has hosts that make packages.
func newPackageStage(t *testing.T) *stage {
	s := newStage(t)
	s.vm.NumCPU, s.vm.MemoryMB = 2, 2048
	play(s, activities.InspectActivity, func(in activities.InspectRequest) (string, activities.Facts) {
		return in.Format, activities.Facts{
			Kind: "fake", Capabilities: []string{"disk-source", "inventory", "snapshot"}, VM: s.vm,
			Transports: []providers.Transport{{Name: "fast", Resumable: true}},
			Format:     activities.FormatFacts{Name: "vmdk", Ext: ".vmdk", Package: in.Format},
		}
	})
	play(s, activities.BeginPackageActivity, func(in activities.PackageRequest) (string, activities.BegunPackage) {
		return in.Target.Archive(), activities.BegunPackage{Offsets: []int64{1024, gib + 2048}, Size: 2 * gib}
	})
	play(s, activities.PackActivity, func(in activities.PackRequest) (string, activities.PackedDisk) {
		return in.Disk.File, activities.PackedDisk{SHA256: "sum of " + in.Disk.File}
	})
	play(s, activities.SealActivity, func(in activities.PackageRequest) (string, activities.SealedPackage) {
		var out activities.SealedPackage
		for _, n := range in.Target.PackageFiles() {
			out.Files = append(out.Files, activities.FinishFile{Name: n, Inode: 9})
		}
		return in.Target.Base, out
	})
	play(s, activities.CheckPackageActivity, func(in activities.CheckPackageRequest) (string, activities.CheckedPackage) {
		return in.Target.Archive(), activities.CheckedPackage{SHA256: "sum of the archive", Stored: 2 * gib}
	})
	return s
}

func packageSpec(format string) job.Spec {
	in := spec()
	in.Format = format
	return in
}

func TestExportAsArchive(t *testing.T) {
	s := newPackageStage(t)
	s.export(packageSpec("ova"))
	require.NoError(t, s.GetWorkflowError())
	calls := s.from("begin-package")
	require.Equal(t, []string{
		"begin-package web-01.ova", "pack-disk web-01-disk-1.vmdk", "pack-disk web-01-disk-2.vmdk", "seal-package web-01",
	}, calls[:4], "one disk after the other: no more space than for one of them")
	require.ElementsMatch(t, []string{"verify-disk web-01-disk-1.vmdk", "verify-disk web-01-disk-2.vmdk", "check-package web-01.ova"}, calls[4:7])
	require.Equal(t, "finish web-01", calls[7])

	prepared := s.last[activities.PrepareActivity].(activities.PrepareRequest)
	require.Equal(t, []string{"web-01-disk-1.vmdk", "web-01-disk-2.vmdk", "web-01.ova"}, prepared.Files)
	require.Equal(t, int64(gib/2+gib+gib), prepared.Need, "half of each, and the larger one again")
	require.True(t, prepared.Target.Compress)
	sealed := s.last[activities.SealActivity].(activities.PackageRequest)
	require.Equal(t, "sum of web-01-disk-2.vmdk", sealed.Disks[1].SHA256)
	finished := s.last[activities.FinishActivity].(activities.FinishRequest)
	require.Equal(t, []activities.FinishFile{{Name: "web-01.ova", Inode: 9, Stored: 2 * gib, SHA256: "sum of the archive"}}, finished.Package)
	require.Equal(t, "web-01.ova", finished.Disks[0].Archive)

	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, "/exports/web-01/web-01.ova", r.OVFPath)
	require.Equal(t, "web-01.ova", r.Disks[0].Archive)
	require.Equal(t, "web-01-disk-1.vmdk", r.Disks[0].File)
}

func TestExportAsFolderOfAPackage(t *testing.T) {
	s := newPackageStage(t)
	s.export(packageSpec("ovf"))
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{"seal-package web-01", "finish web-01"}, s.from("seal-package")[:2])
	require.Empty(t, s.from("begin-package"))
	prepared := s.last[activities.PrepareActivity].(activities.PrepareRequest)
	require.Equal(t, []string{"web-01-disk-1.vmdk", "web-01-disk-2.vmdk", "web-01.ovf", "web-01.mf"}, prepared.Files)
	require.Equal(t, int64(gib/2+gib), prepared.Need)
	require.Equal(t, "sum of web-01-disk-1.vmdk", s.last[activities.SealActivity].(activities.PackageRequest).Disks[0].SHA256, "taken while verifying")
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, "/exports/web-01/web-01.ovf", r.OVFPath)
	require.Empty(t, r.Disks[0].Archive)
}

func TestArchiveThatIsNotVerified(t *testing.T) {
	s := newPackageStage(t)
	in := packageSpec("ova")
	in.Options.NoVerify = true
	s.export(in)
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{"seal-package web-01", "finish web-01"}, s.from("seal-package")[:2])
}

// Whatever happens while a package is made, nothing is left.
func TestPackagingEnds(t *testing.T) {
	const key = "hypersdk-" + testID
	for _, call := range []string{"begin-package web-01.ova", "pack-disk web-01-disk-2.vmdk", "seal-package web-01", "check-package web-01.ova"} {
		t.Run(call, func(t *testing.T) {
			s := newPackageStage(t)
			s.fail[call] = refused(providers.Corrupt, "it rots")
			s.export(packageSpec("ova"))
			require.ErrorContains(t, s.GetWorkflowError(), "it rots")
			require.Equal(t, []string{"drop-snapshot " + key, "discard web-01", "leave failed", "release " + testID}, s.from("drop-snapshot"))
		})
		t.Run(call+" cancelled", func(t *testing.T) {
			s := newPackageStage(t)
			s.hold[call] = s.cancelling
			s.export(packageSpec("ova"))
			require.True(t, temporal.IsCanceledError(s.GetWorkflowError()), "%v", s.GetWorkflowError())
			require.Equal(t, []string{"drop-snapshot " + key, "discard web-01", "leave cancelled", "release " + testID}, s.from("drop-snapshot"))
		})
	}
	s := newPackageStage(t)
	s.fail["pack-disk web-01-disk-2.vmdk"] = refused(providers.Corrupt, "it rots")
	s.export(packageSpec("ova"))
	require.ErrorContains(t, s.GetWorkflowError(), "Hard disk 2 (web-01-disk-2.vmdk): it rots")
}

func TestPackagesThatThePlanRefuses(t *testing.T) {
	no := false
	for _, c := range []struct {
		want string
		spec func(*job.Spec)
		vm   func(*providers.VM)
	}{
		{"cannot be allocated in full", func(s *job.Spec) { s.Thin = &no }, nil},
		{"number of processors of web-01 is not known", nil, func(vm *providers.VM) { vm.NumCPU = 0 }},
		{"memory of web-01 is not known", nil, func(vm *providers.VM) { vm.MemoryMB = 0 }},
	} {
		s, in := newPackageStage(t), packageSpec("ova")
		if c.spec != nil {
			c.spec(&in)
		}
		if c.vm != nil {
			c.vm(&s.vm)
		}
		s.export(in)
		require.ErrorContains(t, s.GetWorkflowError(), c.want)
		require.Empty(t, s.from("prepare"))
	}
}

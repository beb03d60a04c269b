package workflows

import (
	"path/filepath"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/workflows/job"
)

// pack moves the disks into one archive, where the format is one. They go one after the other, and the
// file of each is removed once it is in: no more space is needed beside than the largest of them takes.
func (e *export) pack(ctx workflow.Context) error {
	archive := e.plan.Target.Archive()
	if archive == "" {
		return nil
	}
	lines := e.lines()
	for i, old := range e.status.Progress.Disks {
		lines[i].Read, lines[i].Digest, lines[i].Total = old.Read, old.Digest, e.done[i].Stored
	}
	e.begin(ctx, job.Package, "putting the disks into "+archive, lines)
	req := e.packageRequest()
	var begun activities.BegunPackage
	ctx = moving(ctx, e.host.ID, e.terms)
	if err := workflow.ExecuteActivity(ctx, activities.BeginPackageActivity, req).Get(ctx, &begun); err != nil {
		return err
	}
	for i := range req.Disks {
		var out activities.PackedDisk
		err := workflow.ExecuteActivity(ctx, activities.PackActivity, activities.PackRequest{
			Job: e.id, Ref: e.ref(i), Size: e.plan.Disks[i].Disk.Size, Target: e.plan.Target,
			Disk: req.Disks[i], Offset: begun.Offsets[i], Limits: e.limits,
		}).Get(ctx, &out)
		if err != nil {
			return named(e.label(i), err)
		}
		req.Disks[i].SHA256 = out.SHA256
		e.status.Progress.Disks[i].Done = e.status.Progress.Disks[i].Total
		e.status.UpdatedAt = now(ctx)
	}
	return e.sealed(ctx, req)
}

// seal writes the descriptor and the manifest that lie beside the disks, where the format has them.
func (e *export) seal(ctx workflow.Context) error {
	if e.plan.Target.Package != activities.PackageOVF {
		return nil
	}
	e.phase(ctx, job.Package, "describing the VM and summing its files")
	req := e.packageRequest()
	for i, s := range e.sums {
		req.Disks[i].SHA256 = s.SHA256
	}
	return e.sealed(moving(ctx, e.host.ID, e.terms), req)
}

func (e *export) sealed(ctx workflow.Context, req activities.PackageRequest) error {
	var out activities.SealedPackage
	err := workflow.ExecuteActivity(ctx, activities.SealActivity, req).Get(ctx, &out)
	e.packaged = out.Files
	return err
}

func (e *export) packageRequest() activities.PackageRequest {
	req := activities.PackageRequest{Job: e.id, Target: e.plan.Target, VM: e.facts.VM, Time: e.admitted, Limits: e.limits}
	req.VM.Disks = nil // those of the snapshot follow
	for i, d := range e.plan.Disks {
		req.Disks = append(req.Disks, activities.PackagedDisk{Disk: d.Disk, File: d.File, Inode: e.done[i].Inode, Stored: e.done[i].Stored})
	}
	return req
}

// checkPackage reads the archive as whoever imports it will.
func (e *export) checkPackage(ctx workflow.Context) workflow.Future {
	return workflow.ExecuteActivity(ctx, activities.CheckPackageActivity,
		activities.CheckPackageRequest{Job: e.id, Target: e.plan.Target, Limits: e.limits})
}

// checked notes the sum of the archive.
func (e *export) checked(ctx workflow.Context, f workflow.Future) error {
	var out activities.CheckedPackage
	if err := f.Get(ctx, &out); err != nil {
		return err
	}
	e.packaged[0].SHA256, e.packaged[0].Stored = out.SHA256, out.Stored
	return nil
}

// ovfPath is the file that an importer is pointed to; "" where the export is no package.
func (e *export) ovfPath(dir string) string {
	if files := e.plan.Target.PackageFiles(); len(files) > 0 {
		return filepath.Join(dir, files[0])
	}
	return ""
}

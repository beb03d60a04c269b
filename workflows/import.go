package workflows

import (
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/workflows/job"
)

// Import is a VM made of a package: admitted, placed on a host that has the package, judged, uploaded; and
// where it does not come to a good end, removed again.
func Import(ctx workflow.Context, spec job.ImportSpec) (*job.Result, error) {
	i := &arrival{task: newTask(ctx, spec.Connection, spec.LimitMBps), spec: spec}
	if err := i.handlers(ctx); err != nil {
		return nil, err
	}
	err := i.run(ctx)
	return i.end(ctx, err)
}

// arrival is the state of one import.
type arrival struct {
	task
	spec job.ImportSpec
	plan activities.PlannedImport
	vm   activities.Imported
}

func (i *arrival) run(ctx workflow.Context) error {
	if err := i.admit(ctx, i.ask); err != nil {
		return err
	}
	return i.onHosts(ctx, i.place, i.work)
}

func (i *arrival) ask(ctx workflow.Context) (asked activities.Asked, err error) {
	i.status.Progress.CurrentStep = "looking at the platform"
	req := activities.AskImportRequest{Job: i.id, Spec: i.spec}
	err = quickly(ctx, anywhere(ctx), activities.AskImportActivity, req, &asked)
	return asked, err
}

func (i *arrival) place(ctx workflow.Context) error {
	_, err := i.find(ctx, "the package", func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(ctx, activities.LookPackageActivity, activities.LookPackageRequest{Job: i.id, Path: i.spec.PackagePath})
	})
	return err
}

// key names the import for ever.
func (i *arrival) key() string { return i.id }

func (i *arrival) work(ctx workflow.Context) error {
	if err := i.steps(ctx, i.decide, i.upload); err != nil {
		return err
	}
	i.ending = true
	r := &job.Result{VMName: i.vm.Name, VMPath: i.vm.Path, Success: true, Host: i.host.ID}
	for _, f := range i.plan.Files {
		r.TotalSize += f.Size
	}
	i.status.Result = r
	return nil
}

// decide has the package judged, and finds the places where the VM goes.
func (i *arrival) decide(ctx workflow.Context) error {
	i.phase(ctx, job.Plan, "having the package judged")
	req := activities.PlanImportRequest{Job: i.id, Spec: i.spec, Key: i.key()}
	return i.call(ctx, activities.PlanImportActivity, req, &i.plan)
}

// upload makes the VM, in one activity: there is one lease for all files.
func (i *arrival) upload(ctx workflow.Context) error {
	i.undo.push(step{name: "unfinished VM " + i.plan.Target.Name + " in " + i.plan.Target.Folder, onlyFailed: true, do: i.discard})
	lines := make([]job.DiskProgress, len(i.plan.Files))
	for n, f := range i.plan.Files {
		lines[n] = job.DiskProgress{Disk: f.Name, File: f.Name, Total: f.Size}
	}
	i.begin(ctx, job.Transfer, "uploading the files of the package", lines)
	err := workflow.ExecuteActivity(moving(ctx, i.host.ID, i.terms), activities.ImportPackageActivity, activities.ImportRequest{
		Job: i.id, Connection: i.spec.Connection, Path: i.spec.PackagePath, Key: i.key(), Target: i.plan.Target,
		Files: i.plan.Files, Limits: i.limits,
	}).Get(ctx, &i.vm)
	if err != nil {
		return err
	}
	for n := range lines {
		i.status.Progress.Disks[n].Done = i.status.Progress.Disks[n].Total
	}
	return nil
}

// discard removes what the import left unfinished: from the job's host, whose log then says so, or from
// anywhere.
func (i *arrival) discard(ctx workflow.Context) error {
	req := activities.DiscardImportRequest{Job: i.id, Connection: i.spec.Connection, Key: i.key(), Target: i.plan.Target}
	err := workflow.ExecuteActivity(cleaning(ctx, i.host.ID, i.terms), activities.DiscardImportActivity, req).Get(ctx, nil)
	if hostLost(err) {
		err = workflow.ExecuteActivity(cleaning(ctx, "", i.terms), activities.DiscardImportActivity, req).Get(ctx, nil)
	}
	return err
}

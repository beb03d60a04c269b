package workflows

import (
	"fmt"
	"path"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Chain is work on a chain: admitted, one job on a folder at a time, placed on the host that has it, and done
// there in one activity, or, where disks are flattened, as a conversion of them.
func Chain(ctx workflow.Context, work job.ChainWork) (*job.Result, error) {
	c := &chainJob{work: work, conversion: conversion{
		task: newTask(ctx, "", work.LimitMBps), doing: "writing the disks of the point",
	}}
	if err := c.handlers(ctx); err != nil {
		return nil, err
	}
	err := c.run(ctx)
	return c.end(ctx, err)
}

// chainJob is the state of one job. What it makes of disks it makes as a conversion does.
type chainJob struct {
	conversion
	work job.ChainWork
	look activities.ChainSeen
}

func (c *chainJob) run(ctx workflow.Context) error {
	if err := c.admit(ctx, c.ask); err != nil {
		return err
	}
	return c.onHosts(ctx, c.place, c.toil)
}

func (c *chainJob) ask(ctx workflow.Context) (asked activities.Asked, err error) {
	req := activities.AskChainRequest{Job: c.id, Path: c.work.Path, Priority: c.work.Priority}
	err = quickly(ctx, anywhere(ctx), activities.AskChainActivity, req, &asked)
	return asked, err
}

// place finds the host that has the chain.
func (c *chainJob) place(ctx workflow.Context) error {
	found, err := c.find(ctx, "the chain", func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(ctx, activities.LookAtChainActivity, activities.LookAtChainRequest{Job: c.id, Work: c.work})
	})
	if err != nil {
		return err
	}
	if found.Chain == nil {
		return refusal(providers.Unavailable, "host %s does not say what the chain is made of; its worker is of an older version", found.Host.Name)
	}
	c.seen, c.look, c.dir = found, *found.Chain, c.work.Path
	return nil
}

// toil is everything that happens on one host.
func (c *chainJob) toil(ctx workflow.Context) error {
	switch c.work.Action {
	case job.CheckChain:
		return c.steps(ctx, c.check)
	case job.MergeChain:
		return c.steps(ctx, c.merge)
	case job.FlattenChain:
		return c.flatten(ctx)
	case job.DeletePoint:
		return c.steps(ctx, c.deletePoint)
	}
	return refusal(providers.Unsupported, "this version does not know the action %q on a chain", c.work.Action)
}

func (c *chainJob) request() activities.ChainRequest {
	return activities.ChainRequest{Job: c.id, Work: c.work, Seen: c.look, Limits: c.limits}
}

// result is what the job has to say of the chain.
func (c *chainJob) result(done activities.ChainDone) *job.Result {
	return &job.Result{
		VMName: c.look.VM.Name, OutputDir: c.dir, Files: []string{}, Disks: []job.DiskResult{}, Success: true, Host: c.host.ID,
		Chain: &job.ChainResult{ID: c.look.ID, VM: c.look.VM.Name, Action: c.work.Action, Point: c.look.Point, Points: done.Points, Check: done.Check},
	}
}

// long runs the activity that is the job.
func (c *chainJob) long(ctx workflow.Context, phase job.Phase, step, name string) (done activities.ChainDone, err error) {
	c.begin(ctx, phase, step, []job.DiskProgress{{Disk: activities.ChainLine, File: path.Base(c.work.Path), Total: c.look.Weight}})
	err = workflow.ExecuteActivity(moving(ctx, c.host.ID, c.terms), name, c.request()).Get(ctx, &done)
	if err == nil {
		c.verified(0)
	}
	return done, err
}

// check examines the chain. Damage is a failure, and what was found of it is told all the same.
func (c *chainJob) check(ctx workflow.Context) error {
	done, err := c.long(ctx, job.Verify, "checking the chain", activities.CheckChainActivity)
	if err != nil {
		return err
	}
	r := c.result(done)
	if done.Check == nil || done.Check.Damage == 0 {
		c.status.Result = r
		return nil
	}
	r.Success, c.findings = false, r
	return refusal(providers.Corrupt, "%s", done.First)
}

func (c *chainJob) merge(ctx workflow.Context) error {
	c.undo.push(step{name: "hidden files of the merge in " + c.dir, onlyFailed: true, do: func(ctx workflow.Context) error {
		return workflow.ExecuteActivity(cleaning(ctx, c.host.ID, c.terms), activities.DiscardMergeActivity, c.request()).Get(ctx, nil)
	}})
	done, err := c.long(ctx, job.Transfer, fmt.Sprintf("merging the points up to %d", c.look.Point), activities.MergeChainActivity)
	if err != nil {
		return err
	}
	c.ending = true
	r := c.result(done)
	r.Files, r.TotalSize = append(r.Files, done.Files...), done.Total
	for _, d := range done.Disks {
		r.Disks = append(r.Disks, job.DiskResult{
			Disk: d.Disk, File: d.File, Format: "qcow2", Size: d.Size, Stored: d.Stored, Digest: d.Digest, Full: true, Reason: d.Reason,
		})
	}
	c.status.Result = r
	return nil
}

// deletePoint gives a point up: that is done or not done, and nothing in between.
func (c *chainJob) deletePoint(ctx workflow.Context) error {
	c.phase(ctx, job.Manifest, fmt.Sprintf("deleting point %d", c.look.Point))
	var done activities.ChainDone
	if err := c.call(ctx, activities.DeletePointActivity, c.request(), &done); err != nil {
		return err
	}
	c.ending = true
	c.status.Result = c.result(done)
	return nil
}

// flatten makes images of the disks of a point.
func (c *chainJob) flatten(ctx workflow.Context) error {
	c.phase(ctx, job.Plan, "deciding how to go about it")
	c.disks = flattened(c.work, c.seen)
	c.dir = c.disks[0].Target.Output
	if err := c.steps(ctx, c.prepare, c.transfer, c.verify); err != nil {
		return err
	}
	if err := c.finish(ctx); err != nil {
		return err
	}
	about := c.result(activities.ChainDone{Points: c.look.Points})
	c.status.Result.VMName, c.status.Result.Chain = about.VMName, about.Chain
	return nil
}

// flattened decides what is made of each disk.
func flattened(w job.ChainWork, seen activities.Looked) []convertedDisk {
	layout := activities.ChainLayout(w)
	disks := make([]convertedDisk, len(seen.Chain.Disks))
	for i, d := range seen.Chain.Disks {
		out := w.OutputPath
		if w.Disk == "" {
			out = path.Join(out, fmt.Sprintf("%s-disk-%d%s", activities.SafeName(seen.Chain.VM.Name), d.Number, seen.Format.Ext))
		}
		need := min(d.Size, d.Held)
		if w.Compress {
			need /= 2
		}
		disks[i] = convertedDisk{
			Label: "disk " + d.Disk, Size: d.Size, Need: need,
			Chain: &activities.ChainSource{Path: w.Path, ID: seen.Chain.ID, Point: seen.Chain.Point, Disk: d.Disk, Digest: d.Digest},
			Target: activities.Target{
				Output: path.Dir(out), Alone: path.Base(out), Format: seen.Format.Name, Compress: w.Compress, Create: &layout, Overwrite: w.Overwrite,
			},
		}
	}
	return disks
}

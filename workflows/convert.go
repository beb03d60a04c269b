package workflows

import (
	"path"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ConvertDisk is disk images converted: admitted, placed on a host that has them, planned, copied all at
// once, verified and given their names; then what it needed on the way is cleaned up.
func ConvertDisk(ctx workflow.Context, spec job.Conversion) (*job.Result, error) {
	c := &conversion{task: newTask(ctx, "", spec.LimitMBps), spec: spec, doing: "converting the disks"}
	if err := c.handlers(ctx); err != nil {
		return nil, err
	}
	err := c.run(ctx)
	return c.end(ctx, err)
}

// conversion is the state of one job.
type conversion struct {
	task
	spec  job.Conversion
	doing string            // for people
	seen  activities.Looked // by the host that the job is on
	disks []convertedDisk   // in the order of the spec
	done  []activities.Transferred
	sums  []activities.Verified
}

// convertedDisk is one image and what is made of it.
type convertedDisk struct {
	Image  activities.Image
	Chain  *activities.ChainSource // what it is made of, instead of Image
	Label  string
	Size   int64
	Need   int64 // bytes on the target, estimated
	Target activities.Target
}

func (c *conversion) run(ctx workflow.Context) error {
	if err := c.admit(ctx, c.ask); err != nil {
		return err
	}
	return c.onHosts(ctx, c.place, c.work)
}

func (c *conversion) ask(ctx workflow.Context) (asked activities.Asked, err error) {
	req := activities.AskConversionRequest{Job: c.id, Title: c.spec.Title(), Priority: c.spec.Priority}
	err = quickly(ctx, anywhere(ctx), activities.AskConversionActivity, req, &asked)
	return asked, err
}

// place finds the host that has the images.
func (c *conversion) place(ctx workflow.Context) (err error) {
	c.seen, err = c.find(ctx, "the images", func(ctx workflow.Context) workflow.Future {
		return workflow.ExecuteActivity(ctx, activities.LookActivity, activities.LookRequest{Job: c.id, Spec: c.spec})
	})
	return err
}

// work is everything that happens on one host.
func (c *conversion) work(ctx workflow.Context) error {
	c.phase(ctx, job.Plan, "deciding how to go about it")
	c.disks = makeConversion(c.spec, c.seen)
	c.dir = c.disks[0].Target.Output
	if err := c.steps(ctx, c.prepare, c.transfer, c.verify); err != nil {
		return err
	}
	return c.finish(ctx)
}

// makeConversion decides what is made of each image.
func makeConversion(s job.Conversion, seen activities.Looked) []convertedDisk {
	layout := activities.Layout(s)
	disks := make([]convertedDisk, len(s.Disks))
	for i, d := range s.Disks {
		img := seen.Images[i]
		need := min(img.Size, img.Held)
		if s.Compress {
			need /= 2
		}
		disks[i] = convertedDisk{
			Image: img.Image, Label: path.Base(d.SourcePath), Size: img.Size, Need: need,
			Target: activities.Target{
				Output: path.Dir(d.OutputPath), Alone: path.Base(d.OutputPath), Format: seen.Format.Name,
				Compress: s.Compress, Create: &layout, Overwrite: s.Overwrite,
			},
		}
	}
	return disks
}

func (c *conversion) prepare(ctx workflow.Context) error {
	req := activities.PrepareImagesRequest{Job: c.id}
	for _, d := range c.disks {
		c.undo.push(step{name: "hidden files of " + path.Join(d.Target.Output, d.Target.Alone), onlyFailed: true, do: c.discard(d.Target)})
		req.Images = append(req.Images, activities.PrepareImage{Target: d.Target, Need: d.Need})
	}
	return c.call(ctx, activities.PrepareImagesActivity, req, nil)
}

// discard removes what the job has hidden of a target.
func (c *conversion) discard(t activities.Target) func(workflow.Context) error {
	return func(ctx workflow.Context) error {
		return workflow.ExecuteActivity(cleaning(ctx, c.host.ID, c.terms), activities.DiscardActivity,
			activities.DiscardRequest{Job: c.id, Target: t}).Get(ctx, nil)
	}
}

// lines are the disks before anything is done about them.
func (c *conversion) lines() []job.DiskProgress {
	lines := make([]job.DiskProgress, len(c.disks))
	for i, d := range c.disks {
		lines[i] = job.DiskProgress{Disk: d.id(), File: d.Target.Alone, Total: d.Size}
	}
	return lines
}

// id names what a disk is made of.
func (d convertedDisk) id() string {
	if d.Chain != nil {
		return d.Chain.Disk
	}
	return d.Image.File.Name
}

func (c *conversion) label(i int) string {
	d := c.disks[i]
	return d.Label + " (" + d.Target.Alone + ")"
}

// transfer converts all disks at once, one activity each.
func (c *conversion) transfer(ctx workflow.Context) error {
	c.begin(ctx, job.Transfer, c.doing, c.lines())
	c.done = make([]activities.Transferred, len(c.disks))
	return c.each(ctx, len(c.disks), c.label, func(ctx workflow.Context, i int) workflow.Future {
		d := c.disks[i]
		req := activities.TransferRequest{
			Job: c.id, Label: d.Label, Size: d.Size, Need: d.Need, Ref: providers.DiskRef{Disk: providers.DiskID(d.id())},
			Chain: d.Chain, Target: d.Target, File: d.Target.Alone, Workers: c.spec.Workers, Limits: c.limits,
		}
		if d.Chain == nil {
			req.Image = &d.Image
		}
		return workflow.ExecuteActivity(ctx, activities.TransferActivity, req)
	}, func(ctx workflow.Context, i int, f workflow.Future) error {
		if err := f.Get(ctx, &c.done[i]); err != nil {
			return err
		}
		c.copied(i, c.done[i])
		return nil
	})
}

// verify reads all targets again.
func (c *conversion) verify(ctx workflow.Context) error {
	if c.spec.NoVerify {
		return nil
	}
	c.begin(ctx, job.Verify, "reading the targets again to compare them with what was read", c.lines())
	sums, err := c.verifyEach(ctx, len(c.disks), c.label, func(i int) activities.VerifyRequest {
		d := c.disks[i]
		return activities.VerifyRequest{
			Job: c.id, Disk: d.id(), Label: d.Label, Size: d.Size, Target: d.Target, File: d.Target.Alone,
			Digest: c.done[i].Digest, Workers: c.spec.Workers, Limits: c.limits,
		}
	})
	c.sums = sums
	return err
}

// finish is the point of no return: from here on the job is completed, not cancelled.
func (c *conversion) finish(ctx workflow.Context) error {
	c.phase(ctx, job.Name, "naming the files")
	c.ending = true
	ctx, _ = workflow.NewDisconnectedContext(ctx)
	req := activities.FinishImagesRequest{Job: c.id}
	for i, d := range c.disks {
		req.Images = append(req.Images, activities.FinishImage{Target: d.Target, Inode: c.done[i].Inode})
	}
	var out activities.Finished
	if err := c.call(ctx, activities.FinishImagesActivity, req, &out); err != nil {
		return err
	}
	r := &job.Result{OutputDir: c.dir, Files: out.Files, TotalSize: out.Total, Success: true, Host: c.host.ID}
	for i, d := range c.disks {
		disk := job.DiskResult{
			Disk: d.id(), File: d.Target.Alone, Format: d.Target.Format, Size: d.Size,
			Stored: c.done[i].Stored, Digest: c.done[i].Digest, Read: c.done[i].Read, Retries: c.done[i].Attempts - 1,
		}
		if i < len(c.sums) {
			disk.SHA256, disk.Stored = c.sums[i].SHA256, c.sums[i].Stored
		}
		r.Disks = append(r.Disks, disk)
	}
	c.status.Result = r
	return nil
}

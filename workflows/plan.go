package workflows

import (
	"fmt"
	"strings"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// plan is what an export will do, decided from what was asked for and from facts, before anything is
// touched.
type plan struct {
	Phases    []job.Phase
	Transport string
	Leased    bool   // it reads all disks under one lease
	Why       string // it is not the best one that there is; empty: it is
	Else      string // leased, to go on with where Transport is refused when it comes to it; empty: none
	Target    activities.Target
	Disks     []plannedDisk
	Need      int64 // bytes on the target, estimated
}

type plannedDisk struct {
	Disk providers.Disk
	File string // final name; empty: in a chain
	Need int64
}

// MaxDisks is the most disks of a VM that can be exported in one job: what fits in an event of a history.
const MaxDisks = 120

// Supported says what of a spec no host and no platform could do, whatever the facts.
func Supported(s job.Spec) error {
	if s.Compress && s.Thin != nil && !*s.Thin {
		return refusal(providers.Invalid, "a disk cannot be both compressed and allocated in full; leave out compress or thin: false")
	}
	if no := job.Unchainable(s); len(no) > 0 {
		return refusal(providers.Invalid, "%s", no[0].Error())
	}
	return nil
}

// makePlan decides. It has no side effects; its errors are for people and final.
func makePlan(s job.Spec, f activities.Facts) (plan, error) {
	if err := Supported(s); err != nil {
		return plan{}, err
	}
	vm := f.VM
	for _, c := range needs(s) {
		if !has(f.Capabilities, c) {
			return plan{}, refusal(providers.Unsupported, "%s cannot be exported: %s has no ability %q in this version", vm.Name, f.Kind, c)
		}
	}
	switch {
	case vm.Template:
		return plan{}, refusal(providers.Unsupported, "%s is a template, of which no snapshot can be taken; make it a VM, or clone it, first", vm.Name)
	case len(vm.Disks) == 0:
		return plan{}, refusal(providers.Unsupported, "%s has no disks to export", vm.Name)
	case len(vm.Disks) > MaxDisks:
		return plan{}, refusal(providers.Unsupported, "%s has %d disks; at most %d can be exported in one job", vm.Name, len(vm.Disks), MaxDisks)
	case s.Options.Shutdown && vm.PowerState == providers.PowerSuspended:
		return plan{}, refusal(providers.Precondition, "%s is suspended, so that it cannot be shut down; let it go on, or leave shutdown out", vm.Name)
	case f.Format.Why != "":
		return plan{}, refusal(providers.Unsupported, "%s", f.Format.Why)
	}
	p := plan{Phases: phases(s, f.Format.Package)}
	if err := p.choose(s, f); err != nil {
		return plan{}, err
	}
	safe := activities.SafeName(vm.Name)
	p.Target = activities.Target{
		Output: s.OutputPath, Folder: safe, Format: f.Format.Name,
		Compress: s.Compress, Thick: s.Thin != nil && !*s.Thin, Overwrite: s.Options.Overwrite, Chain: s.Incremental,
	}
	if f.Format.Package != "" {
		if why := activities.Indescribable(s, vm); why != "" {
			return plan{}, refusal(providers.Unsupported, "%s", why)
		}
		safe = activities.PackageName(safe)
		p.Target.Package, p.Target.Base, p.Target.Compress = f.Format.Package, safe, true
	}
	var largest int64
	for i, d := range vm.Disks {
		if strings.Contains(strings.ToLower(d.Mode), "independent") {
			return plan{}, refusal(providers.Unsupported,
				"%s of %s is an independent disk, which has no part in snapshots; change its mode to export the VM", d.Label, vm.Name)
		}
		if d.Size < 0 {
			return plan{}, refusal(providers.Invalid, "%s of %s has the size %d", d.Label, vm.Name, d.Size)
		}
		pd := plannedDisk{Disk: d, File: fmt.Sprintf("%s-disk-%d%s", safe, i+1, f.Format.Ext), Need: need(d, p.Target)}
		if p.Target.Chain {
			pd.File = "" // which the chain knows
		}
		p.Disks = append(p.Disks, pd)
		p.Need += pd.Need
		largest = max(largest, pd.Need)
	}
	if p.Target.Archive() != "" {
		p.Need += largest // while a disk is put into the archive, it is there twice
	}
	return p, nil
}

// needs are the capabilities that a job asks of its platform.
func needs(s job.Spec) []string {
	out := []string{"snapshot", "disk-source"}
	if s.Options.RemoveCDROM {
		out = append(out, "drives")
	}
	if s.Options.Shutdown {
		out = append(out, "power")
	}
	return out
}

func phases(s job.Spec, pkg string) []job.Phase {
	out := []job.Phase{job.Snap, job.Transfer}
	if s.Options.RemoveCDROM || s.Options.Shutdown {
		out = append([]job.Phase{job.Source}, out...)
	}
	if pkg == activities.PackageOVA {
		out = append(out, job.Package)
	}
	if !s.Options.NoVerify {
		out = append(out, job.Verify)
	}
	if pkg == activities.PackageOVF {
		out = append(out, job.Package)
	}
	return append(out, job.Manifest, job.Clean)
}

// choose picks the way to read the disks: the one asked for, or the best that is safe, and then another
// one should it turn out not to be.
func (p *plan) choose(s job.Spec, f activities.Facts) error {
	forced := s.Options.Transport
	var why []string
	for _, t := range f.Transports {
		if s.Incremental && t.Leased && t.Why == "" {
			t.Why = "it sends whole disks front to back, and an incremental export reads them in pieces"
		}
		switch {
		case forced != "" && t.Name != forced:
			continue
		case t.Why == "" && t.Leased && !has(f.Capabilities, "disk-leaser"):
			t.Why = f.Kind + " has no ability \"disk-leaser\" in this version"
		case t.Why == "" && p.Transport == "":
			p.Transport, p.Leased, p.Why = t.Name, t.Leased, strings.Join(why, "; ")
		case t.Why == "" && p.Else == "" && t.Leased && !p.Leased:
			p.Else = t.Name
		}
		if t.Why != "" {
			why = append(why, t.Name+": "+t.Why)
		}
	}
	switch {
	case p.Transport != "" && forced != "":
		p.Why = "it was asked for"
		return nil
	case p.Transport != "":
		return nil
	case len(why) > 0 && s.Incremental:
		return refusal(providers.Unsupported, "what changed of the disks of %s cannot be read now (%s); leave incremental out to export it in full", f.VM.Name, strings.Join(why, "; "))
	case len(why) > 0:
		return refusal(providers.Unsupported, "the disks of %s cannot be read now (%s)", f.VM.Name, strings.Join(why, "; "))
	case forced != "":
		names := make([]string, len(f.Transports))
		for i, t := range f.Transports {
			names[i] = t.Name
		}
		return refusal(providers.Unsupported, "there is no transport %q for %s; there are: %s", forced, f.VM.Name, strings.Join(names, ", "))
	}
	return refusal(providers.Unsupported, "%s offers no way to read the disks of %s", f.Kind, f.VM.Name)
}

// need estimates what a disk takes on the target. It may be too little, never much too much: a job
// that runs out of space waits for it, one that is refused for nothing helps nobody.
func need(d providers.Disk, t activities.Target) int64 {
	n := d.Size
	if d.Used > 0 && d.Used < n && !t.Thick {
		n = d.Used
	}
	if t.Compress {
		n /= 2
	}
	return n
}

// disksOf matches the disks of a snapshot with the planned ones: the snapshot is newer.
func (p *plan) disksOf(s providers.Snapshot) error {
	if len(s.Disks) != len(p.Disks) {
		return refusal(providers.Precondition, "the VM had %d disks when the job looked and %d in its snapshot; submit the job again", len(p.Disks), len(s.Disks))
	}
	for i := range p.Disks {
		d, ok := find(s.Disks, p.Disks[i].Disk.ID)
		if !ok {
			return refusal(providers.Precondition, "%s was taken from the VM before its snapshot; submit the job again", p.Disks[i].Disk.Label)
		}
		p.Disks[i].Disk = d
		p.Disks[i].Need = max(p.Disks[i].Need, need(d, p.Target))
	}
	return nil
}

func find(disks []providers.Disk, id providers.DiskID) (providers.Disk, bool) {
	for _, d := range disks {
		if d.ID == id {
			return d, true
		}
	}
	return providers.Disk{}, false
}

func has(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

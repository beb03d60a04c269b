package workflows

import (
	"path/filepath"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Preview is what an export would do, for people to look at before it is begun.
type Preview struct {
	Transport string        `json:"transport"`
	Why       string        `json:"transport_reason,omitempty" doc:"Why it is not the best transport there is, where it is not"`
	Else      string        `json:"else,omitempty" doc:"Transport to go on with where the first is refused"`
	Archive   string        `json:"archive,omitempty" doc:"File that the disks become parts of"`
	Folder    string        `json:"folder"`
	Disks     []PreviewDisk `json:"disks"`
	Phases    []job.Phase   `json:"phases"`
	Need      int64         `json:"need" doc:"Bytes on the target, estimated"`
}

// PreviewDisk is a disk and the file that it would go into.
type PreviewDisk struct {
	Label string `json:"label"`
	Size  int64  `json:"size"`
	File  string `json:"file"`
	Need  int64  `json:"need"`
}

// MakePreview decides what an export would do, as the job itself will. Its errors are a
// [providers.Error], for people and final.
func MakePreview(s job.Spec, f activities.Facts) (Preview, error) {
	p, err := makePlan(s, f)
	if err != nil {
		why := verdict(err)
		return Preview{}, &providers.Error{Op: "plan", Reason: why.reason, Msg: why.text}
	}
	out := Preview{Transport: p.Transport, Else: p.Else, Archive: p.Target.Archive(), Why: p.Why, Folder: filepath.Join(p.Target.Output, p.Target.Folder), Phases: p.Phases, Need: p.Need}
	for _, d := range p.Disks {
		out.Disks = append(out.Disks, PreviewDisk{Label: d.Disk.Label, Size: d.Disk.Size, File: d.File, Need: d.Need})
	}
	return out, nil
}

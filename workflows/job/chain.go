package job

import (
	"fmt"
	"path"
	"time"

	"hypersdk/cbt"
)

// ChainAction is what a job does to a chain.
type ChainAction string

const (
	CheckChain   ChainAction = "check"   // examine it
	MergeChain   ChainAction = "merge"   // make a later point its oldest
	FlattenChain ChainAction = "flatten" // write disks at a point as images of their own
	DeletePoint  ChainAction = "delete"  // give up a point that no other builds upon
)

// ChainWork is what was asked for of a job that works on a chain, which lies in a folder of a worker's host.
type ChainWork struct {
	Action ChainAction `json:"action" enum:"check,merge,flatten,delete"`
	Name   string      `json:"name,omitempty" doc:"Free name for people" maxLength:"200"`
	Path   string      `json:"path" doc:"Folder of the chain, on the worker's host" example:"/backups/web-01" minLength:"1" maxLength:"4000"`
	// Depth is of CheckChain; "" is CheckDepthLinks.
	Depth string `json:"depth,omitempty" enum:"links,tables,data" doc:"Of a check: whether every file is there and names the right backing file (links, also where absent), its tables are sound too (tables), or all stored bytes have their digests (data)"`
	UpTo  int64  `json:"up_to,omitempty" minimum:"1" doc:"Of a merge: the point that becomes the oldest; those before it are given up"`
	// Point is of FlattenChain and DeletePoint; 0 is the newest.
	Point        int64   `json:"point,omitempty" minimum:"0" doc:"Point to flatten or to delete; the newest where absent"`
	Disk         string  `json:"disk,omitempty" doc:"Disk to flatten, as its platform calls it; all of the point where absent" example:"2000" maxLength:"1024"`
	TargetFormat string  `json:"target_format,omitempty" doc:"Of flatten: format of the images" example:"qcow2" maxLength:"40"`
	OutputPath   string  `json:"output_path,omitempty" doc:"Of flatten: file to make of the disk; of all disks, the folder for their files. It must exist" example:"/restored" maxLength:"4000"`
	Compress     bool    `json:"compress,omitempty" doc:"Of flatten: store blocks compressed, where the format can"`
	Overwrite    bool    `json:"overwrite,omitempty" doc:"Of flatten: replace files that have the names of the images, once the new ones are whole"`
	LimitMBps    float64 `json:"limit_mbps,omitempty" doc:"Bandwidth limit of the job in MB/s (1,000,000 bytes); 0: none" minimum:"0" maximum:"1000000"`
	Priority     int     `json:"priority,omitempty" doc:"Jobs with a higher number are admitted first" minimum:"0" maximum:"100"`
}

// Depths of a check.
const (
	CheckDepthLinks  = "links"
	CheckDepthTables = "tables"
	CheckDepthData   = "data"
)

// Title is what a job on a chain is called in a list.
func (w ChainWork) Title() string {
	if w.Name != "" {
		return w.Name
	}
	of := string(w.Action) + " " + path.Base(w.Path)
	switch {
	case w.Action == MergeChain:
		return fmt.Sprintf("%s up to point %d", of, w.UpTo)
	case w.Action == CheckChain:
		return of
	case w.Point == 0:
		return of + " at its newest point"
	}
	return fmt.Sprintf("%s at point %d", of, w.Point)
}

// Definition is the work as far as a Spec can say it, for those who look at all jobs alike.
func (w ChainWork) Definition() Spec {
	return Spec{
		Name: w.Title(), OutputPath: w.OutputPath, Format: w.TargetFormat, Compress: w.Compress,
		Options: Options{Overwrite: w.Overwrite, LimitMBps: w.LimitMBps, Priority: w.Priority},
	}
}

// Validate lists every fault of w that can be seen without asking anybody; none for a good one.
func (w ChainWork) Validate(caps Caps) []FieldError {
	var v faults
	v.text("name", w.Name, maxName)
	v.folder("path", w.Path)
	v.within("priority", w.Priority, 0, 100)
	if e := CheckLimit(w.LimitMBps); e != "" {
		v.add("limit_mbps", "%s", e)
	}
	if w.Point < 0 {
		v.add("point", "must not be negative; 0 is the newest")
	}
	switch w.Action {
	case CheckChain:
		v.oneOf("depth", "depth of a check", w.Depth, []string{CheckDepthLinks, CheckDepthTables, CheckDepthData})
	case MergeChain:
		if w.UpTo < 1 {
			v.add("up_to", "is required: the point that becomes the oldest")
		}
	case FlattenChain:
		v.flatten(w, caps)
	case DeletePoint:
	default:
		v.add("action", "must be check, merge, flatten or delete")
	}
	return v
}

func (v *faults) flatten(w ChainWork, caps Caps) {
	v.required("target_format", w.TargetFormat)
	v.oneOf("target_format", "disk format", w.TargetFormat, caps.Formats)
	v.text("disk", w.Disk, 1024)
	v.folder("output_path", w.OutputPath)
	switch name := path.Base(w.OutputPath); {
	case w.Disk == "" || w.OutputPath == "":
	case name == "/":
		v.add("output_path", "must be the path of a file, because a disk is named")
	case len(name) > maxFile:
		v.add("output_path", "has a name that is too long: %d bytes, %d are allowed", len(name), maxFile)
	}
	if w.OutputPath != "" && w.OutputPath == w.Path {
		v.add("output_path", "must not be the folder of the chain")
	}
}

// ChainResult is what a job on a chain found or did.
type ChainResult struct {
	ID     string      `json:"id" doc:"Of the chain"`
	VM     string      `json:"vm" doc:"Name of the VM"`
	Action ChainAction `json:"action" enum:"check,merge,flatten,delete"`
	Point  int64       `json:"point,omitempty" doc:"Point that was flattened or deleted, or that is the oldest after a merge"`
	Points int         `json:"points" doc:"Points that the chain has, after the job"`
	Check  *ChainCheck `json:"check,omitempty" doc:"What a check found"`
}

// ChainCheck is what a check of a chain found.
type ChainCheck struct {
	Depth    string        `json:"depth" enum:"links,tables,data"`
	Links    int           `json:"links" doc:"Files that hold disks"`
	Read     int64         `json:"read" doc:"Bytes of disks that were read and compared"`
	Damage   int           `json:"damage" doc:"Problems found"`
	Problems []cbt.Problem `json:"problems,omitempty" doc:"The first 100 of them"`
	Strays   []string      `json:"strays,omitempty" doc:"Files with names of the chain that no point has, 100 at most; they do no harm"`
	Pending  bool          `json:"pending,omitempty" doc:"A change is decided and not carried out yet; the chain is whole all the same"`
}

// ChainQuery asks for what a chain is made of: by its folder, or by the folder that holds those of VMs, and a
// VM.
type ChainQuery struct {
	Path   string `json:"path,omitempty"`
	Output string `json:"output,omitempty"`
	VM     string `json:"vm,omitempty"`   // name, with Output
	Host   string `json:"host,omitempty"` // id; "": whichever has it
}

// ChainView is what a chain is made of.
type ChainView struct {
	ID     string       `json:"id" doc:"Of the chain"`
	VM     ChainVM      `json:"vm"`
	Path   string       `json:"path" doc:"Its folder"`
	Host   string       `json:"host" doc:"Id of the host that has it"`
	Total  int          `json:"total" doc:"Points that it has"`
	Stored int64        `json:"stored" doc:"Bytes of all its files that hold disks"`
	Points []ChainPoint `json:"points" doc:"Ascending; of a long chain the newest"`
}

// ChainVM is whose disks a chain holds, in the words of the VM's platform.
type ChainVM struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Provider string `json:"provider,omitempty"`
}

// ChainPoint is the disks of a VM at one time.
type ChainPoint struct {
	Number int64       `json:"number"`
	Parent int64       `json:"parent,omitempty" doc:"Number of the point before"`
	Time   Time        `json:"time"`
	Disks  []ChainDisk `json:"disks"`
}

// ChainDisk is a disk at one point, and the file that holds it or what changed of it.
type ChainDisk struct {
	Disk    string       `json:"disk" doc:"Id of the disk on its platform"`
	Size    int64        `json:"size" doc:"Bytes of the disk"`
	Full    bool         `json:"full" doc:"The file holds all of it; otherwise what changed since the point before"`
	Reason  string       `json:"reason,omitempty" doc:"Why it was copied in full"`
	By      cbt.Tracking `json:"by,omitempty" enum:"tracking,comparison" doc:"How the changes were found"`
	Changed int64        `json:"changed" doc:"Bytes that were taken as changed"`
	Stored  int64        `json:"stored" doc:"Bytes of the file"`
	File    string       `json:"file"`
	Digest  string       `json:"digest" doc:"Content digest of the whole disk at this point"`
}

// AnalyzeRequest is what an analysis is to go by, beside the VM.
type AnalyzeRequest struct {
	Output string `json:"output,omitempty"` // folder that holds the chain of the VM; "": none is known
	Host   string `json:"host,omitempty"`   // that has it, where that is known
	// RateMBps is what an earlier job of the VM came to, and LimitMBps what the next will not exceed; 0: unknown,
	// none.
	RateMBps  float64 `json:"rate_mbps,omitempty"`
	LimitMBps float64 `json:"limit_mbps,omitempty"`
}

// Analysis is what an incremental export of a VM would do now.
type Analysis struct {
	CanIncremental        bool           `json:"can_incremental" doc:"Whether the next run reads only what changed, of one disk at least"`
	Reason                string         `json:"reason" doc:"Why, or why not, in one sentence"`
	EstimatedSavingsBytes int64          `json:"estimated_savings_bytes" doc:"Bytes that the next run need not read, against a copy in full"`
	VMName                string         `json:"vm_name"`
	LastPoint             *AnalyzedPoint `json:"last_point,omitempty" doc:"The newest point of the chain"`
	Disks                 []AnalyzedDisk `json:"disks"`
	ChangedBytes          int64          `json:"changed_bytes" doc:"Bytes that the next run would read"`
	TotalBytes            int64          `json:"total_bytes" doc:"Bytes of all disks"`
	AllocatedBytes        int64          `json:"allocated_bytes,omitempty" doc:"Bytes that the disks hold, which is what a copy in full reads; absent: not known"`
	EstimatedDuration     string         `json:"estimated_duration,omitempty" doc:"What the next run would take, at the rate of the VM's earlier jobs or the bandwidth limit; absent: neither is known" example:"1m30s"`
	EstimatedFullDuration string         `json:"estimated_full_duration,omitempty" doc:"What a copy in full would take" example:"55m0s"`
	Warnings              []string       `json:"warnings,omitempty"`
}

// AnalyzedPoint is the point that an analysis starts from.
type AnalyzedPoint struct {
	Number int64  `json:"number"`
	Time   Time   `json:"time"`
	Folder string `json:"folder" doc:"Of the chain"`
	Host   string `json:"host" doc:"Id of the host that has it"`
}

// AnalyzedDisk is what the next run would do with a disk.
type AnalyzedDisk struct {
	Disk           string       `json:"disk" doc:"Id of the disk on its platform"`
	Label          string       `json:"label"`
	Size           int64        `json:"size"`
	CanIncremental bool         `json:"can_incremental" doc:"Only what changed would be read"`
	Reason         string       `json:"reason,omitempty" doc:"Why not"`
	ChangedBytes   int64        `json:"changed_bytes" doc:"Bytes that would be read"`
	AllocatedBytes int64        `json:"allocated_bytes,omitempty" doc:"Bytes that the disk holds; absent: not known"`
	By             cbt.Tracking `json:"by,omitempty" enum:"tracking,comparison" doc:"How the changes would be found; absent: the disk would be copied in full"`
}

// Estimate is how long n bytes take at a rate in MB/s; "" where none is known.
func Estimate(n int64, mbps float64) string {
	if mbps <= 0 || n < 0 {
		return ""
	}
	seconds := float64(n) / (mbps * 1e6)
	if seconds >= 1e9 {
		return ""
	}
	return max(time.Second, time.Duration(seconds)*time.Second).String()
}

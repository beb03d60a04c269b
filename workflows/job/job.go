// Package job is what a job is to everyone who speaks of one: the body that the API takes, the input
// of the workflow, the frame on the web socket and the line in a terminal are these types. It knows
// nothing of Temporal, HTTP or any platform.
package job

import (
	"time"
)

// Spec is what was asked for. It carries names only: credentials given with a job are stored under a
// generated connection name before a Spec exists.
type Spec struct {
	Name       string `json:"name,omitempty" yaml:"name" doc:"Free name for people" maxLength:"200"`
	VMPath     string `json:"vm_path" yaml:"vm_path" doc:"Inventory path, id or unambiguous name of the VM" example:"/datacenter/vm/web-01" minLength:"1" maxLength:"2048"`
	OutputPath string `json:"output_path" yaml:"output_path" doc:"Folder on the worker's host; the export goes into a folder below it that is named after the VM" example:"/exports"`
	Format     string `json:"format,omitempty" yaml:"format" doc:"Format of the disks, or ova or ovf for a package; the configured default where absent" example:"qcow2"`
	Compress   bool   `json:"compress,omitempty" yaml:"compress" doc:"Store blocks compressed, where the format can"`
	// Thin is nil where nothing was said: sparse.
	Thin        *bool          `json:"thin,omitempty" yaml:"thin" doc:"false: allocate the whole disk on the target"`
	Incremental bool           `json:"incremental,omitempty" yaml:"incremental" doc:"Keep a chain in the folder of the VM, a base and deltas in qcow2, and copy only what changed since its newest point"`
	Connection  string         `json:"connection,omitempty" yaml:"connection" doc:"Name of a configured connection; the default one where absent"`
	Options     Options        `json:"options,omitzero" yaml:"options"`
	Metadata    map[string]any `json:"metadata,omitempty" yaml:"metadata" doc:"Anything; kept with the job and in its manifest"`
}

// Options are the finer points of a job. The zero value is right.
type Options struct {
	ParallelDownloads int     `json:"parallel_downloads,omitempty" yaml:"parallel_downloads" doc:"Ranges of one disk that are read at once; 0: the worker's default" minimum:"0" maximum:"64"`
	RemoveCDROM       bool    `json:"remove_cdrom,omitempty" yaml:"remove_cdrom" doc:"Take CD and DVD drives out of the VM before its snapshot, and put them back after the export; in a VM that runs they are emptied and disconnected meanwhile"`
	KeepCDROMRemoved  bool    `json:"keep_cdrom_removed,omitempty" yaml:"keep_cdrom_removed" doc:"With remove_cdrom: do not put them back after an export that succeeded"`
	Overwrite         bool    `json:"overwrite,omitempty" yaml:"overwrite" doc:"Replace an earlier export of this VM in the same place"`
	Transport         string  `json:"transport,omitempty" yaml:"transport" doc:"Force a transport; the best that is safe where absent" example:"datastore"`
	Quiesce           bool    `json:"quiesce,omitempty" yaml:"quiesce" doc:"Ask the guest's tools to bring its file systems to rest for the snapshot"`
	LimitMBps         float64 `json:"limit_mbps,omitempty" yaml:"limit_mbps" doc:"Bandwidth limit of the whole job in MB/s (1,000,000 bytes); 0: none" minimum:"0"`
	Priority          int     `json:"priority,omitempty" yaml:"priority" doc:"Jobs with a higher number are admitted first" minimum:"0" maximum:"100"`
	Shutdown          bool    `json:"shutdown,omitempty" yaml:"shutdown" doc:"Shut the guest down before the snapshot, and start the VM again as power_on says; a VM that is off stays off"`
	// ShutdownTimeout 0 is DefaultShutdownTimeout.
	ShutdownTimeout Duration `json:"shutdown_timeout,omitempty" yaml:"shutdown_timeout" doc:"With shutdown: what the guest has, in seconds or as a duration; 5 minutes where absent"`
	ShutdownThen    Then     `json:"shutdown_then,omitempty" yaml:"shutdown_then" enum:"fail,poweroff" doc:"With shutdown: what follows where the guest does not shut down in time, or cannot be asked; fail where absent"`
	PowerOn         string   `json:"power_on,omitempty" yaml:"power_on" enum:"after_export,after_snapshot,never" doc:"With shutdown: when the VM is started again; after_export where absent. After a failure it is in any case"`
	Full            bool     `json:"full,omitempty" yaml:"full" doc:"With incremental: copy all disks in full, whatever is known of their changes"`
	VerifyTracking  bool     `json:"verify_tracking,omitempty" yaml:"verify_tracking" doc:"With incremental: read all disks in full to see whether the platform told every change; what it missed is copied, and raises an alert"`
	NoVerify        bool     `json:"no_verify,omitempty" yaml:"no_verify" doc:"Do not read the target again to compare it with what was received"`
}

// When a VM that was shut down for an export is started again; "" is the first.
const (
	PowerOnAfterExport   = "after_export"
	PowerOnAfterSnapshot = "after_snapshot"
	PowerOnNever         = "never"
)

// State is what became of a job. Finer states are in [Progress.Phase].
type State string

const (
	Pending   State = "pending"
	Running   State = "running"
	Completed State = "completed"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// Ended says whether nothing will change any more.
func (s State) Ended() bool { return s == Completed || s == Failed || s == Cancelled }

// Phase is what a job is doing.
type Phase string

const (
	Admit    Phase = "admit"    // waits for its turn
	Place    Phase = "place"    // looks for a host to work on
	Inspect  Phase = "inspect"  // looks at the VM and the target
	Plan     Phase = "plan"     // decides, and checks that it can be done
	Source   Phase = "source"   // shuts the source down or takes its drives out, where that was asked for
	Snap     Phase = "snapshot" // takes a snapshot of the source
	Transfer Phase = "transfer" // copies disks
	Package  Phase = "package"  // makes a package of the disks: OVF, OVA
	Wait     Phase = "wait"     // waits for the next round of a warm copy
	Verify   Phase = "verify"   // reads the target again
	Manifest Phase = "manifest" // renames the files and writes the manifest
	Name     Phase = "name"     // gives the files of a conversion their names
	Clean    Phase = "clean"    // drops the snapshot and what else it left
	Done     Phase = "done"
)

// Job is a job as the API answers it.
type Job struct {
	ID          string    `json:"id"`
	Kind        Kind      `json:"kind" enum:"export,convert,import,chain,sync" doc:"What the job does"`
	Definition  Spec      `json:"definition" doc:"What was asked for; of a job that is no export, as far as the fields of one can say it"`
	Status      State     `json:"status" enum:"pending,running,completed,failed,cancelled"`
	Progress    *Progress `json:"progress,omitempty"`
	Result      *Result   `json:"result,omitempty"`
	Error       string    `json:"error,omitempty"`
	Reason      string    `json:"reason,omitempty" doc:"Kind of the error, for programs" example:"auth"`
	CreatedAt   Time      `json:"created_at" doc:"When it was submitted"`
	StartedAt   *Time     `json:"started_at,omitempty" doc:"When it was admitted"`
	CompletedAt *Time     `json:"completed_at,omitempty"`
	UpdatedAt   Time      `json:"updated_at"`
	Host        string    `json:"host,omitempty" doc:"Host that has the job's files and logs"`
	TemporalURL string    `json:"temporal_url,omitempty" doc:"The run in the Temporal Web UI"`
	// Conversion is set where Kind is Convert.
	Conversion *Conversion `json:"conversion,omitempty" doc:"What was asked for, of a job that converts disk images"`
	// Import is set where Kind is Import.
	Import *ImportSpec `json:"import,omitempty" doc:"What was asked for, of a job that makes a VM of a package"`
	// Chain is set where Kind is Chain.
	Chain *ChainWork `json:"chain,omitempty" doc:"What was asked for, of a job that works on a chain"`
	// Sync is set where Kind is Sync.
	Sync *SyncView `json:"sync,omitempty" doc:"What was asked for and how far it is, of a warm copy"`
}

// Kind is what a job does.
type Kind string

const (
	Export  Kind = "export"
	Convert Kind = "convert"
	Import  Kind = "import"
	Chain   Kind = "chain"
	Sync    Kind = "sync"
)

// Progress is how far a job has come.
type Progress struct {
	Phase              Phase          `json:"phase"`
	PercentComplete    float64        `json:"percent_complete" doc:"Of the bytes of the phase, 0 to 100"`
	CurrentFile        string         `json:"current_file,omitempty"`
	CurrentStep        string         `json:"current_step,omitempty" doc:"One sentence for people"`
	WaitingFor         string         `json:"waiting_for,omitempty" doc:"What keeps the job from going on, where something does"`
	Paused             bool           `json:"paused,omitempty"`
	BytesTransferred   int64          `json:"bytes_transferred" doc:"Bytes of the virtual disks that are dealt with"`
	TotalBytes         int64          `json:"total_bytes" doc:"Bytes of the virtual disks in all"`
	TransferRateMBps   float64        `json:"transfer_rate_mbps" doc:"MB/s (1,000,000 bytes) over the last seconds"`
	EstimatedRemaining string         `json:"estimated_remaining,omitempty" doc:"Duration" example:"2m30s"`
	LimitMBps          float64        `json:"limit_mbps,omitempty" doc:"Bandwidth limit in force, MB/s"`
	Transport          string         `json:"transport,omitempty" doc:"How the disks are read" example:"datastore"`
	TransportReason    string         `json:"transport_reason,omitempty" doc:"Why they are not read in the best way there is, where they are not"`
	Disks              []DiskProgress `json:"disks,omitempty"`
}

// DiskProgress is how far one disk has come; the heartbeat of a data activity is one of these.
type DiskProgress struct {
	Disk        string  `json:"disk" doc:"Id of the disk on its platform"`
	File        string  `json:"file" doc:"Name of the target file"`
	Phase       Phase   `json:"phase"`
	Done        int64   `json:"done" doc:"Bytes of the virtual disk that are dealt with"`
	Total       int64   `json:"total" doc:"Size of the virtual disk"`
	Read        int64   `json:"read" doc:"Bytes read from the source by this attempt"`
	Written     int64   `json:"written" doc:"Bytes written to the target by this attempt"`
	ResumedFrom int64   `json:"resumed_from,omitempty" doc:"Where the last attempt was taken up"`
	RateMBps    float64 `json:"rate_mbps"`
	// EstimatedRemaining is the server's, of what is left of the phase.
	EstimatedRemaining string `json:"estimated_remaining,omitempty" doc:"Duration" example:"2m30s"`
	Attempt            int32  `json:"attempt,omitempty"`
	Waiting            string `json:"waiting,omitempty" doc:"Why it does not go on now"`
	Digest             string `json:"digest,omitempty" doc:"Content digest, once known"`
}

// Result is what a job made. It is whole or absent.
type Result struct {
	VMName    string        `json:"vm_name"`
	OutputDir string        `json:"output_dir"`
	VMPath    string        `json:"vm_path,omitempty" doc:"Inventory path of the VM that was made, of an import"`
	OVFPath   string        `json:"ovf_path" doc:"Descriptor or archive of a package (format ovf or ova); empty: the export is none"`
	Files     []string      `json:"files" doc:"Paths of all files, the manifest last"`
	TotalSize int64         `json:"total_size" doc:"Bytes of all files together"`
	Duration  time.Duration `json:"duration" doc:"Nanoseconds since the job was admitted"`
	Success   bool          `json:"success"`
	Disks     []DiskResult  `json:"disks"`
	Host      string        `json:"host,omitempty"`
	Transport string        `json:"transport,omitempty"`
	// Point is set by an export that is incremental.
	Point *PointResult `json:"point,omitempty" doc:"The point of the chain that was written, of an incremental export"`
	// Chain is set by a job on a chain. A check that found damage has failed, and has a result all the same.
	Chain *ChainResult `json:"chain,omitempty" doc:"What a job on a chain found or did"`
	// Alerts say what somebody has to know although the job succeeded.
	Alerts []string `json:"alerts,omitempty"`
	// Leftover says what could not be cleaned up and has to be looked after by hand.
	Leftover []string `json:"leftover,omitempty"`
}

// PointResult is a point that was added to a chain.
type PointResult struct {
	Chain   string `json:"chain" doc:"Id of the chain"`
	Number  int64  `json:"number" doc:"Number of the point"`
	Parent  int64  `json:"parent,omitempty" doc:"Number of the point before"`
	Changed int64  `json:"changed" doc:"Bytes of the disks that were taken as changed; all of them where a disk was copied in full"`
}

// DiskResult is one disk of a finished export.
type DiskResult struct {
	Disk    string `json:"disk"`
	File    string `json:"file"`
	Format  string `json:"format"`
	Size    int64  `json:"size" doc:"Size of the virtual disk"`
	Stored  int64  `json:"stored" doc:"Size of the file"`
	Digest  string `json:"digest" doc:"Content digest of the virtual disk, independent of the format"`
	SHA256  string `json:"sha256" doc:"SHA-256 of the file, as sha256sum prints it"`
	Archive string `json:"archive,omitempty" doc:"Archive that the file is in (format ova)"`
	Read    int64  `json:"read" doc:"Bytes read from the source, all attempts"`
	Retries int32  `json:"retries,omitempty"`
	// What follows is set by an export that is incremental.
	Full    bool   `json:"full,omitempty" doc:"The disk was copied in full"`
	Reason  string `json:"reason,omitempty" doc:"Why it was copied in full, or compared with the chain"`
	By      string `json:"by,omitempty" enum:"tracking,comparison" doc:"How the changes were found, where it was not"`
	Changed int64  `json:"changed,omitempty" doc:"Bytes of the disk that were taken as changed"`
	Backing string `json:"backing,omitempty" doc:"File that this one builds upon"`
}

// Time is a time in an answer: RFC 3339 in UTC with three fractional digits.
type Time struct{ time.Time }

const timeLayout = "2006-01-02T15:04:05.000Z07:00"

// Now is the present as a Time.
func Now() Time { return Time{time.Now().UTC()} }

func (t Time) MarshalText() ([]byte, error) { return []byte(t.UTC().Format(timeLayout)), nil }

func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(`"` + t.UTC().Format(timeLayout) + `"`), nil
}

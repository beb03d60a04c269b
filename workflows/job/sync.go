package job

import (
	"slices"
	"strings"
	"time"
)

// SyncSpec is what was asked for of a warm copy: the disks of a VM copied while it runs, and then what
// changed of them again and again, until the cutover. It carries names only.
type SyncSpec struct {
	Name       string `json:"name,omitempty" doc:"Free name for people" maxLength:"200"`
	VMPath     string `json:"vm_path" doc:"Inventory path, id or unambiguous name of the VM" example:"/datacenter/vm/web-01" minLength:"1" maxLength:"2048"`
	OutputPath string `json:"output_path" doc:"Folder on the worker's host; the copy goes into a folder below it that is named after the VM" example:"/exports"`
	Format     string `json:"format,omitempty" doc:"Format of the disks, one that can be written in place; qcow2 where absent" enum:"raw,qcow2"`
	Connection string `json:"connection,omitempty" doc:"Name of a configured connection; the default one where absent"`

	Interval       Duration `json:"interval,omitempty" doc:"How far apart two rounds begin, in seconds or as a duration; a round that takes longer is followed by the next at once; 5 minutes where absent"`
	MaxRounds      int      `json:"max_rounds,omitempty" doc:"After so many rounds it is time for the cutover; 0: as many as it takes" minimum:"0" maximum:"1000000"`
	ThresholdBytes int64    `json:"threshold_bytes,omitempty" doc:"Once a round had at most that many changed bytes it is time for the cutover; 0: no such threshold" minimum:"0"`
	MaxDowntime    Duration `json:"max_downtime,omitempty" doc:"Once the downtime of a cutover is forecast to be at most that long it is time for it; 0: no such threshold"`
	Cutover        string   `json:"cutover,omitempty" doc:"What happens when it is time: auto cuts over; manual, the default, goes on with rounds until the cutover is asked for, which it can be at any time" enum:"auto,manual"`

	Shutdown bool `json:"shutdown,omitempty" doc:"Shut the guest down for the cutover, before the last round. The VM stays off, unless the job does not come to a good end. Without it the copy is that of a VM that ran on"`
	// ShutdownTimeout 0 is DefaultShutdownTimeout.
	ShutdownTimeout Duration       `json:"shutdown_timeout,omitempty" doc:"With shutdown: what the guest has, in seconds or as a duration; 5 minutes where absent"`
	ShutdownThen    Then           `json:"shutdown_then,omitempty" doc:"With shutdown: what happens to a guest that does not shut down in time: fail, the default, calls the cutover off and goes on with rounds; poweroff takes its power away" enum:"fail,poweroff"`
	Quiesce         bool           `json:"quiesce,omitempty" doc:"Ask the guest's tools to bring its file systems to rest for each snapshot"`
	Overwrite       bool           `json:"overwrite,omitempty" doc:"Replace an earlier export of this VM in the same place, once the copy is complete"`
	Transport       string         `json:"transport,omitempty" doc:"Force a transport; the best that is safe where absent" example:"datastore"`
	Parallel        int            `json:"parallel,omitempty" doc:"Ranges of one disk that are read at once; 0: the worker's default" minimum:"0" maximum:"64"`
	LimitMBps       float64        `json:"limit_mbps,omitempty" doc:"Bandwidth limit of the whole job in MB/s (1,000,000 bytes); 0: none" minimum:"0"`
	Priority        int            `json:"priority,omitempty" doc:"Jobs with a higher number are admitted first" minimum:"0" maximum:"100"`
	NoVerify        bool           `json:"no_verify,omitempty" doc:"Do not read the targets again at the end to compare them with what was received"`
	Metadata        map[string]any `json:"metadata,omitempty" doc:"Anything; kept with the job and in its manifest"`
}

// What happens when it is time for the cutover; "" is the second.
const (
	CutoverAuto   = "auto"
	CutoverManual = "manual"
)

const (
	// DefaultSyncInterval is how far apart rounds begin where nothing was said.
	DefaultSyncInterval = 5 * time.Minute
	// MinSyncInterval keeps snapshots from following one another without a pause.
	MinSyncInterval = time.Second
	maxSyncInterval = 30 * 24 * time.Hour
	// MaxSyncRounds is how many rounds are remembered one by one.
	MaxSyncRounds = 20
	maxRounds     = 1_000_000
)

// SyncFormats are the formats that disks can be kept in sync in.
func SyncFormats() []string { return []string{"raw", "qcow2"} }

// SyncView is a warm copy: what was asked for, and how far it is.
type SyncView struct {
	Spec SyncSpec `json:"spec" doc:"What was asked for"`
	SyncStatus
}

// SyncStatus is how far a warm copy is.
type SyncStatus struct {
	Submitted    Time          `json:"submitted_at" doc:"When the job was submitted"`
	Round        int           `json:"round" doc:"The round that is under way, or was the last; the first copies everything"`
	Holds        int           `json:"holds" doc:"The round that the targets hold whole; 0: none yet. While it is not the one under way they are a mixture, and hidden"`
	Rounds       []SyncRound   `json:"rounds" doc:"The last 20 rounds, the newest last"`
	Forecast     *SyncForecast `json:"forecast,omitempty" doc:"What a cutover would cost now; after the second round"`
	Ready        string        `json:"ready,omitempty" doc:"Why it is time for the cutover; absent: it is not"`
	CutoverAsked bool          `json:"cutover_asked,omitempty" doc:"The cutover was asked for, or is under way"`
	CalledOff    string        `json:"called_off,omitempty" doc:"Why the last cutover that was tried did not come about"`
	NextRound    *Time         `json:"next_round_at,omitempty" doc:"When the next round begins, while it is waited for"`
}

// SyncRound is one round of a warm copy.
type SyncRound struct {
	Round    int      `json:"round"`
	Began    Time     `json:"began_at"`
	Point    Time     `json:"point" doc:"The moment that the disks are of"`
	Snapshot Duration `json:"snapshot" doc:"What it took to replace the snapshot"`
	Asked    Duration `json:"asked" doc:"What it took to find out what had changed"`
	Copied   Duration `json:"copied" doc:"What it took to copy that"`
	Took     Duration `json:"took" doc:"What it took in all"`
	Changed  int64    `json:"changed" doc:"Bytes that were taken as changed; all that is allocated of a disk that was copied in full"`
	Read     int64    `json:"read" doc:"Bytes that were read from the source"`
	Notes    []string `json:"notes,omitempty" doc:"Why disks were compared, or copied in full, where they should not have been"`
	Final    bool     `json:"final,omitempty" doc:"It was the last one, at the cutover"`
}

// SyncForecast is what a cutover would cost, by what the rounds before it did.
type SyncForecast struct {
	Downtime     Duration `json:"downtime" doc:"From the moment that the guest is asked to shut down until the last byte is copied. Reading the targets again comes on top"`
	Changed      int64    `json:"changed" doc:"Bytes that would have changed by then"`
	ChangeRate   float64  `json:"change_rate_mbps" doc:"What the guest changes, MB/s (1,000,000 bytes)"`
	TransferRate float64  `json:"transfer_rate_mbps" doc:"What is copied of that, MB/s (1,000,000 bytes)"`
	Overhead     Duration `json:"overhead" doc:"What a round takes beside copying"`
	Shutdown     Duration `json:"shutdown,omitempty" doc:"What the guest is taken to need to shut down; half a minute, until it is known"`
}

// Title is what a warm copy is called in a list: its name, or that of its VM.
func (s SyncSpec) Title() string {
	if s.Name != "" {
		return s.Name
	}
	return s.VMPath
}

// Definition is the warm copy as far as a Spec can say it, for those who look at all jobs alike.
func (s SyncSpec) Definition() Spec {
	out := Spec{
		Name: s.Name, VMPath: s.VMPath, OutputPath: s.OutputPath, Format: s.TargetFormat(), Connection: s.Connection, Metadata: s.Metadata,
		Options: Options{
			ParallelDownloads: s.Parallel, Overwrite: s.Overwrite, Transport: s.Transport, Quiesce: s.Quiesce, LimitMBps: s.LimitMBps,
			Priority: s.Priority, NoVerify: s.NoVerify, Shutdown: s.Shutdown, ShutdownTimeout: s.ShutdownTimeout, ShutdownThen: s.ShutdownThen,
		},
	}
	if s.Shutdown {
		out.Options.PowerOn = PowerOnNever
	}
	return out
}

// TargetFormat is the format of the disks.
func (s SyncSpec) TargetFormat() string {
	if s.Format == "" {
		return "qcow2"
	}
	return s.Format
}

// Pace is how far apart rounds begin.
func (s SyncSpec) Pace() time.Duration { return s.Interval.Or(DefaultSyncInterval) }

// Validate lists every fault of s that can be seen without asking anybody; none for a good one.
func (s SyncSpec) Validate(c Caps) []FieldError {
	var v faults
	c.Formats = slices.DeleteFunc(SyncFormats(), func(f string) bool { return !slices.Contains(c.Formats, f) })
	d := s.Definition()
	d.Options.PowerOn = ""
	for _, f := range d.Validate(c) {
		f.Field = strings.TrimPrefix(f.Field, "options.")
		if f.Field == "parallel_downloads" {
			f.Field = "parallel"
		}
		v = append(v, f)
	}
	switch i := time.Duration(s.Interval); {
	case i < 0:
		v.add("interval", "must not be negative")
	case i != 0 && i < MinSyncInterval:
		v.add("interval", "must be at least a second")
	case i > maxSyncInterval:
		v.add("interval", "must not be more than 30 days")
	}
	v.within("max_rounds", s.MaxRounds, 0, maxRounds)
	if s.ThresholdBytes < 0 {
		v.add("threshold_bytes", "must not be negative")
	}
	if s.MaxDowntime < 0 {
		v.add("max_downtime", "must not be negative")
	}
	switch s.Cutover {
	case "", CutoverManual:
	case CutoverAuto:
		if s.MaxRounds == 0 && s.ThresholdBytes == 0 && s.MaxDowntime == 0 {
			v.add("cutover", "cannot be auto unless max_rounds, threshold_bytes or max_downtime says when")
		}
	default:
		v.add("cutover", `must be "auto" or "manual"`)
	}
	return v
}

package job

import (
	"time"

	"hypersdk/providers"
)

// Action is what is done to a VM.
type Action string

const (
	PowerOn        Action = "poweron"
	PowerOff       Action = "poweroff"
	ShutDown       Action = "shutdown"
	RemoveCDROM    Action = "remove-cdrom"
	TakeSnapshot   Action = "create-snapshot"
	DeleteSnapshot Action = "delete-snapshot"
	Clone          Action = "clone"
	Template       Action = "template"
	EnableCBT      Action = "enable-cbt"
	DisableCBT     Action = "disable-cbt"
	ReportCBT      Action = "report-cbt"
	Analyze        Action = "analyze"
)

// Then is what follows where a guest does not shut down.
type Then string

const (
	ThenFail     Then = "fail"
	ThenPowerOff Then = "poweroff"
)

const (
	// DefaultShutdownTimeout is what a guest has to shut down where nothing was said.
	DefaultShutdownTimeout = 5 * time.Minute
	// MaxShutdownTimeout is the longest time that it can be given.
	MaxShutdownTimeout = 24 * time.Hour
)

// Operation is one thing done to one VM. Like a Spec it carries names only.
type Operation struct {
	Action     Action           `json:"action"`
	VMPath     string           `json:"vm_path"`
	Connection string           `json:"connection,omitempty"`
	Timeout    Duration         `json:"timeout,omitempty"` // of ShutDown; 0: DefaultShutdownTimeout
	Then       Then             `json:"then,omitempty"`    // of ShutDown; "": ThenFail
	Snapshot   *SnapshotRequest `json:"snapshot,omitempty"`
	Clone      *CloneRequest    `json:"clone,omitempty"`
	Template   bool             `json:"template,omitempty"` // of Template: whether it is to be one
	Analyze    *AnalyzeRequest  `json:"analyze,omitempty"`
}

// SnapshotRequest says which snapshot is to be taken, or, by its id or name, deleted.
type SnapshotRequest struct {
	Name        string `json:"name" doc:"Name of the snapshot" example:"before-upgrade" minLength:"1" maxLength:"80"`
	Description string `json:"description,omitempty" maxLength:"1000"`
	Memory      bool   `json:"memory,omitempty" doc:"With the memory of the guest"`
	Quiesce     bool   `json:"quiesce,omitempty" doc:"With the guest's file systems at rest, where its tools can; not together with memory"`
}

// CloneRequest says what a clone is to be. What is absent is as with the original.
type CloneRequest struct {
	Name         string `json:"name" doc:"Name of the clone" example:"web-02" minLength:"1" maxLength:"80"`
	Folder       string `json:"folder,omitempty" doc:"Inventory path of its folder" example:"/datacenter/vm/test" maxLength:"2048"`
	Datastore    string `json:"datastore,omitempty" doc:"Name or inventory path" maxLength:"2048"`
	ResourcePool string `json:"resource_pool,omitempty" doc:"Name or inventory path" maxLength:"2048"`
	Host         string `json:"host,omitempty" doc:"Name or inventory path" maxLength:"2048"`
	Template     bool   `json:"template,omitempty" doc:"Make it a template"`
	PowerOn      bool   `json:"power_on,omitempty" doc:"Start it"`
}

// Operated is what came of an operation.
type Operated struct {
	VM       providers.VM        `json:"vm"`       // as a listing tells it, before
	Power    providers.Power     `json:"power"`    // after
	Message  string              `json:"message"`  // one sentence for people
	Forced   bool                `json:"forced"`   // the guest did not shut down, and the power was taken away
	Drives   []providers.CDROM   `json:"drives"`   // that were removed
	Snapshot *providers.Snapshot `json:"snapshot"` // that was taken
	Clone    *providers.VM       `json:"clone"`    // that was made
	// Tracking is how far the changes of the disks are tracked, of an action on that.
	Tracking *providers.TrackingStatus `json:"tracking,omitempty"`
	Analysis *Analysis                 `json:"analysis,omitempty"` // of Analyze
}

// OperationStatus is what is kept of an operation in the memo of its workflow. It ends with Result or
// with Error.
type OperationStatus struct {
	Status State     `json:"status"`
	Result *Operated `json:"result,omitempty"`
	Error  string    `json:"error,omitempty"`
	Reason string    `json:"reason,omitempty"` // a providers.Reason, where Error is set
}

package providers

import (
	"context"
	"encoding/json"
)

// PowerManager switches VMs on and off. What is as it should be already is fine, so that every method
// may be repeated.
type PowerManager interface {
	// Power is whether the VM runs.
	Power(ctx context.Context, vm VMID) (Power, error)
	// PowerOn starts the VM, or lets one that is suspended go on.
	PowerOn(ctx context.Context, vm VMID) error
	// PowerOff takes the power away, as pulling the plug would.
	PowerOff(ctx context.Context, vm VMID) error
	// ShutDown asks the guest to shut down and does not wait for it: Power tells when it has. It fails
	// with Precondition where there is nobody in the guest to be asked.
	ShutDown(ctx context.Context, vm VMID) error
}

// Drive is a CD or DVD drive with all that it takes to put it back as it was.
type Drive struct {
	CDROM
	Form json.RawMessage `json:"form" doc:"What the platform needs to put the drive back"` // the provider's own; holds no secret
}

// DriveManager takes CD and DVD drives out of VMs and puts them back.
type DriveManager interface {
	// Drives describes the drives of a VM as they are.
	Drives(ctx context.Context, vm VMID) ([]Drive, error)
	// RemoveDrives takes drives that Drives described out of the VM. Where the platform cannot do that
	// to a VM that runs, they are emptied and disconnected. A drive that is not there is fine.
	RemoveDrives(ctx context.Context, vm VMID, drives []Drive) error
	// RestoreDrives puts drives back: in their places, with their media, connected as they were if the
	// VM runs. A drive that is there as it was, or in which somebody put something else since, is left
	// alone. It fails with Exists where another device has taken the place.
	RestoreDrives(ctx context.Context, vm VMID, drives []Drive) error
}

// CloneOptions say what a clone is to be. What is empty is as with the original.
type CloneOptions struct {
	Key          string // names the clone for ever, like that of a snapshot
	Name         string
	Folder       string // inventory path of a folder of VMs
	Datastore    string // name or inventory path, as what follows
	ResourcePool string
	Host         string
	Template     bool // make it a template
}

// Cloner copies VMs as a whole, and makes templates of them.
type Cloner interface {
	// Clone is idempotent in opt.Key. A VM of that name which it did not make is Exists.
	Clone(ctx context.Context, vm VMID, opt CloneOptions) (VM, error)
	// SetTemplate makes a template of a VM that is off, or a VM of a template.
	SetTemplate(ctx context.Context, vm VMID, on bool) error
}

package vspheretest

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Options say what a server is to be. The zero value is a small vCenter without VMs on a free port,
// over plain HTTP.
type Options struct {
	// Dir keeps everything: the datastores, the state of the VMs, the certificate. A server that is
	// started on the folder of an earlier one has its VMs, with the same ids, disks and snapshots.
	// Empty: a temporary folder that is removed at the end.
	Dir    string
	Listen string // "host:port"; a free port on 127.0.0.1 if empty
	TLS    bool   // with a certificate of its own, signed by itself

	Username, Password string // what [Server.Username] says if empty

	SessionTimeout time.Duration // a session that is idle for longer is gone; 0: never
	TaskDelay      time.Duration // every task, and every lease, waits so long before it does its work
	ChangedAreas   int           // that one answer about changed blocks lists; 2,000 if 0
	ChangedSpan    int64         // bytes of a disk that one answer about changed blocks tells of; all if 0
	LeaseTimeout   time.Duration // a lease that nobody reports progress of is void after that; 5 minutes if 0

	Datacenters []string    // {"DC0"} if empty
	Clusters    int         // in each datacenter; 1 if 0
	Hosts       int         // in each cluster; 3 if 0
	Datastores  []Datastore // one of type VMFS, "datastore1", if empty
	VMs         []VM

	Log *slog.Logger // nil: nothing is logged
}

// Datastore is a datastore of every datacenter, or of one.
type Datastore struct {
	Name       string
	Type       string // "VMFS", "NFS" or "vsan"; VMFS if empty
	Datacenter string // the only one that has it; all if empty
}

// VM is a virtual machine to be made. Only the name is needed.
type VM struct {
	Name       string `json:"name"`                 // any Unicode; slashes and so on appear in the API as "%2f", as they do on a real vCenter
	Datacenter string `json:"datacenter,omitempty"` // the first if empty
	Folder     string `json:"folder,omitempty"`     // below the datacenter's VM folder: "web/north"; made where it is not there
	Datastore  string `json:"datastore,omitempty"`  // the first of the datacenter if empty
	Disks      []Disk `json:"disks,omitempty"`

	NumCPU     int      `json:"num_cpu,omitempty"`     // 2 if 0
	MemoryMB   int64    `json:"memory_mb,omitempty"`   // 2048 if 0
	GuestID    string   `json:"guest_id,omitempty"`    // "ubuntu64Guest" if empty
	GuestName  string   `json:"guest_name,omitempty"`  // "Ubuntu Linux (64-bit)" if empty
	Firmware   string   `json:"firmware,omitempty"`    // "bios" or "efi"; bios if empty
	Hardware   string   `json:"hardware,omitempty"`    // "vmx-19" if empty
	Annotation string   `json:"annotation,omitempty"`  //
	Hostname   string   `json:"hostname,omitempty"`    // with it the guest's tools run
	Addresses  []string `json:"addresses,omitempty"`   // of the guest
	ISO        string   `json:"iso,omitempty"`         // datastore path of the image in the CD drive; no drive if empty
	NICs       int      `json:"nics,omitempty"`        // 1 if 0; none if negative
	PoweredOff bool     `json:"powered_off,omitempty"` //
	Template   bool     `json:"template,omitempty"`    // implies PoweredOff

	ShutdownTime Duration `json:"shutdown_time,omitempty"` // that the guest takes to shut down
	Stubborn     bool     `json:"stubborn,omitempty"`      // the guest never shuts down
	LockedDrive  bool     `json:"locked_drive,omitempty"`  // the guest holds on to its CD
}

// Disk is a disk of a VM to be made.
type Disk struct {
	Size       int64   `json:"size"`                 // bytes; that of the content if 0
	Content    Content `json:"-"`                    // zeros if nil
	Thick      bool    `json:"thick,omitempty"`      // says the API; the file has holes in any case
	Controller string  `json:"controller,omitempty"` // "pvscsi", "lsilogic", "lsilogic-sas", "buslogic", "sata", "nvme" or "ide"; pvscsi if empty
	Mode       string  `json:"mode,omitempty"`       // "persistent" if empty; "independent_persistent" has no part in snapshots
	Untracked  bool    `json:"untracked,omitempty"`  // its changes are not tracked, whatever is asked of the VM: ctkEnabled is FALSE
}

// withDefaults checks o and fills in what it leaves open.
func (o Options) withDefaults() (Options, error) {
	o.Listen = cmp.Or(o.Listen, "127.0.0.1:0")
	o.Username = cmp.Or(o.Username, "administrator@vsphere.local")
	o.Password = cmp.Or(o.Password, "hypersim")
	o.LeaseTimeout = cmp.Or(o.LeaseTimeout, 5*time.Minute)
	o.ChangedAreas = cmp.Or(o.ChangedAreas, maxAreas)
	o.Clusters, o.Hosts = cmp.Or(o.Clusters, 1), cmp.Or(o.Hosts, 3)
	if len(o.Datacenters) == 0 {
		o.Datacenters = []string{"DC0"}
	}
	if len(o.Datastores) == 0 {
		o.Datastores = []Datastore{{Name: "datastore1"}}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clusters < 1 || o.Hosts < 1 {
		return o, errors.New("vspheretest: a datacenter needs a cluster and a cluster a host")
	}
	o.Datastores = slices.Clone(o.Datastores)
	for i := range o.Datastores {
		d := &o.Datastores[i]
		d.Type = cmp.Or(d.Type, typeVMFS)
		if !slices.Contains([]string{typeVMFS, typeNFS, typeVSAN}, d.Type) {
			return o, fmt.Errorf("vspheretest: datastore %q: unknown type %q, there are VMFS, NFS and vsan", d.Name, d.Type)
		}
		if d.Datacenter != "" && !slices.Contains(o.Datacenters, d.Datacenter) {
			return o, fmt.Errorf("vspheretest: datastore %q: there is no datacenter %q", d.Name, d.Datacenter)
		}
	}
	return o, nil
}

// withDefaults fills in what v leaves open.
func (v VM) withDefaults() VM {
	v.NumCPU, v.MemoryMB = cmp.Or(v.NumCPU, 2), cmp.Or(v.MemoryMB, 2048)
	v.GuestID = cmp.Or(v.GuestID, "ubuntu64Guest")
	v.GuestName = cmp.Or(v.GuestName, "Ubuntu Linux (64-bit)")
	v.Firmware = cmp.Or(v.Firmware, "bios")
	v.Hardware = cmp.Or(v.Hardware, "vmx-19")
	v.NICs = cmp.Or(v.NICs, 1)
	v.PoweredOff = v.PoweredOff || v.Template
	v.Folder = strings.Trim(v.Folder, "/")
	v.Disks = slices.Clone(v.Disks)
	for i := range v.Disks {
		v.Disks[i].Controller = cmp.Or(v.Disks[i].Controller, "pvscsi")
		v.Disks[i].Mode = cmp.Or(v.Disks[i].Mode, "persistent")
	}
	return v
}

// GeneratedVMs is n VMs in ten folders, one thin disk of 16 GiB without content each.
func GeneratedVMs(n int) []VM {
	out := make([]VM, n)
	for i := range out {
		out[i] = VM{
			Name:       fmt.Sprintf("vm-%05d", i),
			Folder:     fmt.Sprintf("team-%d", i%10),
			Disks:      []Disk{{Size: 16 << 30}},
			PoweredOff: i%4 == 3,
		}
	}
	return out
}

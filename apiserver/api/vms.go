package api

import (
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Credentials are a vCenter or ESXi host and a login. They are used, or stored encrypted until their
// job has ended, and never answered.
type Credentials struct {
	Server     string `json:"server" doc:"Host name, or URL of the SDK" example:"vcenter.example.org" maxLength:"2048"`
	Username   string `json:"username" example:"backup@vsphere.local" maxLength:"2048"`
	Password   string `json:"password" format:"password" writeOnly:"true" maxLength:"2048"`
	Insecure   bool   `json:"insecure,omitempty" doc:"Trust any certificate"`
	Thumbprint string `json:"thumbprint,omitempty" doc:"SHA-256 or SHA-1 of the only certificate to trust" maxLength:"200"`
}

// VMs is an inventory.
type VMs struct {
	VMs       []providers.VM `json:"vms" doc:"Ordered by path"`
	Total     int            `json:"total"`
	Timestamp job.Time       `json:"timestamp"`
}

// VMInfoRequest asks for one VM.
type VMInfoRequest struct {
	VMPath     string       `json:"vm_path" doc:"Inventory path, id or unambiguous name" example:"/datacenter/vm/web-01" minLength:"1" maxLength:"2048"`
	Connection string       `json:"connection,omitempty" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	VCenter    *Credentials `json:"vcenter,omitempty" doc:"Ask here instead"`
	Timeout    float64      `json:"timeout,omitempty" doc:"Seconds to wait for the platform; 0: 120" minimum:"0" maximum:"120"`
}

// VMListRequest names the platform to list. Without a server it is a configured one.
type VMListRequest struct {
	Server     string `json:"server,omitempty" doc:"Host name, or URL of the SDK; a configured connection where absent" example:"vcenter.example.org" maxLength:"2048"`
	Username   string `json:"username,omitempty" example:"backup@vsphere.local" maxLength:"2048"`
	Password   string `json:"password,omitempty" format:"password" writeOnly:"true" maxLength:"2048"`
	Insecure   bool   `json:"insecure,omitempty" doc:"Trust any certificate"`
	Thumbprint string `json:"thumbprint,omitempty" doc:"SHA-256 or SHA-1 of the only certificate to trust" maxLength:"200"`
	Connection string `json:"connection,omitempty" doc:"Name of a configured connection" maxLength:"2048"`
}

// String keeps the password out of sight.
func (c Credentials) String() string { return "credentials for " + c.Server }

// GoString is String.
func (c Credentials) GoString() string { return c.String() }

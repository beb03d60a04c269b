package apiserver

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// vcenterKind is the kind of platform that credentials in a request are for.
const vcenterKind = "vsphere"

// missing lists what is not there of credentials.
func missing(c *api.Credentials, prefix string) []job.FieldError {
	var faults []job.FieldError
	for _, f := range []struct{ name, value string }{{"server", c.Server}, {"username", c.Username}, {"password", c.Password}} {
		if strings.TrimSpace(f.value) == "" {
			faults = append(faults, job.FieldError{Field: prefix + f.name, Message: "is required"})
		}
	}
	return faults
}

// credentials are those of a request, nil where it brings none.
func credentials(r api.VMListRequest) *api.Credentials {
	if r.Server == "" && r.Username == "" && r.Password == "" {
		return nil
	}
	return &api.Credentials{Server: r.Server, Username: r.Username, Password: r.Password, Insecure: r.Insecure, Thumbprint: r.Thumbprint}
}

type vmsInput struct {
	Connection string `query:"connection" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	Name       string `query:"name" doc:"Part of the name, without regard to case" maxLength:"200"`
	Folder     string `query:"folder" doc:"Inventory path that the VMs lie below" maxLength:"2048"`
	Power      string `query:"power" doc:"Only VMs in this state" enum:"poweredOn,poweredOff,suspended,unknown"`
}

func (s *Server) vmOperations(h huma.API) {
	faults := []int{http.StatusForbidden, http.StatusNotFound, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	huma.Register(h, operation(http.MethodGet, "/vms/list", "list-vms", "vms", "List VMs",
		"What a listing does not know is left out of a VM; /vms/info has all of it.", faults...),
		func(ctx context.Context, in *vmsInput) (*struct{ Body api.VMs }, error) {
			vms, err := s.vms(ctx, in.Connection, nil,
				providers.Filter{Name: in.Name, Folder: in.Folder, Power: providers.Power(in.Power)})
			return &struct{ Body api.VMs }{api.VMs{VMs: orEmpty(vms), Total: len(vms), Timestamp: job.Now()}}, fail(ctx, err)
		})
	bad := append([]int{http.StatusBadRequest}, faults...)
	huma.Register(h, operation(http.MethodPost, "/vms/list", "list-vms-of", "vms", "List the VMs of a vCenter",
		"The answer is the bare list. The credentials are used once and kept nowhere.", bad...),
		func(ctx context.Context, in *struct{ Body api.VMListRequest }) (*struct{ Body []providers.VM }, error) {
			vms, err := s.vms(ctx, in.Body.Connection, credentials(in.Body), providers.Filter{})
			return &struct{ Body []providers.VM }{orEmpty(vms)}, fail(ctx, err)
		})
	huma.Register(h, operation(http.MethodPost, "/vms/info", "vm-info", "vms", "A VM in full", "", bad...), s.vmInfo)
}

func (s *Server) vmInfo(ctx context.Context, in *struct{ Body api.VMInfoRequest }) (*struct{ Body providers.VM }, error) {
	patience := callTimeout
	if t := in.Body.Timeout; t > 0 {
		patience = min(patience, time.Duration(t*float64(time.Second)))
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var vm providers.VM
	err := s.inventory(ctx, in.Body.Connection, in.Body.VCenter, "vcenter.", func(inv providers.Inventory) (err error) {
		vm, err = inv.VM(ctx, in.Body.VMPath)
		return err
	})
	return &struct{ Body providers.VM }{vm}, fail(ctx, err)
}

func (s *Server) vms(ctx context.Context, connection string, c *api.Credentials, f providers.Filter) ([]providers.VM, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var vms []providers.VM
	err := s.inventory(ctx, connection, c, "", func(inv providers.Inventory) error {
		for vm, err := range inv.VMs(ctx, f) {
			if err != nil {
				return err
			}
			vms = append(vms, vm)
		}
		return nil
	})
	return vms, err
}

// inventory lends the inventory of a configured connection, or of one that is made for this and ended
// after it.
func (s *Server) inventory(ctx context.Context, connection string, c *api.Credentials, prefix string, use func(providers.Inventory) error) error {
	var faults []job.FieldError
	if c != nil {
		faults = missing(c, prefix)
	}
	faults = append(faults, checkConnection(connection, c != nil)...)
	if len(faults) > 0 {
		return invalid(http.StatusUnprocessableEntity, faults)
	}
	var p providers.Provider
	var err error
	if c == nil {
		p, err = s.deps.Connections.Open(ctx, connection)
	} else {
		var config json.RawMessage
		if config, err = json.Marshal(c); err == nil {
			p, err = s.deps.Connections.OpenOnce(ctx, vcenterKind, config)
		}
	}
	if err != nil {
		return err
	}
	inv, err := providers.As[providers.Inventory](p)
	if err == nil {
		err = use(inv)
	}
	if c != nil {
		if closed := p.Close(); err == nil && closed != nil { // the answer is whole: only the log hears of it
			note(ctx, closed)
		}
	}
	return err
}

// jobConnection begins the names under which the credentials of jobs are stored. Nobody else may use
// them.
const jobConnection = "job-"

func checkConnection(name string, credentials bool) []job.FieldError {
	switch {
	case name != "" && credentials:
		return []job.FieldError{{Field: "connection", Message: "must not be given together with credentials"}}
	case strings.HasPrefix(name, jobConnection):
		return []job.FieldError{{Field: "connection", Message: `must not begin with "` + jobConnection + `": such names hold the credentials of other jobs`}}
	}
	return nil
}

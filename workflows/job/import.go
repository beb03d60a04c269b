package job

import (
	"path"
	"strings"

	"hypersdk/providers"
)

// ImportSpec is what was asked for of a job that makes a VM of a package (OVF or OVA) which lies on a worker's
// host. It carries names only.
type ImportSpec struct {
	PackagePath  string            `json:"package_path" doc:"Archive (.ova), or descriptor (.ovf) with its files beside it, on the worker's host" example:"/exports/web-01/web-01.ova" minLength:"1" maxLength:"4000"`
	Name         string            `json:"name,omitempty" doc:"Name of the VM; the one in the package where absent" example:"web-01" maxLength:"80"`
	Connection   string            `json:"connection,omitempty" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	Folder       string            `json:"folder,omitempty" doc:"Inventory path, id or name of a folder of VMs; that of the datacenter where absent" example:"/DC0/vm/restored" maxLength:"2048"`
	Datastore    string            `json:"datastore,omitempty" doc:"Inventory path, id or name of a datastore; the only one where absent" example:"datastore1" maxLength:"2048"`
	ResourcePool string            `json:"resource_pool,omitempty" doc:"Inventory path, id or name of a resource pool, or of a cluster, whose own is meant; the only one where absent" maxLength:"2048"`
	Host         string            `json:"host,omitempty" doc:"Inventory path, id or name of the host that the VM is to be on" maxLength:"2048"`
	Networks     map[string]string `json:"networks,omitempty" doc:"Networks of the package, and the platform's network for each; one that is not named goes to the network of the same name, or to the only one" example:"{\"VM Network\":\"/DC0/network/office\"}"`
	Thick        bool              `json:"thick,omitempty" doc:"Allocate the whole disks"`
	LimitMBps    float64           `json:"limit_mbps,omitempty" doc:"Bandwidth limit in MB/s (1,000,000 bytes); 0: none" minimum:"0" maximum:"1000000"`
	Priority     int               `json:"priority,omitempty" doc:"Jobs with a higher number are admitted first" minimum:"0" maximum:"100"`
}

// maxNetworks is the most networks that an import maps.
const maxNetworks = 100

// Title is what an import is called in a list: the VM, or the package.
func (i ImportSpec) Title() string {
	if i.Name != "" {
		return i.Name
	}
	base := path.Base(i.PackagePath)
	return strings.TrimSuffix(base, path.Ext(base))
}

// Target is where the VM is to be made, under a name that is used where none was asked for.
func (i ImportSpec) Target(name string) providers.ImportTarget {
	if i.Name != "" {
		name = i.Name
	}
	return providers.ImportTarget{
		Name: name, Folder: i.Folder, Pool: i.ResourcePool, Host: i.Host, Datastore: i.Datastore, Networks: i.Networks, Thick: i.Thick,
	}
}

// Definition is the import as far as a Spec can say it, for those who look at all jobs alike.
func (i ImportSpec) Definition() Spec {
	s := Spec{Name: i.Title(), VMPath: i.Title(), Connection: i.Connection, Options: Options{LimitMBps: i.LimitMBps, Priority: i.Priority}}
	if i.Folder != "" {
		s.VMPath = strings.TrimRight(i.Folder, "/") + "/" + i.Title()
	}
	return s
}

// Validate lists every fault of i that can be seen without asking anybody; none for a good one.
func (i ImportSpec) Validate() []FieldError {
	var v faults
	v.folder("package_path", i.PackagePath)
	if ext := strings.ToLower(path.Ext(i.PackagePath)); len(v) == 0 && ext != ".ova" && ext != ".ovf" {
		v.add("package_path", "must end in .ova or .ovf")
	}
	for field, text := range map[string]string{
		"connection": i.Connection, "folder": i.Folder, "datastore": i.Datastore, "resource_pool": i.ResourcePool, "host": i.Host,
	} {
		v.text(field, text, maxRef)
	}
	v.text("name", i.Name, 80)
	if len(i.Networks) > maxNetworks {
		v.add("networks", "must not be more than %d", maxNetworks)
	}
	for from, to := range i.Networks {
		v.text("networks", from, maxRef)
		v.text("networks", to, maxRef)
		if strings.TrimSpace(from) == "" || strings.TrimSpace(to) == "" {
			v.add("networks", "must name a network on both sides")
		}
	}
	v.within("priority", i.Priority, 0, 100)
	if e := CheckLimit(i.LimitMBps); e != "" {
		v.add("limit_mbps", "%s", e)
	}
	return v
}

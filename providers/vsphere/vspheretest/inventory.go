package vspheretest

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// Types of datastores, as the API spells them.
const (
	typeVMFS = "VMFS"
	typeNFS  = "NFS"
	typeVSAN = "vsan"
)

// vmNetwork is the network that every simulated datacenter has.
const vmNetwork = "VM Network"

type datacenter struct {
	name       string
	network    types.ManagedObjectReference // of the name [vmNetwork]
	vmFolder   types.ManagedObjectReference
	folders    map[string]types.ManagedObjectReference // by path below vmFolder
	clusters   []cluster
	datastores []*datastore
	vms        int // made so far, to spread them over clusters and hosts
}

type cluster struct {
	mold  *mold
	pool  types.ManagedObjectReference
	hosts []types.ManagedObjectReference
}

type datastore struct {
	name, kind string
	dir        string
	ref        types.ManagedObjectReference
}

func (s *Server) buildInventory() error {
	for _, name := range s.opt.Datacenters {
		dc, err := s.buildDatacenter(name)
		if err != nil {
			return fmt.Errorf("datacenter %q: %w", name, err)
		}
		s.datacenters = append(s.datacenters, dc)
	}
	return nil
}

func (s *Server) buildDatacenter(name string) (*datacenter, error) {
	res, err := methods.CreateDatacenter(s.ctx, s.svc, &types.CreateDatacenter{This: vpx.RootFolder.Self, Name: name})
	if err != nil {
		return nil, err
	}
	obj := s.reg.Get(res.Returnval).(*simulator.Datacenter)
	dc := &datacenter{name: name, vmFolder: obj.VmFolder, folders: map[string]types.ManagedObjectReference{}}
	dc.network = s.reg.FindByName(vmNetwork, obj.Network).Reference()
	for i := range s.opt.Clusters {
		c, err := s.buildCluster(obj.HostFolder, fmt.Sprintf("%s_C%d", name, i))
		if err != nil {
			return nil, err
		}
		dc.clusters = append(dc.clusters, c)
	}
	for _, d := range s.opt.Datastores {
		if d.Datacenter != "" && d.Datacenter != name {
			continue
		}
		ds, err := s.buildDatastore(dc, d)
		if err != nil {
			return nil, fmt.Errorf("datastore %q: %w", d.Name, err)
		}
		dc.datastores = append(dc.datastores, ds)
	}
	if len(dc.datastores) == 0 {
		return nil, errors.New("it has no datastore")
	}
	for i := range dc.clusters {
		if dc.clusters[i].mold, err = s.newMold(dc, dc.clusters[i], i); err != nil {
			return nil, err
		}
	}
	for _, ds := range dc.datastores { // only now: the simulator is particular about files on vSAN
		ctx, obj := s.sim(), s.reg.Get(ds.ref).(*simulator.Datastore)
		ctx.WithLock(obj, func() { setType(obj, ds.kind) })
	}
	return dc, nil
}

func (s *Server) buildCluster(folder types.ManagedObjectReference, name string) (cluster, error) {
	var c cluster
	res, err := methods.CreateClusterEx(s.ctx, s.svc, &types.CreateClusterEx{This: folder, Name: name})
	if err != nil {
		return c, err
	}
	c.pool = *s.reg.Get(res.Returnval).(*simulator.ClusterComputeResource).ResourcePool
	for i := range s.opt.Hosts {
		add, err := methods.AddHost_Task(s.ctx, s.svc, &types.AddHost_Task{
			This: res.Returnval, AsConnected: true, Spec: types.HostConnectSpec{HostName: fmt.Sprintf("%s_H%d", name, i)},
		})
		if err != nil {
			return c, err
		}
		info, err := s.observer.await(s.ctx, add.Returnval)
		if err != nil {
			return c, err
		}
		c.hosts = append(c.hosts, info.Result.(types.ManagedObjectReference))
	}
	return c, nil
}

func (s *Server) buildDatastore(dc *datacenter, d Datastore) (*datastore, error) {
	ds := &datastore{name: d.Name, kind: d.Type, dir: filepath.Join(s.dir, "datastores", fileName(dc.name), fileName(d.Name))}
	if err := os.MkdirAll(ds.dir, 0o755); err != nil {
		return nil, err
	}
	for _, c := range dc.clusters {
		for _, host := range c.hosts {
			system := s.reg.Get(host).(*simulator.HostSystem).ConfigManager.DatastoreSystem
			res, err := methods.CreateLocalDatastore(s.ctx, s.svc, &types.CreateLocalDatastore{This: *system, Name: d.Name, Path: ds.dir})
			if err != nil {
				return nil, err
			}
			if ds.ref.Value == "" { // the first host makes it, the others mount it
				ds.ref = res.Returnval
			}
		}
	}
	return ds, nil
}

// setType makes a simulated local folder say that it is a VMFS, NFS or vSAN datastore.
func setType(ds *simulator.Datastore, kind string) {
	ds.Summary.Type = kind
	info := *ds.Info.GetDatastoreInfo()
	volume := types.HostFileSystemVolume{Type: kind, Name: ds.Name, Capacity: ds.Summary.Capacity}
	switch kind {
	case typeVMFS:
		ds.Info = &types.VmfsDatastoreInfo{DatastoreInfo: info, Vmfs: &types.HostVmfsVolume{
			HostFileSystemVolume: volume, BlockSizeMb: 1, MajorVersion: 6, Version: "6.82", Uuid: "5f3a0b1c-" + fmt.Sprintf("%08x", len(ds.Name)),
		}}
	case typeNFS:
		ds.Info = &types.NasDatastoreInfo{DatastoreInfo: info, Nas: &types.HostNasVolume{
			HostFileSystemVolume: volume, RemoteHost: "nas.example.com", RemotePath: "/export/" + ds.Name,
		}}
	case typeVSAN:
		ds.Info = &types.VsanDatastoreInfo{DatastoreInfo: info, MembershipUuid: "52d1ad2e-1f6c-4f44-9a0e-f1a2f8f0a001"}
	}
}

// datacenter finds a datacenter by name; the first one for "".
func (s *Server) datacenter(name string) *datacenter {
	for _, dc := range s.datacenters {
		if dc.name == cmp.Or(name, s.datacenters[0].name) {
			return dc
		}
	}
	return nil
}

// datastore finds a datastore by name; the first one for "".
func (dc *datacenter) datastore(name string) *datastore {
	for _, ds := range dc.datastores {
		if name == "" || ds.name == name {
			return ds
		}
	}
	return nil
}

// place is where the next VM goes.
func (dc *datacenter) place() (c cluster, host types.ManagedObjectReference) {
	c = dc.clusters[dc.vms%len(dc.clusters)]
	host = c.hosts[dc.vms/len(dc.clusters)%len(c.hosts)]
	dc.vms++
	return c, host
}

// folder is the VM folder with a path below the datacenter's own, made where it is not there.
func (s *Server) folder(dc *datacenter, path string) (types.ManagedObjectReference, error) {
	if path == "" {
		return dc.vmFolder, nil
	}
	if ref, ok := dc.folders[path]; ok {
		return ref, nil
	}
	above, name := "", path
	if i := strings.LastIndex(path, "/"); i >= 0 {
		above, name = path[:i], path[i+1:]
	}
	parent, err := s.folder(dc, above)
	if err != nil {
		return parent, err
	}
	res, err := methods.CreateFolder(s.ctx, s.svc, &types.CreateFolder{This: parent, Name: name})
	if err != nil {
		return parent, fmt.Errorf("folder %q: %w", path, err)
	}
	dc.folders[path] = res.Returnval
	return res.Returnval, nil
}

// fileName makes a name of the inventory one that a datastore, and the file systems below it, can
// hold with suffixes such as "-000001-delta.vmdk".
func fileName(name string) string {
	const longest = 180 // bytes
	clean := strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, name)
	if len(clean) > longest {
		clean = clean[:lastRune(clean, longest)]
	}
	if clean = strings.TrimSpace(clean); clean == "" || clean == "." || clean == ".." {
		clean = "_" + clean
	}
	return clean
}

// lastRune is the largest offset in s up to n at which a rune starts.
func lastRune(s string, n int) int {
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return n
}

// now is the time as the API gives it.
func now() time.Time { return time.Now().UTC() }

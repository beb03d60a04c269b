package vsphere

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// placed are the types of the infrastructure and what is asked of each, beside its name and parent.
var placed = []struct {
	kind  providers.Kind
	typ   string
	props []string
}{
	{providers.KindDatacenter, "Datacenter", nil},
	{providers.KindCluster, "ComputeResource", []string{"summary", "resourcePool"}},
	{providers.KindCluster, "ClusterComputeResource", []string{"summary", "resourcePool", "configuration.drsConfig.enabled", "configuration.dasConfig.enabled"}},
	{providers.KindHost, "HostSystem", []string{
		"summary.hardware", "summary.quickStats", "summary.config.product.fullName", "runtime.connectionState", "runtime.inMaintenanceMode",
	}},
	{providers.KindDatastore, "Datastore", []string{"summary"}},
	{providers.KindNetwork, "Network", []string{"summary"}},
	{providers.KindNetwork, "OpaqueNetwork", []string{"summary"}},
	{providers.KindNetwork, "DistributedVirtualPortgroup", []string{"summary", "config.uplink"}},
	{providers.KindPool, "ResourcePool", []string{"owner", "config.cpuAllocation.limit", "config.memoryAllocation.limit", "runtime.cpu.overallUsage", "runtime.memory.overallUsage"}},
	{providers.KindFolder, "Folder", []string{"childType"}},
}

// ways are the types that others lie in, for the sake of their paths.
var ways = []string{"Folder", "StoragePod", "Datacenter", "ComputeResource", "ClusterComputeResource", "ResourcePool", "VirtualApp"}

// Survey lists the infrastructure in one query, page by page.
func (p *Provider) Survey(ctx context.Context, kinds ...providers.Kind) (providers.Infrastructure, error) {
	s, err := p.survey(ctx, kinds...)
	if err != nil {
		return providers.Infrastructure{}, fail("list the infrastructure", "", err)
	}
	return s.Infrastructure, nil
}

// survey is the infrastructure, with the paths of all that was met.
type survey struct {
	providers.Infrastructure
	tree  tree
	roots map[string]string // id of the root pool by id of its cluster or host
}

func (p *Provider) survey(ctx context.Context, kinds ...providers.Kind) (*survey, error) {
	props := map[string][]string{}
	for _, typ := range ways {
		props[typ] = []string{"name", "parent"}
	}
	for _, k := range placed {
		if len(kinds) == 0 || slices.Contains(kinds, k.kind) {
			props[k.typ] = append([]string{"name", "parent"}, k.props...)
		}
	}
	objects, err := p.surely(ctx, specified(props))
	if err != nil {
		return nil, err
	}
	s := &survey{tree: tree{}, roots: map[string]string{}}
	entities := make([]any, 0, len(objects))
	for _, o := range objects {
		o.MissingSet = nil // what may not be seen of one does not hide the others
		e, err := decode(o)
		if err != nil {
			return nil, err
		}
		entities = append(entities, e)
		s.place(e)
	}
	for _, e := range entities {
		s.add(e, func(k providers.Kind) bool { return len(kinds) == 0 || slices.Contains(kinds, k) })
	}
	s.sort()
	return s, nil
}

// specified is what is asked of objects of some types.
func specified(props map[string][]string) []types.PropertySpec {
	var specs []types.PropertySpec
	for typ, paths := range props {
		specs = append(specs, types.PropertySpec{Type: typ, PathSet: paths})
	}
	// The most particular type first: a property spec of a type counts for what is derived from it.
	slices.SortFunc(specs, func(a, b types.PropertySpec) int {
		return cmp.Or(len(b.PathSet)-len(a.PathSet), strings.Compare(a.Type, b.Type))
	})
	return specs
}

// place notes what an entity lies in.
func (s *survey) place(entity any) {
	switch e := entity.(type) {
	case mo.StoragePod:
		s.tree.put(e.ManagedEntity, nil)
	case mo.ComputeResource:
		s.tree.put(e.ManagedEntity, nil)
	case mo.ClusterComputeResource:
		s.tree.put(e.ManagedEntity, nil)
	case mo.HostSystem:
		s.tree.put(e.ManagedEntity, nil)
	case mo.Datastore:
		s.tree.put(e.ManagedEntity, nil)
	case mo.Network:
		s.tree.put(entityOf(e), nil)
	case mo.OpaqueNetwork:
		s.tree.put(entityOf(e.Network), nil)
	case mo.DistributedVirtualPortgroup:
		s.tree.put(entityOf(e.Network), nil)
	case mo.ResourcePool:
		s.tree.put(e.ManagedEntity, nil)
	default:
		s.tree.add(e)
	}
}

// at says where an entity is.
func (s *survey) at(e mo.ManagedEntity) providers.Place {
	at := providers.Place{ID: e.Self.Value, Name: unescape(e.Name), Path: s.tree.path(e.Self)}
	if at.Name == "" {
		at.Name = at.ID
	}
	if dc := s.tree.above(e.Self, "Datacenter"); dc != nil && *dc != e.Self {
		at.Datacenter = s.tree.path(*dc)
	}
	return at
}

// above is the nearest thing of a type that ref is or lies in, nil where there is none.
func (t tree) above(ref types.ManagedObjectReference, typ ...string) *types.ManagedObjectReference {
	for range maxDepth {
		if slices.Contains(typ, ref.Type) {
			return &ref
		}
		n, ok := t[ref]
		if !ok || n.parent == nil {
			return nil
		}
		ref = *n.parent
	}
	return nil
}

func (s *survey) add(entity any, want func(providers.Kind) bool) {
	switch e := entity.(type) {
	case mo.Datacenter:
		if want(providers.KindDatacenter) {
			s.Datacenters = append(s.Datacenters, providers.Datacenter{Place: s.at(e.ManagedEntity)})
		}
	case mo.ComputeResource:
		s.addCluster(e, nil, want)
	case mo.ClusterComputeResource:
		s.addCluster(e.ComputeResource, &e.Configuration, want)
	case mo.HostSystem:
		s.Hosts = append(s.Hosts, s.host(e))
	case mo.Datastore:
		sum := e.Summary
		s.Datastores = append(s.Datastores, providers.Datastore{
			Place: s.at(e.ManagedEntity), Type: sum.Type, Capacity: sum.Capacity, Free: sum.FreeSpace, Accessible: sum.Accessible,
			Maintenance: sum.MaintenanceMode != "" && sum.MaintenanceMode != string(types.DatastoreSummaryMaintenanceModeStateNormal),
			Shared:      sum.MultipleHostAccess != nil && *sum.MultipleHostAccess,
		})
	case mo.Network:
		s.addNetwork(e, "standard")
	case mo.OpaqueNetwork:
		s.addNetwork(e.Network, "opaque")
	case mo.DistributedVirtualPortgroup:
		if e.Config.Uplink == nil || !*e.Config.Uplink { // those are for hosts, not for VMs
			s.addNetwork(e.Network, "distributed")
		}
	case mo.ResourcePool:
		if want(providers.KindPool) {
			s.Pools = append(s.Pools, s.pool(e))
		}
	case mo.Folder:
		if want(providers.KindFolder) && e.Parent != nil { // not the root, which has no path
			s.Folders = append(s.Folders, providers.Folder{Place: s.at(e.ManagedEntity), Holds: holds(e.ChildType)})
		}
	}
}

func (s *survey) addCluster(e mo.ComputeResource, c *types.ClusterConfigInfo, want func(providers.Kind) bool) {
	if e.ResourcePool != nil {
		s.roots[e.Self.Value] = e.ResourcePool.Value
	}
	if !want(providers.KindCluster) {
		return
	}
	out := providers.Cluster{Place: s.at(e.ManagedEntity), Alone: c == nil}
	if sum := e.Summary; sum != nil {
		b := sum.GetComputeResourceSummary()
		out.Hosts, out.CPUCores, out.CPUMHz, out.MemoryBytes = int(b.NumHosts), int(b.NumCpuCores), int64(b.TotalCpu), b.TotalMemory
	}
	if c != nil {
		out.Balanced = c.DrsConfig.Enabled != nil && *c.DrsConfig.Enabled
		out.Restarts = c.DasConfig.Enabled != nil && *c.DasConfig.Enabled
	}
	s.Clusters = append(s.Clusters, out)
}

func (s *survey) host(e mo.HostSystem) providers.Host {
	out := providers.Host{
		Place: s.at(e.ManagedEntity), Connection: string(e.Runtime.ConnectionState), Maintenance: e.Runtime.InMaintenanceMode,
		CPUUsedMHz: int64(e.Summary.QuickStats.OverallCpuUsage), MemoryUsed: int64(e.Summary.QuickStats.OverallMemoryUsage) << 20,
		Seconds: int64(e.Summary.QuickStats.Uptime),
	}
	if product := e.Summary.Config.Product; product != nil {
		out.Product = product.FullName
	}
	if c := s.tree.above(e.Self, "ClusterComputeResource"); c != nil {
		out.Cluster = s.tree.path(*c)
	}
	if h := e.Summary.Hardware; h != nil {
		out.Model, out.CPUModel, out.CPUCores, out.MemoryBytes = h.Model, h.CpuModel, int(h.NumCpuCores), h.MemorySize
		out.CPUMHz = int64(h.CpuMhz) * int64(h.NumCpuCores)
	}
	return out
}

// entityOf is a network as an entity: it has a name of its own, which hides that of the entity.
func entityOf(n mo.Network) mo.ManagedEntity {
	e := n.ManagedEntity
	e.Name = n.Name
	return e
}

func (s *survey) addNetwork(e mo.Network, typ string) {
	out := providers.Network{Place: s.at(entityOf(e)), Type: typ}
	if e.Summary != nil {
		out.Accessible = e.Summary.GetNetworkSummary().Accessible
	}
	s.Networks = append(s.Networks, out)
}

func (s *survey) pool(e mo.ResourcePool) providers.Pool {
	out := providers.Pool{
		Place: s.at(e.ManagedEntity), CPUUsedMHz: e.Runtime.Cpu.OverallUsage, MemoryUsed: e.Runtime.Memory.OverallUsage,
		CPULimitMHz: -1, MemoryLimit: -1,
	}
	if _, ok := s.tree[e.Owner]; ok {
		out.Cluster = s.tree.path(e.Owner)
	}
	if l := e.Config.CpuAllocation.Limit; l != nil {
		out.CPULimitMHz = *l
	}
	if l := e.Config.MemoryAllocation.Limit; l != nil && *l >= 0 {
		out.MemoryLimit = *l << 20
	}
	return out
}

// holds says in our words what a folder is for.
func holds(childType []string) string {
	for typ, word := range map[string]string{
		"VirtualMachine": "vms", "ComputeResource": "hosts", "Datastore": "datastores", "Network": "networks", "Datacenter": "datacenters",
	} {
		if slices.Contains(childType, typ) {
			return word
		}
	}
	return "any"
}

func (s *survey) sort() {
	byPath(s.Datacenters, func(d providers.Datacenter) providers.Place { return d.Place })
	byPath(s.Clusters, func(c providers.Cluster) providers.Place { return c.Place })
	byPath(s.Hosts, func(h providers.Host) providers.Place { return h.Place })
	byPath(s.Datastores, func(d providers.Datastore) providers.Place { return d.Place })
	byPath(s.Networks, func(n providers.Network) providers.Place { return n.Place })
	byPath(s.Pools, func(p providers.Pool) providers.Place { return p.Place })
	byPath(s.Folders, func(f providers.Folder) providers.Place { return f.Place })
}

func byPath[T any](list []T, at func(T) providers.Place) {
	slices.SortFunc(list, func(a, b T) int {
		return cmp.Or(strings.Compare(at(a).Path, at(b).Path), strings.Compare(at(a).ID, at(b).ID))
	})
}

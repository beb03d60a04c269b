package vsphere

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats/ovf"
	"hypersdk/providers"
)

// choose finds the one thing that ref names, by its id, its path or its name; for "" the only one there is.
func choose[T any](what, ref string, list []T, at func(T) providers.Place) (T, error) {
	var none T
	no := func(r providers.Reason, format string, a ...any) error {
		return &providers.Error{Op: "vsphere: find " + what, Object: ref, Reason: r, Msg: fmt.Sprintf(format, a...)}
	}
	path := "/" + strings.Trim(ref, "/")
	ways := []func(providers.Place) bool{
		func(p providers.Place) bool { return p.ID == ref },
		func(p providers.Place) bool { return p.Path == path || unescape(p.Path) == unescape(path) },
		func(p providers.Place) bool { return p.Name == ref },
	}
	if ref == "" {
		ways = []func(providers.Place) bool{func(providers.Place) bool { return true }}
	}
	for _, way := range ways {
		var found []T
		for _, one := range list {
			if way(at(one)) {
				found = append(found, one)
			}
		}
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1 && ref == "":
			return none, no(providers.Invalid, "there are %d of them; say which: %s", len(found), pathsOf(found, at))
		case len(found) > 1:
			return none, no(providers.Invalid, "%d of them answer to this; say which: %s", len(found), pathsOf(found, at))
		}
	}
	if len(list) == 0 {
		return none, no(providers.NotFound, "there is none")
	}
	return none, no(providers.NotFound, "there is no such %s; there are: %s", what, pathsOf(list, at))
}

// maxTold is how many of many are named.
const maxTold = 10

func pathsOf[T any](list []T, at func(T) providers.Place) string {
	var out []string
	for _, one := range list[:min(len(list), maxTold)] {
		out = append(out, at(one).Path)
	}
	if n := len(list) - maxTold; n > 0 {
		out = append(out, fmt.Sprintf("and %d more", n))
	}
	return strings.Join(out, ", ")
}

// destination is where a package goes.
type destination struct {
	providers.ImportTarget // by inventory paths
	folder, pool           types.ManagedObjectReference
	host                   *types.ManagedObjectReference // nil: whichever the cluster likes
	datastore              types.ManagedObjectReference
	networks               []types.OvfNetworkMapping
	free                   int64 // bytes on the datastore
}

// resolver finds places, all of them in one datacenter.
type resolver struct {
	*survey
	dc  string // path of the datacenter; "": not decided yet
	err error  // the first
}

// within is choose among what lies in the datacenter that was decided on; what it finds decides. It finds
// nothing after an error.
func within[T any](r *resolver, what, ref string, list []T, at func(T) providers.Place) (one T) {
	if r.err != nil {
		return one
	}
	some := slices.DeleteFunc(slices.Clone(list), func(t T) bool { return r.dc != "" && at(t).Datacenter != r.dc })
	if one, r.err = choose(what, ref, some, at); r.err == nil && r.dc == "" {
		r.dc = at(one).Datacenter
	}
	return one
}

func (s *survey) resolve(to providers.ImportTarget, networks []ovf.Network) (destination, error) {
	r := &resolver{survey: s}
	if len(s.Datacenters) == 1 {
		r.dc = s.Datacenters[0].Path
	}
	d := destination{ImportTarget: to}
	// What was named comes first: it decides on the datacenter.
	vmFolders := slices.DeleteFunc(slices.Clone(s.Folders), func(f providers.Folder) bool { return f.Holds != "vms" })
	folder := func() {
		f := within(r, "folder", to.Folder, vmFolders, func(f providers.Folder) providers.Place { return f.Place })
		d.folder, d.Folder = types.ManagedObjectReference{Type: "Folder", Value: f.ID}, f.Path
	}
	if to.Folder != "" {
		folder()
	}
	r.compute(&d, to)
	store := within(r, "datastore", to.Datastore, r.stores(to.Datastore), func(d providers.Datastore) providers.Place { return d.Place })
	d.datastore, d.Datastore, d.free = types.ManagedObjectReference{Type: "Datastore", Value: store.ID}, store.Path, store.Free
	if to.Folder == "" {
		to.Folder = r.dc + "/vm"
		folder()
	}
	r.connect(&d, to, networks)
	return d, r.err
}

// stores are the datastores that come into question.
func (r *resolver) stores(ref string) []providers.Datastore {
	if ref != "" {
		return r.Datastores
	}
	return slices.DeleteFunc(slices.Clone(r.Datastores), func(d providers.Datastore) bool { return !d.Accessible || d.Maintenance })
}

// compute finds the resource pool and the host. A cluster that does not place VMs by itself gets a host
// named: the one with the most memory to spare.
func (r *resolver) compute(d *destination, to providers.ImportTarget) {
	var cluster providers.Place
	at := func(c providers.Cluster) providers.Place { return c.Place }
	if to.Pool != "" {
		p, err := choose("resource pool", to.Pool, r.Pools, func(p providers.Pool) providers.Place { return p.Place })
		if err != nil {
			c := within(r, "resource pool or cluster", to.Pool, r.Clusters, at)
			cluster, p.ID, p.Path = c.Place, r.roots[c.ID], c.Path
		} else {
			r.dc = p.Datacenter
			cluster = r.clusterAt(p.Cluster)
		}
		d.pool, d.Pool = types.ManagedObjectReference{Type: "ResourcePool", Value: p.ID}, p.Path
	}
	if to.Host != "" {
		h := within(r, "host", to.Host, r.Hosts, func(h providers.Host) providers.Place { return h.Place })
		d.host, d.Host = &types.ManagedObjectReference{Type: "HostSystem", Value: h.ID}, h.Path
		if parent := r.tree.above(*d.host, "ClusterComputeResource", "ComputeResource"); to.Pool == "" && parent != nil {
			cluster = r.clusterAt(r.tree.path(*parent))
		}
	}
	if cluster.ID == "" {
		cluster = within(r, "cluster", "", r.Clusters, at).Place
	}
	if to.Pool == "" {
		d.pool, d.Pool = types.ManagedObjectReference{Type: "ResourcePool", Value: r.roots[cluster.ID]}, cluster.Path
	}
	if r.err == nil && d.pool.Value == "" {
		r.err = &providers.Error{Op: "vsphere: find a resource pool", Object: d.Pool, Reason: providers.NotFound, Msg: "name one"}
	}
	if r.err == nil && to.Host == "" {
		r.spare(d, cluster.Path)
	}
}

func (r *resolver) clusterAt(path string) providers.Place {
	for _, c := range r.Clusters {
		if c.Path == path {
			return c.Place
		}
	}
	return providers.Place{}
}

// spare names a host of a cluster that does not place VMs by itself.
func (r *resolver) spare(d *destination, cluster string) {
	i := slices.IndexFunc(r.Clusters, func(c providers.Cluster) bool { return c.Path == cluster })
	if i < 0 || r.Clusters[i].Balanced || r.Clusters[i].Alone {
		return
	}
	var best providers.Host
	for _, h := range r.Hosts {
		up := h.Cluster == cluster && h.Connection == string(types.HostSystemConnectionStateConnected) && !h.Maintenance
		if up && (best.ID == "" || h.MemoryBytes-h.MemoryUsed > best.MemoryBytes-best.MemoryUsed) {
			best = h
		}
	}
	if best.ID != "" {
		d.host, d.Host = &types.ManagedObjectReference{Type: "HostSystem", Value: best.ID}, best.Path
	}
}

// connect maps the networks of the package: as it was said, else to the network of the same name, else to
// the only one.
func (r *resolver) connect(d *destination, to providers.ImportTarget, networks []ovf.Network) {
	d.Networks = map[string]string{}
	known := map[string]bool{}
	for _, n := range networks {
		if known[n.Name] || r.err != nil {
			continue
		}
		known[n.Name] = true
		ref := to.Networks[n.Name]
		at := func(n providers.Network) providers.Place { return n.Place }
		if ref == "" && slices.ContainsFunc(r.Networks, func(o providers.Network) bool { return o.Name == n.Name && o.Datacenter == r.dc }) {
			ref = n.Name
		}
		net := within(r, "network", ref, r.Networks, at)
		if r.err != nil {
			r.err = fmt.Errorf("network %q of the package: %w", n.Name, r.err)
			return
		}
		typ := map[string]string{"distributed": "DistributedVirtualPortgroup", "opaque": "OpaqueNetwork"}[net.Type]
		if typ == "" {
			typ = "Network"
		}
		d.Networks[n.Name] = net.Path
		d.networks = append(d.networks, types.OvfNetworkMapping{Name: n.Name, Network: types.ManagedObjectReference{Type: typ, Value: net.ID}})
	}
	for name := range to.Networks {
		if r.err == nil && !known[name] {
			r.err = &providers.Error{Op: "vsphere: map networks", Object: name, Reason: providers.Invalid, Msg: "the package has no network of this name"}
		}
	}
}

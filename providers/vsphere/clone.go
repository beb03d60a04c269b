package vsphere

import (
	"context"
	"errors"
	"strings"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// cloneKey is the option of a clone's configuration that it is known by.
const cloneKey = "hypersdk.clone"

// Clone copies a VM, or answers the copy that has this key already.
func (p *Provider) Clone(ctx context.Context, vm providers.VMID, opt providers.CloneOptions) (providers.VM, error) {
	const op = "clone"
	switch {
	case opt.Key == "":
		return providers.VM{}, &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Invalid, Msg: "no key was given"}
	case strings.TrimSpace(opt.Name) == "":
		return providers.VM{}, &providers.Error{Op: "vsphere: " + op, Object: string(vm), Reason: providers.Invalid, Msg: "the clone needs a name"}
	}
	id, err := p.clone(ctx, vm, opt)
	if err != nil {
		return providers.VM{}, fail(op, string(vm), err)
	}
	m, err := p.machine(ctx, id, heavy)
	if err != nil {
		return providers.VM{}, fail(op, string(vm), err)
	}
	return m.describe(), nil
}

func (p *Provider) clone(ctx context.Context, vm providers.VMID, opt providers.CloneOptions) (providers.VMID, error) {
	m, err := p.machine(ctx, vm, heavy)
	if err != nil {
		return "", err
	}
	place, folder, err := p.destination(ctx, m, opt)
	if err != nil {
		return "", err
	}
	for tries := 3; ; tries-- {
		id, err := p.cloned(ctx, m, folder, opt)
		if id != "" || err != nil {
			return id, err
		}
		res, err := methods.CloneVM_Task(ctx, p.soap, &types.CloneVM_Task{
			This: m.Self, Folder: folder, Name: escaper.Replace(opt.Name), Spec: types.VirtualMachineCloneSpec{
				Location: place, Template: opt.Template,
				Config: &types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: cloneKey, Value: opt.Key}}},
			},
		})
		if err == nil {
			_, err = p.wait(ctx, res.Returnval)
		}
		// An earlier attempt may have been faster: then the clone is ours, or soon will be.
		if err != nil && (tries == 1 || !isFault[*types.DuplicateName](err)) {
			return "", err
		}
	}
}

// cloned looks for the clone, and waits for one that is being made; "" where there is none.
func (p *Provider) cloned(ctx context.Context, m *machine, folder types.ManagedObjectReference, opt providers.CloneOptions) (providers.VMID, error) {
	exists := &providers.Error{Op: "vsphere: clone", Object: m.Self.Value, Reason: providers.Exists,
		Msg: "there is something else of the name " + opt.Name + " in the folder"}
	for {
		res, err := methods.FindChild(ctx, p.soap, &types.FindChild{This: *p.soap.ServiceContent.SearchIndex, Entity: folder, Name: escaper.Replace(opt.Name)})
		if err != nil || res.Returnval == nil {
			return "", err
		}
		if res.Returnval.Type != "VirtualMachine" {
			return "", exists
		}
		there, err := load[mo.VirtualMachine](ctx, p, *res.Returnval, "config")
		if notThere(err) {
			return "", nil // gone meanwhile
		}
		if err != nil {
			return "", err
		}
		busy, err := p.running(ctx, m.Self, "clone")
		switch {
		case err != nil:
			return "", err
		case busy: // it may be ours, and not say so yet
			if err := sleep(ctx, lastPoll); err != nil {
				return "", err
			}
			continue
		case there.Config == nil || optionOf(there.Config.ExtraConfig, cloneKey) != opt.Key:
			return "", exists
		}
		return providers.VMID(there.Self.Value), nil
	}
}

func optionOf(list []types.BaseOptionValue, key string) string {
	s, _ := object.OptionValueList(list).GetString(key)
	return s
}

// destination is where a clone goes.
func (p *Provider) destination(ctx context.Context, m *machine, opt providers.CloneOptions) (place types.VirtualMachineRelocateSpec, folder types.ManagedObjectReference, err error) {
	finder, err := p.finder(ctx, m)
	if err != nil {
		return place, folder, err
	}
	if opt.Folder != "" {
		f, err := finder.Folder(ctx, opt.Folder)
		if err != nil {
			return place, folder, lookup("folder", opt.Folder, err)
		}
		folder = f.Reference()
	} else if folder, err = m.folder(); err != nil {
		return place, folder, err
	}
	if opt.Datastore != "" {
		ds, err := finder.Datastore(ctx, opt.Datastore)
		if err != nil {
			return place, folder, lookup("datastore", opt.Datastore, err)
		}
		ref := ds.Reference()
		place.Datastore = &ref
	}
	host := m.Runtime.Host
	if opt.Host != "" {
		h, err := finder.HostSystem(ctx, opt.Host)
		if err != nil {
			return place, folder, lookup("host", opt.Host, err)
		}
		ref := h.Reference()
		place.Host, host = &ref, &ref
	}
	switch {
	case opt.ResourcePool != "":
		pool, err := finder.ResourcePool(ctx, opt.ResourcePool)
		if err != nil {
			return place, folder, lookup("resource pool", opt.ResourcePool, err)
		}
		ref := pool.Reference()
		place.Pool = &ref
	case m.ResourcePool != nil && opt.Host == "":
		place.Pool = m.ResourcePool
	default:
		place.Pool, err = p.rootPool(ctx, host)
	}
	return place, folder, err
}

// folder is the folder of VMs that a VM lies in.
func (m *machine) folder() (types.ManagedObjectReference, error) {
	if m.Parent == nil || m.Parent.Type != "Folder" {
		return types.ManagedObjectReference{}, &providers.Error{Op: "vsphere: clone", Object: m.Self.Value, Reason: providers.Invalid,
			Msg: "the VM is part of a vApp; name a folder for the clone"}
	}
	return *m.Parent, nil
}

// rootPool is the pool of all that a host, or the cluster that it is in, has.
func (p *Provider) rootPool(ctx context.Context, host *types.ManagedObjectReference) (*types.ManagedObjectReference, error) {
	none := &providers.Error{Op: "vsphere: find a resource pool", Reason: providers.Invalid,
		Msg: "there is no host to find a resource pool by; name one"}
	if host == nil {
		return nil, none
	}
	h, err := load[mo.HostSystem](ctx, p, *host, "parent")
	if err != nil {
		return nil, err
	}
	if h.Parent == nil {
		return nil, none
	}
	c, err := load[mo.ComputeResource](ctx, p, *h.Parent, "resourcePool")
	var cluster mo.ClusterComputeResource
	if h.Parent.Type == "ClusterComputeResource" {
		cluster, err = load[mo.ClusterComputeResource](ctx, p, *h.Parent, "resourcePool")
		c = cluster.ComputeResource
	}
	if err != nil {
		return nil, err
	}
	if c.ResourcePool == nil {
		return nil, none
	}
	return c.ResourcePool, nil
}

// finder finds things by name in the datacenter of a VM.
func (p *Provider) finder(ctx context.Context, m *machine) (*find.Finder, error) {
	f := find.NewFinder(p.soap, true)
	path := m.tree.path(m.Self)
	parts := strings.SplitN(strings.TrimPrefix(path, "/"), "/vm/", 2)
	if len(parts) < 2 {
		return f, nil // a host has one datacenter, and the finder knows it
	}
	dc, err := f.Datacenter(ctx, "/"+parts[0])
	if err != nil {
		return nil, lookup("datacenter", "/"+parts[0], err)
	}
	return f.SetDatacenter(dc), nil
}

// lookup is what the finder says, with a reason.
func lookup(what, name string, err error) error {
	var absent *find.NotFoundError
	var several *find.MultipleFoundError
	e := &providers.Error{Op: "vsphere: find " + what, Object: name, Err: err}
	switch {
	case errors.As(err, &absent):
		e.Reason, e.Msg, e.Err = providers.NotFound, "there is none of that name", nil
	case errors.As(err, &several):
		e.Reason, e.Msg, e.Err = providers.Invalid, "there are several; give its inventory path", nil
	default:
		return err
	}
	return e
}

// SetTemplate makes a template of a VM, or a VM of a template.
func (p *Provider) SetTemplate(ctx context.Context, vm providers.VMID, on bool) error {
	op := "make a VM of template"
	if on {
		op = "make a template of"
	}
	return fail(op, string(vm), p.setTemplate(ctx, vm, on))
}

func (p *Provider) setTemplate(ctx context.Context, vm providers.VMID, on bool) error {
	m, err := load[mo.VirtualMachine](ctx, p, vmRef(vm), "summary.config.template", "runtime")
	if err != nil || m.Summary.Config.Template == on {
		return err
	}
	if on {
		if is := power(m.Runtime.PowerState); is != providers.PowerOff {
			return &providers.Error{Op: "vsphere: make a template of", Object: string(vm), Reason: providers.Precondition,
				Msg: "the VM is not off; shut it down first"}
		}
		_, err = methods.MarkAsTemplate(ctx, p.soap, &types.MarkAsTemplate{This: m.Self})
		return err
	}
	pool, err := p.rootPool(ctx, m.Runtime.Host)
	if err != nil {
		return err
	}
	_, err = methods.MarkAsVirtualMachine(ctx, p.soap, &types.MarkAsVirtualMachine{This: m.Self, Pool: *pool, Host: m.Runtime.Host})
	return err
}

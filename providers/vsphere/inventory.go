package vsphere

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// pageSize is how many objects one answer of the property collector may hold.
const pageSize = 500

// momentAgo is how old a listing may be for a name to be looked up in it.
const momentAgo = 5 * time.Second

// named is what it takes to know a VM by its name and its path.
var named = []string{"name", "parent", "parentVApp"}

// light is what a listing asks of a VM. Each property is named, because "summary" as a whole is many
// times as much.
var light = append(slices.Clone(named), "runtime.powerState",
	"summary.config.guestFullName", "summary.config.memorySizeMB", "summary.config.numCpu",
	"summary.config.template", "summary.storage",
)

// above is what is asked of the things that a VM lies in, to know its path.
var above = []types.PropertySpec{
	{Type: "Folder", PathSet: []string{"name", "parent"}},
	{Type: "Datacenter", PathSet: []string{"name", "parent"}},
	{Type: "VirtualApp", PathSet: []string{"name", "parent", "parentFolder"}},
}

// VMs lists the VMs of the whole inventory that f lets through, ordered by path.
func (p *Provider) VMs(ctx context.Context, f providers.Filter) iter.Seq2[providers.VM, error] {
	return func(yield func(providers.VM, error) bool) {
		vms, err := p.list(ctx, light)
		if err != nil {
			yield(providers.VM{}, fail("list VMs", "", err))
			return
		}
		for _, vm := range vms {
			if matches(f, vm) && !yield(vm, nil) {
				return
			}
		}
	}
}

// matches says whether a VM is wanted. Both spellings of a path are understood.
func matches(f providers.Filter, vm providers.VM) bool {
	folder := strings.TrimRight(f.Folder, "/")
	if folder != "" && !strings.HasPrefix(folder, "/") {
		folder = "/" + folder
	}
	return (f.Name == "" || strings.Contains(strings.ToLower(vm.Name), strings.ToLower(f.Name))) &&
		(f.Power == "" || f.Power == vm.PowerState) &&
		(folder == "" || strings.HasPrefix(vm.Path, folder+"/") || strings.HasPrefix(unescape(vm.Path), unescape(folder)+"/"))
}

// list describes all VMs, ordered by path, as far as these of their properties tell.
func (p *Provider) list(ctx context.Context, props []string) ([]providers.VM, error) {
	objects, err := p.surely(ctx, append([]types.PropertySpec{{Type: "VirtualMachine", PathSet: props}}, above...))
	if err != nil {
		return nil, err
	}
	t, machines := tree{}, make([]mo.VirtualMachine, 0, len(objects))
	for _, o := range objects {
		o.MissingSet = nil // one VM that cannot be looked into does not hide the others
		entity, err := decode(o)
		if err != nil {
			return nil, err
		}
		if vm, ok := entity.(mo.VirtualMachine); ok {
			machines = append(machines, vm)
		}
		t.add(entity)
	}
	vms := make([]providers.VM, len(machines))
	for i := range machines {
		vms[i] = describe(&machines[i], t)
	}
	slices.SortFunc(vms, func(a, b providers.VM) int {
		return strings.Compare(a.Path+"\x00"+string(a.ID), b.Path+"\x00"+string(b.ID))
	})
	return vms, nil
}

// surely reads everything, once more where the view went with a session that ended in the middle.
func (p *Provider) surely(ctx context.Context, specs []types.PropertySpec) ([]types.ObjectContent, error) {
	was := p.login.logins()
	objects, err := p.everything(ctx, specs)
	if isFault[*types.ManagedObjectNotFound](err) && p.login.logins() != was {
		objects, err = p.everything(ctx, specs)
	}
	return objects, err
}

// everything reads properties of all objects of some types in one query.
func (p *Provider) everything(ctx context.Context, specs []types.PropertySpec) ([]types.ObjectContent, error) {
	content := p.soap.ServiceContent
	kinds := make([]string, len(specs))
	for i, s := range specs {
		kinds[i] = s.Type
	}
	view, err := methods.CreateContainerView(ctx, p.soap, &types.CreateContainerView{
		This: *content.ViewManager, Container: content.RootFolder, Type: kinds, Recursive: true,
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), brief)
		defer cancel()
		_, _ = methods.DestroyView(detached, p.soap, &types.DestroyView{This: view.Returnval}) // else the session's end does it
	}()
	return p.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{
			Obj: view.Returnval, Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "ContainerView", Path: "view"}},
		}},
		PropSet: specs,
	})
}

// retrieve asks the property collector, page by page.
func (p *Provider) retrieve(ctx context.Context, spec types.PropertyFilterSpec) ([]types.ObjectContent, error) {
	return mo.RetrievePropertiesEx(ctx, p.soap, types.RetrievePropertiesEx{
		This:    p.soap.ServiceContent.PropertyCollector,
		SpecSet: []types.PropertyFilterSpec{spec},
		Options: types.RetrieveOptions{MaxObjects: pageSize},
	})
}

// load reads some properties of the one object ref.
func load[T any](ctx context.Context, p *Provider, ref types.ManagedObjectReference, props ...string) (T, error) {
	var none T
	objects, err := p.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: ref}},
		PropSet:   []types.PropertySpec{{Type: ref.Type, PathSet: props}},
	})
	if err != nil {
		return none, err
	}
	for _, o := range objects {
		if o.Obj == ref {
			entity, err := decode(o)
			v, ok := entity.(T)
			if err == nil && !ok {
				err = fmt.Errorf("the server answered a %T for %s", entity, ref)
			}
			return v, err
		}
	}
	return none, soap.WrapVimFault(&types.ManagedObjectNotFound{Obj: ref})
}

// decode makes a typed object of what the property collector answered. The first property that is
// missing is the error.
func decode(o types.ObjectContent) (entity any, err error) {
	// An answer that does not fit its type makes the decoder panic; that is the server's fault, not ours.
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the server's answer for %s cannot be understood: %v", o.Obj, r)
		}
	}()
	return mo.ObjectContentToType(o)
}

// VM finds one VM by id, path or name and describes it in full.
func (p *Provider) VM(ctx context.Context, ref string) (providers.VM, error) {
	m, err := p.find(ctx, ref)
	if err != nil {
		return providers.VM{}, fail("find VM", ref, err)
	}
	return m.describe(), nil
}

func (p *Provider) find(ctx context.Context, ref string) (*machine, error) {
	if strings.TrimSpace(ref) == "" {
		return nil, &providers.Error{Op: "vsphere: find VM", Reason: providers.Invalid, Msg: "no id, path or name was given"}
	}
	if isID(ref) {
		m, err := p.machine(ctx, providers.VMID(ref), heavy)
		if !notThere(err) {
			return m, err
		}
	}
	if strings.Contains(ref, "/") {
		if id, err := p.index(ctx, ref); err != nil {
			return nil, err
		} else if id != "" {
			return p.machine(ctx, id, heavy)
		}
	}
	if m, ok := p.lately(ctx, ref); ok {
		return m, nil
	}
	vms, err := p.names.do(ctx)
	if err != nil {
		return nil, err
	}
	vm, err := pick(vms, ref)
	if err != nil {
		return nil, err
	}
	return p.machine(ctx, vm.ID, heavy)
}

// lately finds a VM by the names of a listing that was made for somebody else a moment ago, and looks
// whether it still answers to its name.
func (p *Provider) lately(ctx context.Context, ref string) (*machine, bool) {
	vms, ok := p.names.recent(momentAgo)
	if !ok {
		return nil, false
	}
	vm, err := pick(vms, ref)
	if err != nil {
		return nil, false
	}
	m, err := p.machine(ctx, vm.ID, heavy)
	if err != nil {
		return nil, false
	}
	_, err = pick([]providers.VM{m.describe()}, ref)
	return m, err == nil
}

// isID says whether ref has the form of an id: "vm-42" of a vCenter, "42" of a host.
func isID(ref string) bool {
	digits := strings.TrimPrefix(ref, "vm-")
	return digits != "" && strings.Trim(digits, "0123456789") == ""
}

// index asks the server's own index for a path, which spares a listing; "" where it knows none.
func (p *Provider) index(ctx context.Context, path string) (providers.VMID, error) {
	res, err := methods.FindByInventoryPath(ctx, p.soap, &types.FindByInventoryPath{
		This: *p.soap.ServiceContent.SearchIndex, InventoryPath: strings.Trim(path, "/"),
	})
	if err != nil || res.Returnval == nil || res.Returnval.Type != "VirtualMachine" {
		return "", err
	}
	return providers.VMID(res.Returnval.Value), nil
}

// pick finds the one VM that ref names among all: by its path as it is, by its path written without or
// with other escapes, or by its name, and the first of these that any VM answers to decides.
func pick(vms []providers.VM, ref string) (providers.VM, error) {
	path := "/" + strings.Trim(ref, "/")
	ways := []func(providers.VM) bool{
		func(vm providers.VM) bool { return vm.Path == path },
		func(vm providers.VM) bool { return unescape(vm.Path) == path },
		func(vm providers.VM) bool { return unescape(vm.Path) == unescape(path) },
		func(vm providers.VM) bool { return vm.Name == ref },
		func(vm providers.VM) bool { return vm.Name == unescape(ref) },
	}
	for _, way := range ways {
		var found []providers.VM
		for _, vm := range vms {
			if way(vm) {
				found = append(found, vm)
			}
		}
		if len(found) == 1 {
			return found[0], nil
		}
		if len(found) > 1 {
			var paths []string
			for _, vm := range found {
				paths = append(paths, vm.Path)
			}
			return providers.VM{}, &providers.Error{Op: "vsphere: find VM", Object: ref, Reason: providers.Invalid,
				Msg: fmt.Sprintf("%d VMs answer to this; say which: %s", len(found), strings.Join(paths, ", "))}
		}
	}
	return providers.VM{}, &providers.Error{Op: "vsphere: find VM", Object: ref, Reason: providers.NotFound,
		Msg: "no VM has this id, inventory path or name"}
}

// notThere says whether err is that an object does not exist.
func notThere(err error) bool { return reason(err) == providers.NotFound }

// describe is what a listing tells of a VM.
func describe(vm *mo.VirtualMachine, t tree) providers.VM {
	s := &vm.Summary
	out := providers.VM{
		ID:         providers.VMID(vm.Self.Value),
		Name:       unescape(vm.Name),
		Path:       t.path(vm.Self),
		PowerState: power(vm.Runtime.PowerState),
		GuestOS:    s.Config.GuestFullName,
		MemoryMB:   int64(s.Config.MemorySizeMB),
		NumCPU:     int(s.Config.NumCpu),
		Template:   s.Config.Template,
	}
	if s.Storage != nil {
		out.StorageBytes = s.Storage.Committed
	}
	if out.Name == "" {
		out.Name = vm.Self.Value
	}
	return out
}

func power(s types.VirtualMachinePowerState) providers.Power {
	switch p := providers.Power(s); p {
	case providers.PowerOn, providers.PowerOff, providers.PowerSuspended:
		return p
	}
	return providers.PowerUnknown
}

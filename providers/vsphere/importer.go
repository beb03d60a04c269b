package vsphere

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats/ovf"
	"hypersdk/providers"
)

// importKey is the option of a VM's configuration by which an import knows what it has made: "begun" or
// "done", and the key of the import. It is part of the VM from the first moment on.
const importKey = "hypersdk.import"

const (
	importBegun = "begun "
	importDone  = "done "
)

// arrival is a package on its way in.
type arrival struct {
	p    *Provider
	to   destination
	spec types.VirtualMachineImportSpec
	plan providers.ImportPlan
	pkg  providers.Package
	item []types.OvfFileItem
	key  string
}

// PlanImport lets the server judge a package.
func (p *Provider) PlanImport(ctx context.Context, descriptor string, to providers.ImportTarget) (providers.ImportPlan, error) {
	a, err := p.judge(ctx, descriptor, to)
	if err != nil {
		return providers.ImportPlan{}, fail("judge the package for", to.Name, err)
	}
	return a.plan, nil
}

// judge finds the places and has the server make a spec of the descriptor.
func (p *Provider) judge(ctx context.Context, descriptor string, to providers.ImportTarget) (*arrival, error) {
	const op = "vsphere: import"
	if strings.TrimSpace(to.Name) == "" {
		return nil, &providers.Error{Op: op, Reason: providers.Invalid, Msg: "the VM needs a name"}
	}
	env, err := ovf.ReadEnvelope(strings.NewReader(descriptor))
	if err != nil {
		return nil, &providers.Error{Op: op, Object: to.Name, Reason: providers.Corrupt, Err: err}
	}
	if n := len(env.Systems); n != 1 {
		return nil, &providers.Error{Op: op, Object: to.Name, Reason: providers.Unsupported,
			Msg: fmt.Sprintf("the package describes %d VMs; only packages of one are imported", n)}
	}
	s, err := p.survey(ctx)
	if err != nil {
		return nil, err
	}
	a := &arrival{p: p}
	if a.to, err = s.resolve(to, networksOf(env)); err != nil {
		return nil, err
	}
	provisioning := types.OvfCreateImportSpecParamsDiskProvisioningTypeThin
	if to.Thick {
		provisioning = types.OvfCreateImportSpecParamsDiskProvisioningTypeThick
	}
	res, err := methods.CreateImportSpec(ctx, p.soap, &types.CreateImportSpec{
		This: *p.soap.ServiceContent.OvfManager, OvfDescriptor: descriptor, ResourcePool: a.to.pool, Datastore: a.to.datastore,
		Cisp: &types.OvfCreateImportSpecParams{
			OvfManagerCommonParams: types.OvfManagerCommonParams{Locale: "US"}, EntityName: escaper.Replace(to.Name),
			HostSystem: a.to.host, NetworkMapping: a.to.networks, DiskProvisioning: string(provisioning),
		},
	})
	if err != nil {
		return nil, err
	}
	if faults := res.Returnval.Error; len(faults) > 0 {
		return nil, &providers.Error{Op: op, Object: to.Name, Reason: providers.Unsupported,
			Msg: "the server refuses the package: " + strings.Join(told(faults), "; ")}
	}
	spec, ok := res.Returnval.ImportSpec.(*types.VirtualMachineImportSpec)
	if !ok {
		return nil, &providers.Error{Op: op, Object: to.Name, Reason: providers.Unsupported,
			Msg: "the server would make something else than one VM of the package"}
	}
	a.spec, a.item = *spec, res.Returnval.FileItem
	a.plan = providers.ImportPlan{Target: a.to.ImportTarget, Warnings: told(res.Returnval.Warning), Free: a.to.free}
	for _, item := range a.item {
		a.plan.Files = append(a.plan.Files, item.Path)
	}
	return a, nil
}

// networksOf are the networks of a package: those that it lists, and those that its cards name.
func networksOf(e *ovf.Envelope) []ovf.Network {
	all := append([]ovf.Network{}, e.Networks...)
	for _, n := range e.Systems[0].NICs {
		if n.Network != "" {
			all = append(all, ovf.Network{Name: n.Network})
		}
	}
	return all
}

func told(faults []types.LocalizedMethodFault) []string {
	var out []string
	for _, f := range faults[:min(len(faults), maxTold)] {
		out = append(out, strings.TrimPrefix(newTaskError(&f).Error(), "the task failed: "))
	}
	return out
}

// ImportPackage makes a VM of a package.
func (p *Provider) ImportPackage(ctx context.Context, pkg providers.Package, to providers.ImportTarget, key string) (providers.VM, error) {
	const op = "import"
	if key == "" {
		return providers.VM{}, &providers.Error{Op: "vsphere: " + op, Object: to.Name, Reason: providers.Invalid, Msg: "no key was given"}
	}
	a, err := p.judge(ctx, pkg.Descriptor, to)
	if err != nil {
		return providers.VM{}, fail(op, to.Name, err)
	}
	a.pkg, a.key = pkg, key
	id, err := p.arrived(ctx, a.to, key)
	if err == nil && id == "" {
		if id, err = a.make(ctx); reason(err) == providers.Exists {
			// What is there may be what an earlier attempt, whose answer was lost, has begun meanwhile.
			if there, found := p.arrived(ctx, a.to, key); there != "" || found != nil {
				id, err = there, found
			}
		}
	}
	if err != nil {
		return providers.VM{}, fail(op, to.Name, err)
	}
	m, err := p.machine(ctx, id, heavy)
	if err != nil {
		return providers.VM{}, fail(op, to.Name, err)
	}
	return m.describe(), nil
}

// make begins an import, uploads all, and marks the VM as whole.
func (a *arrival) make(ctx context.Context) (providers.VMID, error) {
	a.spec.ConfigSpec.ExtraConfig = append(a.spec.ConfigSpec.ExtraConfig, &types.OptionValue{Key: importKey, Value: importBegun + a.key})
	l, vm, urls, err := a.lease(ctx)
	if err != nil {
		return "", err
	}
	defer l.Close() // aborts it, with all that it made, unless it is complete
	if err := a.upload(l, urls); err != nil {
		return "", err
	}
	if err := l.complete(); err != nil {
		return "", err
	}
	res, err := methods.ReconfigVM_Task(ctx, a.p.soap, &types.ReconfigVM_Task{This: vm, Spec: types.VirtualMachineConfigSpec{
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: importKey, Value: importDone + a.key}},
	}})
	if err == nil {
		_, err = a.p.wait(ctx, res.Returnval)
	}
	if notThere(err) {
		err = &providers.Error{Op: "vsphere: import", Object: a.to.Name, Reason: providers.Unavailable, Msg: "the VM has gone with its lease", Err: err}
	}
	return providers.VMID(vm.Value), err
}

// lease begins the import: the VM is there from now on, and the lease says where its files go.
func (a *arrival) lease(ctx context.Context) (*lease, types.ManagedObjectReference, []types.HttpNfcLeaseDeviceUrl, error) {
	res, err := methods.ImportVApp(ctx, a.p.soap, &types.ImportVApp{This: a.to.pool, Spec: &a.spec, Folder: &a.to.folder, Host: a.to.host})
	if err != nil {
		return nil, types.ManagedObjectReference{}, nil, err
	}
	var total int64
	for _, f := range a.pkg.Files {
		total += f.Size
	}
	l, info, err := a.p.holdLease(ctx, res.Returnval, a.to.Name, leaseOf(a.key), total)
	if err != nil {
		return nil, types.ManagedObjectReference{}, nil, err
	}
	return l, info.Entity, info.DeviceUrl, nil
}

// leaseOf is what the lease of an import is kept under, beside those on VMs.
func leaseOf(key string) string { return "import " + key }

// arrived looks for the VM of an import with this key: "" where there is none. What an earlier attempt
// left unfinished is removed.
func (p *Provider) arrived(ctx context.Context, to destination, key string) (providers.VMID, error) {
	exists := &providers.Error{Op: "vsphere: import", Object: to.Name, Reason: providers.Exists,
		Msg: "there is something else of this name in " + to.Folder}
	for {
		res, err := methods.FindChild(ctx, p.soap, &types.FindChild{
			This: *p.soap.ServiceContent.SearchIndex, Entity: to.folder, Name: escaper.Replace(to.Name),
		})
		if err != nil || res.Returnval == nil {
			return "", err
		}
		if res.Returnval.Type != "VirtualMachine" {
			return "", exists
		}
		vm, err := load[mo.VirtualMachine](ctx, p, *res.Returnval, "config")
		switch {
		case notThere(err):
			return "", nil // gone meanwhile
		case err != nil:
			return "", err
		case vm.Config == nil:
			return "", &providers.Error{Op: "vsphere: import", Object: to.Name, Reason: providers.Precondition,
				Msg: "there is a VM of this name, of which the server does not tell the configuration"}
		}
		switch optionOf(vm.Config.ExtraConfig, importKey) {
		case importDone + key:
			return providers.VMID(vm.Self.Value), nil
		case importBegun + key:
		default:
			return "", exists
		}
		p.endLeftLeases(ctx, leaseOf(key))
		if err := p.remove(ctx, vm.Self); err != nil {
			return "", err
		}
	}
}

// remove destroys a VM that is only half there. Its lease, if it has one that nobody could end, keeps it
// until the server gives the lease up.
func (p *Provider) remove(ctx context.Context, vm types.ManagedObjectReference) error {
	res, err := methods.Destroy_Task(ctx, p.soap, &types.Destroy_Task{This: vm})
	if err == nil {
		_, err = p.wait(ctx, res.Returnval)
	}
	switch {
	case notThere(err):
		return nil
	case isFault[*types.TaskInProgress](err):
		return &providers.Error{Op: "vsphere: remove what is left of an import", Object: vm.Value, Reason: providers.Precondition,
			Msg: "the lease of an earlier attempt still holds it; the server gives it up within " + (5 * time.Minute).String(), Err: err}
	}
	return err
}

// DiscardImport removes what an import left unfinished.
func (p *Provider) DiscardImport(ctx context.Context, to providers.ImportTarget, key string) error {
	const op = "discard the import of"
	p.endLeftLeases(ctx, leaseOf(key))
	s, err := p.survey(ctx, providers.KindFolder)
	if err != nil {
		return fail(op, to.Name, err)
	}
	folders := s.Folders[:0:0]
	for _, f := range s.Folders {
		if f.Holds == "vms" && (to.Folder == "" || f.Path == to.Folder) {
			folders = append(folders, f)
		}
	}
	for _, f := range folders {
		d := destination{ImportTarget: to, folder: types.ManagedObjectReference{Type: "Folder", Value: f.ID}}
		d.Folder = f.Path
		_, err := p.arrived(ctx, d, key)
		if err != nil && reason(err) != providers.Exists {
			return fail(op, to.Name, err)
		}
	}
	return nil
}

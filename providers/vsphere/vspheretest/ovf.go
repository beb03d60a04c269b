package vspheretest

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// describeOVF answers CreateDescriptor: a VM's description as vCenter writes it (DSP0243 1.1), with the
// files that the client has got.
func describeOVF(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.CreateDescriptor)
	vm, ok := s.reg.Get(req.Obj).(*simulator.VirtualMachine)
	if !ok {
		return nil, gone(req.Obj)
	}
	var d descriptor
	s.sim().WithLock(vm, func() { d.vm(vm, req.Cdp) })
	return &types.CreateDescriptorResponse{Returnval: types.OvfCreateDescriptorResult{OvfDescriptor: d.String()}}, nil
}

// descriptor is an OVF envelope that is being written.
type descriptor struct {
	bytes.Buffer
	items bytes.Buffer
	last  int // instance id
}

func quoted(text string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(text)) // to memory
	return b.String()
}

// ovfBus is how a kind of controller is called in an OVF.
var ovfBus = map[string]struct {
	kind    int
	subtype string
}{
	"ParaVirtualSCSIController": {6, "VirtualSCSI"}, "VirtualLsiLogicController": {6, "lsilogic"},
	"VirtualLsiLogicSASController": {6, "lsilogicsas"}, "VirtualBusLogicController": {6, "buslogic"},
	"VirtualIDEController": {5, ""}, "VirtualAHCIController": {20, "vmware.sata.ahci"}, "VirtualNVMEController": {20, "vmware.nvme.controller"},
}

// item adds a device; fields are names of rasd and their values, in the order of the alphabet.
func (d *descriptor) item(kind int, name string, fields ...string) int {
	d.last++
	all := append([]string{"ElementName", name, "InstanceID", fmt.Sprint(d.last), "ResourceType", fmt.Sprint(kind)}, fields...)
	pairs := map[string]string{}
	var names []string
	for i := 0; i < len(all); i += 2 {
		if all[i+1] != "" {
			pairs[all[i]], names = all[i+1], append(names, all[i])
		}
	}
	slices.Sort(names)
	d.items.WriteString("      <Item>\n")
	for _, n := range names {
		fmt.Fprintf(&d.items, "        <rasd:%s>%s</rasd:%s>\n", n, quoted(pairs[n]), n)
	}
	d.items.WriteString("      </Item>\n")
	return d.last
}

func (d *descriptor) vm(vm *simulator.VirtualMachine, cdp types.OvfCreateDescriptorParams) {
	hw := vm.Config.Hardware
	d.item(3, fmt.Sprintf("%d virtual CPU(s)", hw.NumCPU), "AllocationUnits", "hertz * 10^6", "VirtualQuantity", fmt.Sprint(hw.NumCPU))
	d.item(4, fmt.Sprintf("%dMB of memory", hw.MemoryMB), "AllocationUnits", "byte * 2^20", "VirtualQuantity", fmt.Sprint(hw.MemoryMB))
	controllers := map[int32]int{}
	for _, dev := range hw.Device {
		if c, ok := dev.(types.BaseVirtualController); ok {
			name := reflect.Indirect(reflect.ValueOf(dev)).Type().Name()
			if bus, known := ovfBus[name]; known {
				b := c.GetVirtualController()
				controllers[b.Key] = d.item(bus.kind, name, "Address", fmt.Sprint(b.BusNumber), "ResourceSubType", bus.subtype)
			}
		}
	}
	var files, disks, networks strings.Builder
	n := 0
	for _, dev := range hw.Device {
		switch v := dev.(type) {
		case *types.VirtualDisk:
			if n < len(cdp.OvfFiles) {
				f := cdp.OvfFiles[n]
				fmt.Fprintf(&files, "    <File ovf:href=\"%s\" ovf:id=\"file%d\" ovf:size=\"%d\"/>\n", quoted(f.Path), n+1, f.Size)
			}
			fmt.Fprintf(&disks, "    <Disk ovf:capacity=\"%d\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk%d\" ovf:fileRef=\"file%d\" "+
				"ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>\n", v.CapacityInBytes, n+1, n+1)
			d.item(17, fmt.Sprintf("Hard disk %d", n+1), "AddressOnParent", fmt.Sprint(*v.UnitNumber),
				"HostResource", fmt.Sprintf("ovf:/disk/vmdisk%d", n+1), "Parent", fmt.Sprint(controllers[v.ControllerKey]))
			n++
		case types.BaseVirtualEthernetCard:
			net := vmNetwork
			if b, ok := v.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
				net = b.DeviceName
			}
			if !strings.Contains(networks.String(), "\""+quoted(net)+"\"") {
				fmt.Fprintf(&networks, "    <Network ovf:name=\"%s\"><Description>%s</Description></Network>\n", quoted(net), quoted(net))
			}
			d.item(10, "Network adapter", "AutomaticAllocation", "true", "Connection", net, "ResourceSubType", "VmxNet3")
		}
	}
	d.envelope(vm, cdp.Name, files.String(), disks.String(), networks.String())
}

func (d *descriptor) envelope(vm *simulator.VirtualMachine, name, files, disks, networks string) {
	fmt.Fprintf(d, `<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
%s  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
%s  </DiskSection>
  <NetworkSection>
    <Info>The list of logical networks</Info>
%s  </NetworkSection>
  <VirtualSystem ovf:id="%s">
    <Info>A virtual machine</Info>
    <Name>%s</Name>
    <OperatingSystemSection ovf:id="1" vmw:osType="%s"><Info>The kind of installed guest operating system</Info></OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>%s</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>%s</vssd:VirtualSystemType>
      </System>
%s    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`, files, disks, networks, quoted(name), quoted(name), quoted(vm.Config.GuestId), quoted(name), quoted(vm.Config.Version), d.items.String())
}

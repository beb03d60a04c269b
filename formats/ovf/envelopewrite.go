package ovf

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"

	"hypersdk/formats"
)

// WriteTo writes the descriptor as OVF 1.1, in the order and with the prefixes that VMware's tools
// write, so that their readers, some of which look at prefixes, find everything.
func (e *Envelope) WriteTo(w io.Writer) (int64, error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	var x writer
	x.line(`<?xml version="1.0" encoding="UTF-8"?>`)
	x.open("Envelope", `xmlns="http://schemas.dmtf.org/ovf/envelope/1"`,
		`xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"`,
		`xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"`,
		`xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"`,
		`xmlns:vmw="http://www.vmware.com/schema/ovf"`,
		`xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"`)
	x.open("References")
	for _, f := range e.Files {
		x.file(f)
	}
	x.shut("References")
	if len(e.Disks) > 0 {
		x.open("DiskSection")
		x.text("Info", "Virtual disks")
		for _, d := range e.Disks {
			x.disk(d)
		}
		x.shut("DiskSection")
	}
	x.networks(e)
	if len(e.Systems) > 1 {
		x.open("VirtualSystemCollection", attr("ovf:id", "machines"))
		x.text("Info", "Virtual machines")
	}
	for _, s := range e.Systems {
		if err := x.system(s); err != nil {
			return 0, fmt.Errorf("ovf: machine %q: %w", s.Name, err)
		}
	}
	if len(e.Systems) > 1 {
		x.shut("VirtualSystemCollection")
	}
	x.shut("Envelope")
	n, err := w.Write(x.b.Bytes())
	if err != nil {
		err = fmt.Errorf("ovf: descriptor: %w", err)
	}
	return int64(n), err
}

// writer writes XML line by line.
type writer struct {
	b     bytes.Buffer
	depth int
}

func (x *writer) line(s string) {
	for range x.depth {
		x.b.WriteString("  ")
	}
	x.b.WriteString(s)
	x.b.WriteByte('\n')
}

func attr(name, value string) string { return name + `="` + escape(value) + `"` }

func number64(name string, v int64) string { return attr(name, strconv.FormatInt(v, 10)) }

// escape makes a text fit for XML; what XML cannot hold becomes U+FFFD.
func escape(s string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // into memory: cannot fail
	return b.String()
}

func tag(name string, attrs []string) string {
	s := name
	for _, a := range attrs {
		s += " " + a
	}
	return s
}

func (x *writer) open(name string, attrs ...string) {
	x.line("<" + tag(name, attrs) + ">")
	x.depth++
}

func (x *writer) shut(name string) {
	x.depth--
	x.line("</" + name + ">")
}

func (x *writer) empty(name string, attrs ...string) { x.line("<" + tag(name, attrs) + "/>") }

func (x *writer) text(name, s string, attrs ...string) {
	x.line("<" + tag(name, attrs) + ">" + escape(s) + "</" + name + ">")
}

// some writes an element that is left out when it is empty.
func (x *writer) some(name, s string) {
	if s != "" {
		x.text(name, s)
	}
}

func (x *writer) file(f File) {
	a := []string{attr("ovf:href", f.Href), attr("ovf:id", f.ID)}
	if f.Size > 0 {
		a = append(a, number64("ovf:size", f.Size))
	}
	if f.Gzip {
		a = append(a, attr("ovf:compression", "gzip"))
	}
	if f.ChunkSize > 0 {
		a = append(a, number64("ovf:chunkSize", f.ChunkSize))
	}
	x.empty("File", a...)
}

func (x *writer) disk(d Disk) {
	a := []string{number64("ovf:capacity", d.Capacity), attr("ovf:capacityAllocationUnits", "byte"), attr("ovf:diskId", d.ID)}
	if d.File != "" {
		a = append(a, attr("ovf:fileRef", d.File))
	}
	format := d.Format
	if format == "" {
		format = StreamVMDK
	}
	a = append(a, attr("ovf:format", format))
	if d.Populated > 0 {
		a = append(a, number64("ovf:populatedSize", d.Populated))
	}
	if d.Parent != "" {
		a = append(a, attr("ovf:parentRef", d.Parent))
	}
	x.empty("Disk", a...)
}

// networks lists those of the envelope and those that only network cards name.
func (x *writer) networks(e *Envelope) {
	all := append([]Network(nil), e.Networks...)
	known := make(map[string]bool)
	for _, n := range all {
		known[n.Name] = true
	}
	for _, s := range e.Systems {
		for _, n := range s.NICs {
			if n.Network != "" && !known[n.Network] {
				known[n.Network] = true
				all = append(all, Network{Name: n.Network})
			}
		}
	}
	if len(all) == 0 {
		return
	}
	x.open("NetworkSection")
	x.text("Info", "Networks")
	for _, n := range all {
		x.open("Network", attr("ovf:name", n.Name))
		x.some("Description", n.Description)
		x.shut("Network")
	}
	x.shut("NetworkSection")
}

func (x *writer) system(s System) error {
	if s.CPUs < 1 || s.Memory < 1<<20 || s.Memory%(1<<20) != 0 {
		return fmt.Errorf("%d processors and %d bytes of memory, which must be whole MiB: %w", s.CPUs, s.Memory, formats.ErrFormat)
	}
	id := s.ID
	if id == "" {
		id = s.Name
	}
	x.open("VirtualSystem", attr("ovf:id", id))
	x.text("Info", "A virtual machine")
	x.text("Name", s.Name)
	osAttrs := []string{attr("ovf:id", strconv.Itoa(max(s.OS.ID, 1)))}
	if s.OS.Type != "" {
		osAttrs = append(osAttrs, attr("vmw:osType", s.OS.Type))
	}
	x.open("OperatingSystemSection", osAttrs...)
	x.text("Info", "The operating system")
	x.some("Description", s.OS.Description)
	x.shut("OperatingSystemSection")
	x.hardware(s)
	if s.Annotation != "" {
		x.open("AnnotationSection", attr("ovf:required", "false"))
		x.text("Info", "A remark")
		x.text("Annotation", s.Annotation)
		x.shut("AnnotationSection")
	}
	x.shut("VirtualSystem")
	return nil
}

func (x *writer) hardware(s System) {
	version := s.HardwareVersion
	if version == "" {
		version = "vmx-13"
	}
	x.open("VirtualHardwareSection")
	x.text("Info", "Virtual hardware")
	x.open("System")
	x.text("vssd:ElementName", "Virtual Hardware Family")
	x.text("vssd:InstanceID", "0")
	x.text("vssd:VirtualSystemIdentifier", s.Name)
	x.text("vssd:VirtualSystemType", version)
	x.shut("System")
	ids := identify(s)
	x.item(item{name: fmt.Sprintf("%d virtual CPU(s)", s.CPUs), id: ids.next(), kind: typeCPU, units: "hertz * 10^6",
		quantity: int64(s.CPUs), cores: s.CoresPerSocket})
	x.item(item{name: fmt.Sprintf("%d MB of memory", s.Memory>>20), id: ids.next(), kind: typeMemory, units: "byte * 2^20",
		quantity: s.Memory >> 20})
	for _, c := range s.Controllers {
		kind, word := typeStorage, string(c.Bus)
		switch c.Bus {
		case IDE:
			kind = typeIDE
		case SCSI:
			kind = typeSCSI
		case USB:
			kind = typeUSB
		}
		x.item(item{name: fmt.Sprintf("%s controller %d", word, c.Number), id: c.ID, kind: kind, sub: c.model(), address: strconv.Itoa(c.Number)})
	}
	for _, d := range s.Drives {
		x.drive(d, ids)
	}
	for _, n := range s.NICs {
		x.item(item{name: or(n.Name, "Network adapter"), id: or(n.ID, ids.next()), kind: typeEthernet, sub: or(n.Model, "VmxNet3"),
			address: n.MAC, unit: n.Unit, attached: true, connection: n.Network, automatic: strconv.FormatBool(n.Connected)})
	}
	if s.Firmware == EFI {
		x.config("firmware", string(EFI))
	}
	if s.SecureBoot {
		x.config("bootOptions.efiSecureBootEnabled", "true")
	}
	for _, c := range s.Config {
		x.config(c.Key, c.Value)
	}
	x.shut("VirtualHardwareSection")
}

// model is the controller's, or the usual one of its bus; an IDE controller needs none.
func (c Controller) model() string {
	if c.Model != "" {
		return c.Model
	}
	return map[Bus]string{SCSI: "VirtualSCSI", SATA: "vmware.sata.ahci", NVMe: "vmware.nvme.controller", USB: "vmware.usb.ehci"}[c.Bus]
}

func (x *writer) drive(d Drive, ids *ids) {
	i := item{name: d.Name, id: or(d.ID, ids.next()), parent: d.Controller, unit: d.Unit, attached: true}
	switch d.Kind {
	case CDROM:
		i.kind, i.name, i.automatic = typeCD, or(d.Name, "CD/DVD drive"), "false"
		i.sub = "vmware.cdrom.remotepassthrough"
		if d.File != "" {
			i.sub = "vmware.cdrom.iso"
		}
	case Floppy:
		i.kind, i.name, i.automatic, i.sub = typeFloppy, or(d.Name, "Floppy drive"), "false", "vmware.floppy.remotedevice"
	default:
		i.kind, i.name = typeDisk, or(d.Name, "Hard disk")
	}
	switch {
	case d.Disk != "":
		i.resource = "ovf:/disk/" + d.Disk
	case d.File != "":
		i.resource = "ovf:/file/" + d.File
	}
	x.item(i)
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// item is one piece of virtual hardware.
type item struct {
	name, id, sub, parent, address, connection, resource, automatic, units string
	kind, unit, cores                                                      int
	attached                                                               bool // unit counts
	quantity                                                               int64
}

// item writes the elements in the order of the alphabet, which the schema wants.
func (x *writer) item(i item) {
	x.open("Item")
	x.some("rasd:Address", i.address)
	if i.attached {
		x.text("rasd:AddressOnParent", strconv.Itoa(i.unit))
	}
	x.some("rasd:AllocationUnits", i.units)
	x.some("rasd:AutomaticAllocation", i.automatic)
	x.some("rasd:Connection", i.connection)
	x.text("rasd:Description", i.name)
	x.text("rasd:ElementName", i.name)
	x.some("rasd:HostResource", i.resource)
	x.text("rasd:InstanceID", i.id)
	x.some("rasd:Parent", i.parent)
	x.some("rasd:ResourceSubType", i.sub)
	x.text("rasd:ResourceType", strconv.Itoa(i.kind))
	if i.quantity > 0 {
		x.text("rasd:VirtualQuantity", strconv.FormatInt(i.quantity, 10))
	}
	if i.cores > 0 {
		x.text("vmw:CoresPerSocket", strconv.Itoa(i.cores), attr("ovf:required", "false"))
	}
	x.shut("Item")
}

func (x *writer) config(key, value string) {
	x.empty("vmw:Config", attr("ovf:required", "false"), attr("vmw:key", key), attr("vmw:value", value))
}

// ids gives out instance ids that no item of a machine has.
type ids struct {
	taken map[string]bool
	last  int
}

func identify(s System) *ids {
	i := &ids{taken: make(map[string]bool)}
	for _, c := range s.Controllers {
		i.taken[c.ID] = true
	}
	for _, d := range s.Drives {
		i.taken[d.ID] = true
	}
	for _, n := range s.NICs {
		i.taken[n.ID] = true
	}
	return i
}

func (i *ids) next() string {
	for {
		i.last++
		if s := strconv.Itoa(i.last); !i.taken[s] {
			i.taken[s] = true
			return s
		}
	}
}

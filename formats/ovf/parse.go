package ovf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"hypersdk/formats"
)

// maxEnvelope is how long a descriptor may be. The largest in the wild, with licences in many
// languages, are some 100 KiB.
const maxEnvelope = 4 << 20

// Namespaces are told apart by no reader of packages in the wild, as their writers confuse them: names
// of elements and attributes are enough.
type (
	xmlEnvelope struct {
		XMLName    xml.Name        `xml:"Envelope"`
		Files      []xmlFile       `xml:"References>File"`
		Disks      []xmlDisk       `xml:"DiskSection>Disk"`
		Networks   []xmlNetwork    `xml:"NetworkSection>Network"`
		Options    []xmlOption     `xml:"DeploymentOptionSection>Configuration"`
		Systems    []xmlSystem     `xml:"VirtualSystem"`
		Collection []xmlCollection `xml:"VirtualSystemCollection"`
	}
	xmlCollection struct {
		Systems    []xmlSystem     `xml:"VirtualSystem"`
		Collection []xmlCollection `xml:"VirtualSystemCollection"`
	}
	xmlFile struct {
		ID          string `xml:"id,attr"`
		Href        string `xml:"href,attr"`
		Size        string `xml:"size,attr"`
		Compression string `xml:"compression,attr"`
		ChunkSize   string `xml:"chunkSize,attr"`
	}
	xmlDisk struct {
		ID        string `xml:"diskId,attr"`
		File      string `xml:"fileRef,attr"`
		Capacity  string `xml:"capacity,attr"`
		Units     string `xml:"capacityAllocationUnits,attr"`
		Populated string `xml:"populatedSize,attr"`
		Format    string `xml:"format,attr"`
		Parent    string `xml:"parentRef,attr"`
	}
	xmlNetwork struct {
		Name        string `xml:"name,attr"`
		Description string `xml:"Description"`
	}
	xmlOption struct {
		ID      string `xml:"id,attr"`
		Default string `xml:"default,attr"`
	}
	xmlSystem struct {
		ID         string        `xml:"id,attr"`
		Name       string        `xml:"Name"`
		Annotation string        `xml:"AnnotationSection>Annotation"`
		OS         xmlOS         `xml:"OperatingSystemSection"`
		Hardware   []xmlHardware `xml:"VirtualHardwareSection"`
	}
	xmlOS struct {
		ID          string `xml:"id,attr"`
		Type        string `xml:"osType,attr"`
		Description string `xml:"Description"`
	}
	xmlHardware struct {
		Type     string      `xml:"System>VirtualSystemType"`
		Items    []xmlItem   `xml:"Item"`
		Storage  []xmlItem   `xml:"StorageItem"`
		Ethernet []xmlItem   `xml:"EthernetPortItem"`
		Config   []xmlConfig `xml:"Config"`
	}
	xmlConfig struct {
		Key   string `xml:"key,attr"`
		Value string `xml:"value,attr"`
	}
	xmlItem struct {
		Configuration   string   `xml:"configuration,attr"`
		Bound           string   `xml:"bound,attr"`
		Address         string   `xml:"Address"`
		AddressOnParent string   `xml:"AddressOnParent"`
		Units           string   `xml:"AllocationUnits"`
		Automatic       string   `xml:"AutomaticAllocation"`
		Connection      string   `xml:"Connection"`
		Name            string   `xml:"ElementName"`
		Caption         string   `xml:"Caption"` // its name in OVF 0.9
		HostResource    []string `xml:"HostResource"`
		ID              string   `xml:"InstanceID"`
		OldID           string   `xml:"InstanceId"`
		Parent          string   `xml:"Parent"`
		SubType         string   `xml:"ResourceSubType"`
		Type            string   `xml:"ResourceType"`
		Quantity        string   `xml:"VirtualQuantity"`
		CoresPerSocket  string   `xml:"CoresPerSocket"`
	}
)

// ReadEnvelope reads a descriptor.
func ReadEnvelope(r io.Reader) (*Envelope, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxEnvelope+1))
	if err != nil {
		return nil, fmt.Errorf("ovf: descriptor: %w", err)
	}
	if len(b) > maxEnvelope {
		return nil, fmt.Errorf("ovf: descriptor: longer than %d bytes: %w", maxEnvelope, formats.ErrFormat)
	}
	d := xml.NewDecoder(bytes.NewReader(b))
	d.CharsetReader = charset
	var x xmlEnvelope
	if err := d.Decode(&x); err != nil {
		kind := formats.ErrCorrupt
		if syntax := (*xml.SyntaxError)(nil); !errors.As(err, &syntax) && !errors.Is(err, io.ErrUnexpectedEOF) {
			kind = formats.ErrFormat
		}
		return nil, fmt.Errorf("ovf: descriptor: %w: %w", err, kind)
	}
	e, err := x.envelope()
	if err != nil {
		return nil, fmt.Errorf("ovf: descriptor: %w", err)
	}
	return e, e.check()
}

// charset reads the encodings of one byte a character that old tools write.
func charset(name string, r io.Reader) (io.Reader, error) {
	switch strings.ToLower(name) {
	case "us-ascii", "utf8":
		return r, nil
	case "iso-8859-1", "windows-1252":
		b, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		var out strings.Builder
		for _, c := range b {
			out.WriteRune(rune(c))
		}
		return strings.NewReader(out.String()), nil
	}
	return nil, fmt.Errorf("encoding %q: %w", name, formats.ErrFormat)
}

func (x *xmlEnvelope) envelope() (*Envelope, error) {
	e := &Envelope{}
	for _, f := range x.Files {
		g := File{ID: f.ID, Href: strings.TrimPrefix(f.Href, "./")}
		switch strings.ToLower(f.Compression) {
		case "gzip":
			g.Gzip = true
		case "", "identity":
		default:
			return nil, fmt.Errorf("file %q: compression %q: %w", f.ID, f.Compression, formats.ErrFormat)
		}
		var err error
		if g.Size, err = number(f.Size); err != nil {
			return nil, fmt.Errorf("file %q: size: %w", f.ID, err)
		}
		if g.ChunkSize, err = number(f.ChunkSize); err != nil {
			return nil, fmt.Errorf("file %q: chunk size: %w", f.ID, err)
		}
		e.Files = append(e.Files, g)
	}
	for _, d := range x.Disks {
		g := Disk{ID: d.ID, File: d.File, Format: d.Format, Parent: d.Parent}
		if d.Capacity == "" {
			return nil, fmt.Errorf("disk %q: no capacity: %w", d.ID, formats.ErrCorrupt)
		}
		var err error
		if g.Capacity, err = bytesOf(d.Capacity, d.Units); err != nil {
			return nil, fmt.Errorf("disk %q: capacity: %w", d.ID, err)
		}
		if g.Populated, err = number(d.Populated); err != nil {
			return nil, fmt.Errorf("disk %q: populated size: %w", d.ID, err)
		}
		e.Disks = append(e.Disks, g)
	}
	for _, n := range x.Networks {
		e.Networks = append(e.Networks, Network{Name: n.Name, Description: strings.TrimSpace(n.Description)})
	}
	option := ""
	for i, o := range x.Options {
		if i == 0 || o.Default == "true" || o.Default == "1" {
			option = o.ID
		}
	}
	systems := x.Systems
	for _, c := range x.Collection {
		systems = append(systems, c.all()...)
	}
	for _, s := range systems {
		g, err := s.system(option)
		if err != nil {
			return nil, fmt.Errorf("machine %q: %w", s.ID, err)
		}
		e.Systems = append(e.Systems, g)
	}
	return e, nil
}

func (c xmlCollection) all() []xmlSystem {
	all := c.Systems
	for _, inner := range c.Collection {
		all = append(all, inner.all()...)
	}
	return all
}

// system reads a machine as its deployment option has it.
func (s xmlSystem) system(option string) (System, error) {
	g := System{ID: s.ID, Name: strings.TrimSpace(s.Name), Annotation: s.Annotation, Firmware: BIOS}
	if g.Name == "" {
		g.Name = s.ID
	}
	g.OS = OS{Type: s.OS.Type, Description: strings.TrimSpace(s.OS.Description)}
	if id, err := strconv.ParseUint(s.OS.ID, 10, 16); err == nil {
		g.OS.ID = int(id)
	}
	if len(s.Hardware) == 0 {
		return g, fmt.Errorf("no virtual hardware: %w", formats.ErrCorrupt)
	}
	h := s.Hardware[0]
	if types := strings.FieldsFunc(h.Type, func(r rune) bool { return r == ' ' || r == ',' || r == '\n' || r == '\t' }); len(types) > 0 {
		g.HardwareVersion = types[0]
	}
	for _, c := range h.Config {
		switch {
		case strings.EqualFold(c.Key, "firmware"):
			if g.Firmware = Firmware(strings.ToLower(c.Value)); g.Firmware != BIOS && g.Firmware != EFI {
				return g, fmt.Errorf("firmware %q: %w", c.Value, formats.ErrFormat)
			}
		case c.Key == "bootOptions.efiSecureBootEnabled":
			g.SecureBoot = strings.EqualFold(c.Value, "true")
		default:
			g.Config = append(g.Config, Setting(c))
		}
	}
	items := append(append(h.Items, h.Storage...), h.Ethernet...)
	for _, item := range chosen(items, option) {
		if err := item.into(&g); err != nil {
			return g, fmt.Errorf("item %q (%s): %w", item.id(), item.name(), err)
		}
	}
	return g, nil
}

// chosen are the items of a deployment option: one that names it stands for one of the same id that
// names none, and one that names another option, or the bounds of a range, is left out.
func chosen(items []xmlItem, option string) []xmlItem {
	var out []xmlItem
	at := make(map[string]int)
	for _, i := range items {
		if i.Bound != "" && i.Bound != "normal" {
			continue
		}
		named := false
		for _, c := range strings.Fields(i.Configuration) {
			named = named || c == option
		}
		if i.Configuration != "" && !named {
			continue
		}
		j, seen := at[i.id()]
		switch {
		case !seen || i.id() == "":
			at[i.id()] = len(out)
			out = append(out, i)
		case named:
			out[j] = i
		}
	}
	return out
}

func (i xmlItem) id() string {
	if i.ID == "" {
		return strings.TrimSpace(i.OldID)
	}
	return strings.TrimSpace(i.ID)
}

func (i xmlItem) name() string {
	if i.Name == "" {
		return strings.TrimSpace(i.Caption)
	}
	return strings.TrimSpace(i.Name)
}

// Types of items: CIM_ResourceAllocationSettingData.ResourceType.
const (
	typeCPU      = 3
	typeMemory   = 4
	typeIDE      = 5
	typeSCSI     = 6
	typeEthernet = 10
	typeFloppy   = 14
	typeCD       = 15
	typeDVD      = 16
	typeDisk     = 17
	typeStorage  = 20 // another kind of controller: SATA, NVMe
	typeUSB      = 23
)

// into adds what an item is to a machine; kinds that have no field are left out.
func (i xmlItem) into(s *System) error {
	kind, err := number(i.Type)
	if err != nil {
		return fmt.Errorf("resource type: %w", err)
	}
	switch kind {
	case typeCPU:
		if s.CPUs, err = small(i.Quantity); err == nil && i.CoresPerSocket != "" {
			s.CoresPerSocket, err = small(i.CoresPerSocket)
		}
	case typeMemory:
		s.Memory, err = bytesOf(i.Quantity, i.Units)
	case typeIDE, typeSCSI, typeStorage, typeUSB:
		err = i.controller(s, int(kind))
	case typeEthernet:
		n := NIC{ID: i.id(), Name: i.name(), Network: i.Connection, Model: i.SubType, MAC: strings.TrimSpace(i.Address), Connected: !strings.EqualFold(i.Automatic, "false")}
		n.Unit, err = small(i.AddressOnParent)
		s.NICs = append(s.NICs, n)
	case typeDisk, typeCD, typeDVD, typeFloppy:
		err = i.drive(s, int(kind))
	}
	return err
}

func (i xmlItem) controller(s *System, kind int) error {
	c := Controller{ID: i.id(), Model: i.SubType}
	switch sub := strings.ToLower(i.SubType); {
	case kind == typeIDE:
		c.Bus = IDE
	case kind == typeSCSI:
		c.Bus = SCSI
	case kind == typeUSB, strings.Contains(sub, "usb"):
		c.Bus = USB
	case strings.Contains(sub, "nvme"):
		c.Bus = NVMe
	default:
		c.Bus = SATA
	}
	// Where VMware says what a USB controller is in its Address, a bus has no number.
	if n, err := small(i.Address); err == nil {
		c.Number = n
	}
	s.Controllers = append(s.Controllers, c)
	return nil
}

func (i xmlItem) drive(s *System, kind int) error {
	d := Drive{ID: i.id(), Name: i.name(), Controller: strings.TrimSpace(i.Parent), Kind: CDROM}
	switch kind {
	case typeDisk:
		d.Kind = HardDisk
	case typeFloppy:
		d.Kind = Floppy
	}
	var err error
	if d.Unit, err = small(i.AddressOnParent); err != nil {
		return err
	}
	for _, r := range i.HostResource {
		r = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(r), "ovf:"), "/")
		switch what, id, _ := strings.Cut(r, "/"); what {
		case "disk":
			d.Disk = id
		case "file":
			d.File = id
		case "":
		default:
			return fmt.Errorf("host resource %q: %w", r, formats.ErrFormat)
		}
	}
	s.Drives = append(s.Drives, d)
	return nil
}

// number reads a count; "" is 0.
func number(s string) (int64, error) {
	if s = strings.TrimSpace(s); s == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no number: %w", s, formats.ErrCorrupt)
	}
	return n, nil
}

// small reads a count of things that nobody has a million of; "" is 0.
func small(s string) (int, error) {
	n, err := number(s)
	if err == nil && n > 1<<20 {
		err = fmt.Errorf("%d is too much: %w", n, formats.ErrCorrupt)
	}
	return int(n), err
}

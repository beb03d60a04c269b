package vmdk

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"hypersdk/formats"
)

// maxDescriptor is how long a descriptor may be. VMware's fit in 20 sectors; a disk split into a
// thousand extents needs 64 KiB.
const maxDescriptor = 64 << 10

// maxExtents bounds the files that a disk may keep open.
const maxExtents = 2048

// noParent is the content id of the parent of a disk that has none.
const noParent = 0xffffffff

// Descriptor is the text that says what a disk is made of ("The Descriptor File").
type Descriptor struct {
	Version    int      `json:"version"`
	Encoding   string   `json:"encoding,omitempty"`
	CID        uint32   `json:"cid"`
	ParentCID  uint32   `json:"parent_cid"` // 0xffffffff: no parent
	CreateType string   `json:"create_type"`
	Parent     string   `json:"parent,omitempty"` // file name of the parent, as stored
	Extents    []Extent `json:"extents"`
	// Fields are the other header fields and the disk data base (names that begin with "ddb."), in
	// their order.
	Fields []Field `json:"fields,omitempty"`
}

// Field is one line "name = value".
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Extent is one line of a descriptor: a stretch of the disk, and where it is stored.
type Extent struct {
	Access  string `json:"access"`         // RW, RDONLY, NOACCESS
	Sectors int64  `json:"sectors"`        // of the disk, 512 bytes each
	Type    string `json:"type"`           // FLAT, SPARSE, ZERO, VMFS, VMFSSPARSE, SESPARSE
	Name    string `json:"name,omitempty"` // of the file, as stored
	Offset  int64  `json:"offset"`         // of the first sector in the file, FLAT and VMFS only
}

// Field answers the value of a field, or "".
func (d *Descriptor) Field(name string) string {
	for _, f := range d.Fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// HasParent says whether what the disk does not hold is another disk's.
func (d *Descriptor) HasParent() bool { return d.ParentCID != noParent || d.Parent != "" }

// size is that of the disk in bytes.
func (d *Descriptor) size() int64 {
	n := int64(0)
	for _, e := range d.Extents {
		n += e.Sectors
	}
	return n * sector
}

// beginsDescriptor says whether b begins like a descriptor: comments and blank lines, then a line
// "version=" and a digit.
func beginsDescriptor(b []byte) bool {
	comment := false
	for len(b) > 0 {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0:
		case line[0] == '#':
			comment = comment || bytes.EqualFold(bytes.TrimSpace(line[1:]), []byte("Disk DescriptorFile"))
		case comment && !whole:
			return true // the line may go on
		default:
			name, value, ok := bytes.Cut(line, []byte("="))
			value = bytes.TrimSpace(value)
			return ok && bytes.EqualFold(bytes.TrimSpace(name), []byte("version")) && len(value) == 1 && value[0] >= '0' && value[0] <= '9'
		}
		if !whole {
			break
		}
		b = rest
	}
	return comment
}

// parseDescriptor reads a descriptor; what follows a NUL is padding.
func parseDescriptor(b []byte) (*Descriptor, error) {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	if len(b) > maxDescriptor {
		return nil, fmt.Errorf("descriptor: longer than %d bytes: %w", maxDescriptor, formats.ErrCorrupt)
	}
	if !beginsDescriptor(b) {
		return nil, fmt.Errorf("descriptor: no version: %w", formats.ErrFormat)
	}
	p := parser{d: &Descriptor{ParentCID: noParent, CID: noParent}}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("descriptor: line %d: %w", i+1, err)
		}
	}
	return p.d, p.finish()
}

type parser struct {
	d     *Descriptor
	total int64
}

func (p *parser) line(s string) error {
	if word, rest, ok := strings.Cut(s, " "); ok && isAccess(word) {
		return p.extent(strings.ToUpper(word), strings.TrimSpace(rest))
	}
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		// Some programs leave remarks of their own; they say nothing of the disk.
		return nil
	}
	return p.field(strings.TrimSpace(name), unquote(strings.TrimSpace(value)))
}

func isAccess(s string) bool {
	return strings.EqualFold(s, "RW") || strings.EqualFold(s, "RDONLY") || strings.EqualFold(s, "NOACCESS")
}

func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

func (p *parser) field(name, value string) error {
	d := p.d
	id := func(to *uint32) error {
		n, err := strconv.ParseUint(value, 16, 32)
		if err != nil {
			return fmt.Errorf("%s %q is no 32-bit number in hexadecimal: %w", name, value, formats.ErrCorrupt)
		}
		*to = uint32(n)
		return nil
	}
	switch strings.ToLower(name) {
	case "version":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 4 {
			return fmt.Errorf("version %q: %w", value, formats.ErrFormat)
		}
		d.Version = n
	case "encoding":
		d.Encoding = value
	case "cid":
		return id(&d.CID)
	case "parentcid":
		return id(&d.ParentCID)
	case "createtype":
		d.CreateType = value
	case "parentfilenamehint":
		d.Parent = value
	default:
		d.Fields = append(d.Fields, Field{Name: name, Value: value})
	}
	return nil
}

// extent reads what follows the access of an extent: sectors, type, "name", offset.
func (p *parser) extent(access, s string) error {
	e := Extent{Access: access}
	count, s, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n <= 0 || n > maxSectors-p.total {
		return fmt.Errorf("an extent of %q sectors: %w", count, formats.ErrCorrupt)
	}
	if len(p.d.Extents) == maxExtents {
		return fmt.Errorf("more than %d extents: %w", maxExtents, formats.ErrFormat)
	}
	e.Sectors = n
	p.total += n
	kind, s, _ := strings.Cut(strings.TrimSpace(s), " ")
	e.Type = strings.ToUpper(kind)
	if s = strings.TrimSpace(s); s != "" {
		// A name may hold blanks and even quotes; the last quote of the line ends it.
		end := strings.LastIndexByte(s, '"')
		if s[0] != '"' || end == 0 {
			return fmt.Errorf("the name of an extent is not quoted: %w", formats.ErrCorrupt)
		}
		e.Name = s[1:end]
		if offset, _, _ := strings.Cut(strings.TrimSpace(s[end+1:]), " "); offset != "" {
			if e.Offset, err = strconv.ParseInt(offset, 10, 64); err != nil || e.Offset < 0 || e.Offset > maxSectors {
				return fmt.Errorf("offset %q of an extent: %w", offset, formats.ErrCorrupt)
			}
		}
	}
	if e.Type != "ZERO" && e.Name == "" {
		return fmt.Errorf("an extent of type %q without a name: %w", e.Type, formats.ErrCorrupt)
	}
	p.d.Extents = append(p.d.Extents, e)
	return nil
}

// finish makes the names readable and checks what is due.
func (p *parser) finish() error {
	d := p.d
	if d.CreateType == "" {
		return fmt.Errorf("descriptor: no createType: %w", formats.ErrCorrupt)
	}
	if len(d.Extents) == 0 {
		return fmt.Errorf("descriptor: no extents: %w", formats.ErrCorrupt)
	}
	names := []*string{&d.Parent}
	for i := range d.Extents {
		names = append(names, &d.Extents[i].Name)
	}
	for _, name := range names {
		if strings.ContainsFunc(*name, func(r rune) bool { return r < ' ' }) {
			return fmt.Errorf("descriptor: the name %q has control characters: %w", *name, formats.ErrCorrupt)
		}
		if !utf8.ValidString(*name) && strings.EqualFold(d.Encoding, "windows-1252") {
			*name = fromWindows(*name)
		}
	}
	return nil
}

// windows1252 are the characters 0x80 to 0x9f; the others are those of Unicode.
const windows1252 = "€\u0081‚ƒ„…†‡ˆ‰Š‹Œ\u008dŽ\u008f\u0090‘’“”•–—˜™š›œ\u009džŸ"

func fromWindows(s string) string {
	high := []rune(windows1252)
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= 0x80 && c < 0xa0 {
			b.WriteRune(high[c-0x80])
		} else {
			b.WriteRune(rune(c))
		}
	}
	return b.String()
}

// adapters are the values of ddb.adapterType that VMware knows.
var adapters = []string{"lsilogic", "ide", "buslogic", "legacyESX", "pvscsi", "lsisas1068", "nvme"}

// describe is the descriptor of a new disk in one extent.
func describe(createType string, extent Extent, cid uint32, adapter string) (Descriptor, error) {
	if adapter == "" {
		adapter = adapters[0]
	}
	if !slices.Contains(adapters, adapter) {
		return Descriptor{}, fmt.Errorf("vmdk: adapter %q, which is not one of %q: %w", adapter, adapters, formats.ErrFormat)
	}
	heads, most := int64(255), int64(65535)
	if adapter == "ide" {
		heads, most = 16, 16383
	}
	cylinders := min((extent.Sectors+heads*63-1)/(heads*63), most)
	return Descriptor{
		Version: 1, Encoding: "UTF-8", CID: cid, ParentCID: noParent, CreateType: createType,
		Extents: []Extent{extent},
		Fields: []Field{
			{"ddb.adapterType", adapter},
			{"ddb.geometry.cylinders", strconv.FormatInt(cylinders, 10)},
			{"ddb.geometry.heads", strconv.FormatInt(heads, 10)},
			{"ddb.geometry.sectors", "63"},
			{"ddb.virtualHWVersion", "4"},
		},
	}, nil
}

// text is the descriptor as it is stored.
func (d *Descriptor) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=%d\n", d.Version)
	if d.Encoding != "" {
		fmt.Fprintf(&b, "encoding=%q\n", d.Encoding)
	}
	fmt.Fprintf(&b, "CID=%08x\nparentCID=%08x\ncreateType=%q\n", d.CID, d.ParentCID, d.CreateType)
	b.WriteString("\n# Extent description\n")
	for _, e := range d.Extents {
		fmt.Fprintf(&b, "%s %d %s \"%s\"", e.Access, e.Sectors, e.Type, e.Name)
		if e.Type == "FLAT" {
			fmt.Fprintf(&b, " %d", e.Offset)
		}
		b.WriteByte('\n')
	}
	b.WriteString("\n# The Disk Data Base\n#DDB\n\n")
	for _, f := range d.Fields {
		fmt.Fprintf(&b, "%s = \"%s\"\n", f.Name, f.Value)
	}
	return b.Bytes()
}

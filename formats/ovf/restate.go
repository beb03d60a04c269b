package ovf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"hypersdk/formats"
)

// Restate is a descriptor that says of the files with these ids what they are for who receives them from
// [Package.Checked] or a converter: neither compressed nor split, of a size that is not said, and the disks
// in them streamOptimized VMDKs. All else stays as it is, byte by byte, also what this package does not
// understand.
func Restate(descriptor []byte, files map[string]bool) ([]byte, error) {
	if len(files) == 0 {
		return descriptor, nil
	}
	d := xml.NewDecoder(bytes.NewReader(descriptor))
	var out []byte
	done := int64(0)
	for {
		from := d.InputOffset()
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			return append(out, descriptor[done:]...), nil
		}
		if err != nil {
			return nil, fmt.Errorf("ovf: descriptor: %w: %w", err, formats.ErrCorrupt)
		}
		start, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		change := changes(start, files)
		if change == nil {
			continue
		}
		to := d.InputOffset()
		tag, err := retag(descriptor[from:to], change)
		if err != nil {
			return nil, err
		}
		out = append(append(out, descriptor[done:from]...), tag...)
		done = to
	}
}

// changes are the new values of attributes of an element, by their local names; "" takes one away, nil
// leaves the element alone.
func changes(e xml.StartElement, files map[string]bool) map[string]string {
	ref := map[string]string{"File": "id", "Disk": "fileRef"}[e.Name.Local]
	for _, a := range e.Attr {
		if ref == "" || a.Name.Local != ref || !files[a.Value] {
			continue
		}
		if ref == "id" {
			return map[string]string{"size": "", "compression": "", "chunkSize": ""}
		}
		return map[string]string{"format": StreamVMDK}
	}
	return nil
}

// retag is a start tag with other attributes.
func retag(tag []byte, change map[string]string) ([]byte, error) {
	bad := fmt.Errorf("ovf: descriptor: %.80q: %w", tag, formats.ErrCorrupt)
	space := " \t\r\n"
	at := bytes.IndexAny(tag, space)
	if at < 0 {
		return tag, nil
	}
	out := append([]byte{}, tag[:at]...)
	for rest := tag[at:]; ; {
		trimmed := bytes.TrimLeft(rest, space)
		gap := rest[:len(rest)-len(trimmed)]
		if len(trimmed) == 0 {
			return nil, bad
		}
		if trimmed[0] == '>' || trimmed[0] == '/' {
			return append(append(out, gap...), trimmed...), nil
		}
		eq := bytes.IndexByte(trimmed, '=')
		if eq < 0 {
			return nil, bad
		}
		value := bytes.TrimLeft(trimmed[eq+1:], space)
		if len(value) < 2 || value[0] != '"' && value[0] != '\'' {
			return nil, bad
		}
		end := bytes.IndexByte(value[1:], value[0])
		if end < 0 {
			return nil, bad
		}
		name := strings.Trim(string(trimmed[:eq]), space)
		next := value[end+2:]
		_, local, ok := strings.Cut(name, ":")
		if !ok {
			local = name
		}
		switch with, known := change[local]; {
		case !known:
			out = append(out, rest[:len(rest)-len(next)]...)
		case with != "":
			out = append(append(out, gap...), name+`="`+with+`"`...)
		}
		rest = next
	}
}

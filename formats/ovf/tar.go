package ovf

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"hypersdk/formats"
)

const block = 512 // of a tar

// up is n rounded up to whole blocks.
func up(n int64) int64 { return (n + block - 1) / block * block }

// octalSize is the first size that eleven octal digits cannot hold: 8 GiB. Above it the size is stored
// in base 256, which every importer reads, while many know no PAX headers.
const octalSize = 1 << 33

// ustar is the header of a member (POSIX.1-1988).
func ustar(name string, size int64, modified time.Time) ([]byte, error) {
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("ovf: %w", err)
	}
	if len(name) > 100 {
		return nil, fmt.Errorf("ovf: the name %q is longer than the 100 bytes that fit in a ustar archive: %w", name, formats.ErrFormat)
	}
	b := make([]byte, block)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	if size < octalSize {
		copy(b[124:], fmt.Sprintf("%011o\x00", size))
	} else {
		b[124] = 0x80
		for i, v := 135, size; i > 124; i, v = i-1, v>>8 {
			b[i] |= byte(v)
		}
	}
	seconds := int64(0)
	if !modified.IsZero() {
		seconds = min(max(modified.Unix(), 0), 1<<33-1)
	}
	copy(b[136:], fmt.Sprintf("%011o\x00", seconds))
	b[156] = '0'
	copy(b[257:], "ustar\x0000")
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b, nil
}

// members are the files of an archive. Folders are passed over; what is neither is refused, as is a
// name that leads out of the package, and one that was there before.
type members struct {
	r    *tar.Reader
	seen map[string]bool
}

// maxMembers bounds the files of a package: a disk of 62 TiB in chunks of 2 GB.
const maxMembers = 1 << 15

func newMembers(r io.Reader) *members {
	return &members{r: tar.NewReader(r), seen: make(map[string]bool)}
}

// next answers the name and size of the next file, io.EOF behind the last one.
func (m *members) next() (string, int64, error) {
	for {
		h, err := m.r.Next()
		if errors.Is(err, io.EOF) {
			return "", 0, io.EOF
		}
		if err != nil {
			if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrFieldTooLong) {
				err = fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
			}
			return "", 0, fmt.Errorf("ovf: archive: %w", err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch h.Typeflag {
		case tar.TypeReg:
		case tar.TypeDir, tar.TypeXGlobalHeader:
			continue
		default:
			return "", 0, fmt.Errorf("ovf: archive: member %q is no file (type %q): %w", h.Name, h.Typeflag, formats.ErrFormat)
		}
		for key := range h.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return "", 0, fmt.Errorf("ovf: archive: member %q is stored sparsely: %w", h.Name, formats.ErrFormat)
			}
		}
		if err := checkName(name); err != nil {
			return "", 0, fmt.Errorf("ovf: archive: %w", err)
		}
		if m.seen[name] {
			return "", 0, fmt.Errorf("ovf: archive: member %q is there twice: %w", name, formats.ErrCorrupt)
		}
		if len(m.seen) == maxMembers {
			return "", 0, fmt.Errorf("ovf: archive: more than %d members: %w", maxMembers, formats.ErrCorrupt)
		}
		m.seen[name] = true
		return name, h.Size, nil
	}
}

// small reads a member of at most limit bytes.
func (m *members) small(name string, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("ovf: archive: member %q of %d bytes: %w", name, size, formats.ErrFormat)
	}
	b, err := io.ReadAll(m.r)
	if err != nil {
		return nil, fmt.Errorf("ovf: archive: member %q: %w", name, cut(err))
	}
	return b, nil
}

// cut makes an end in the middle what it is.
func cut(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
		return fmt.Errorf("%w: %w", err, formats.ErrCorrupt)
	}
	return err
}

func isDescriptor(name string) bool  { return strings.HasSuffix(strings.ToLower(name), ".ovf") }
func isManifest(name string) bool    { return strings.HasSuffix(strings.ToLower(name), ".mf") }
func isCertificate(name string) bool { return strings.HasSuffix(strings.ToLower(name), ".cert") }

// IsArchive says whether a file that begins with head (512 bytes) is an OVA: a tar whose first member
// is a descriptor.
func IsArchive(head []byte) bool {
	if len(head) < block || string(head[257:262]) != "ustar" {
		return false
	}
	name, _, _ := strings.Cut(string(head[:100]), "\x00")
	return isDescriptor(name)
}

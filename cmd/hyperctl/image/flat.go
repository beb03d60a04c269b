package image

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
)

// descriptorExt is that of a descriptor that has no name yet.
const descriptorExt = ".descriptor"

// isFlat says whether the target is two files: the disk as it is, and a descriptor that names it.
func (v *conversion) isFlat() bool {
	return v.target.Name == vmdk.Format().Name && strings.EqualFold(v.create.Subformat, vmdk.MonolithicFlat)
}

// disk is the file that the disk is written into: that of a flat VMDK lies beside its descriptor, which
// is DST.
func (v *conversion) disk() string {
	if !v.isFlat() {
		return v.dst
	}
	return strings.TrimSuffix(v.dst, vmdk.Format().Ext) + "-flat" + vmdk.Format().Ext
}

// reader is the format that the file of the disk is read in.
func (v *conversion) reader() formats.Format {
	if v.isFlat() {
		return raw.Format()
	}
	return v.target
}

// finish gives the target its name, that of the descriptor last: until it is there, the disk is none.
func (v *conversion) finish(p *part, size int64) error {
	if !v.isFlat() {
		return p.finish(v.force)
	}
	var text bytes.Buffer
	if err := vmdk.WriteDescriptor(&text, p.file, size, filepath.Base(p.final), v.create); err != nil {
		return err
	}
	name := hidden(v.dst, descriptorExt)
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, &text)
	if err == nil && !v.unsafe {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = p.finish(v.force)
	}
	if err == nil {
		err = rename(name, v.dst, v.force)
	}
	switch {
	case err != nil:
		return errors.Join(err, os.Remove(name))
	case v.unsafe:
		return nil
	}
	return syncFolder(v.dst)
}

// Package local is disk images in files of this host: how they are opened without being led astray, and
// how it is known whether they are still what they were.
package local

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
)

// File is a file, or a block device, that holds an image.
type File struct {
	*os.File
	Path     string
	Bytes    int64 // of the file or device
	Info     fs.FileInfo
	Identity Identity
}

// Open opens a file or a block device for reading; anything else is no image.
func Open(path string) (*File, error) {
	// Without O_NONBLOCK a named pipe would keep us waiting for somebody to write.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return opened(f, path)
}

// OpenIn is Open of a file below a folder, which no link leads out of. path is that of the file for
// people.
func OpenIn(root *os.Root, name, path string) (*File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return opened(f, path)
}

func opened(f *os.File, path string) (_ *File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", path, errors.Join(err, f.Close()))
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	size, err := sizeOf(f, info)
	if err != nil {
		return nil, err
	}
	return &File{File: f, Path: path, Bytes: size, Info: info, Identity: Identify(path, info)}, nil
}

func sizeOf(f *os.File, info fs.FileInfo) (int64, error) {
	switch {
	case info.Mode().IsRegular():
		return info.Size(), nil
	case device(info):
		return f.Seek(0, io.SeekEnd)
	}
	return 0, fmt.Errorf("is not a file: %w", formats.ErrFormat)
}

// device says whether a file is a block device.
func device(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// Allocated is how many bytes the file takes on its file system; of a device, all that it has.
func (f *File) Allocated() int64 {
	if st, ok := f.Info.Sys().(*syscall.Stat_t); ok && f.Info.Mode().IsRegular() {
		return st.Blocks * 512
	}
	return f.Bytes
}

// Identity is what a file is known by: whoever changes it changes this.
type Identity struct {
	Name    string `json:"name"`
	Dev     uint64 `json:"dev"`
	Ino     uint64 `json:"ino"`
	Size    int64  `json:"size"`
	Changed int64  `json:"changed"` // nanoseconds
}

// Identify is the identity of a file. That of a device says nothing of what is on it, since nothing of a
// device does.
func Identify(name string, info fs.FileInfo) Identity {
	id := Identity{Name: name, Size: info.Size(), Changed: info.ModTime().UnixNano()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		id.Dev, id.Ino = st.Dev, st.Ino
		if device(info) {
			id.Dev, id.Changed = st.Rdev, 0
		}
	}
	return id
}

// Unchanged says with an error that the file is not what it was any more: another one has its path, or
// somebody has written to it.
func (id Identity) Unchanged() error {
	info, err := os.Stat(id.Name)
	if err != nil {
		return fmt.Errorf("%s cannot be found any more: %w", id.Name, err)
	}
	now := Identify(id.Name, info)
	switch {
	case now == id:
		return nil
	case now.Dev != id.Dev || now.Ino != id.Ino:
		return fmt.Errorf("%s was replaced by another file", id.Name)
	case now.Size != id.Size:
		return fmt.Errorf("%s had %d bytes and has %d now", id.Name, id.Size, now.Size)
	}
	return fmt.Errorf("%s was written to", id.Name)
}

package cbt

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
)

// folder is the folder of a chain. Names never lead out of it, and only regular files are opened.
type folder struct {
	root *os.Root
	// step is told of everything that changes the folder or a file in it before it is done; its error
	// is what happens instead. Tests crash there. nil: nothing is told.
	step func(op, name string) error
}

const fileMode = 0o600

func (d *folder) do(op, name string) error {
	if d.step == nil {
		return nil
	}
	return d.step(op, name)
}

// open opens a regular file to be read. A pipe would wait for ever, a link could lead to another file.
func (d *folder) open(name string) (*os.File, fs.FileInfo, error) {
	is, err := d.root.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !is.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no regular file: %w", name, formats.ErrCorrupt)
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(is, info) {
		err = fmt.Errorf("%s was replaced while it was opened: %w", name, formats.ErrCorrupt)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// edit opens a file to be written, making it where it is not there. Only hidden files are edited.
func (d *folder) edit(name string) (*file, error) {
	if is, err := d.root.Lstat(name); err == nil && !is.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", name, formats.ErrCorrupt)
	}
	if err := d.do("create", name); err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, fileMode)
	if err != nil {
		return nil, err
	}
	return &file{f, d, name}, nil
}

// file is a file that is being written.
type file struct {
	*os.File
	d    *folder
	name string
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if err := f.d.do("write", f.name); err != nil {
		n, _ := f.File.WriteAt(p[:len(p)/2], off)
		return n, err
	}
	return f.File.WriteAt(p, off)
}

func (f *file) Truncate(size int64) error {
	if err := f.d.do("truncate", f.name); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

func (f *file) Sync() error {
	if err := f.d.do("sync", f.name); err != nil {
		return err
	}
	return f.File.Sync()
}

// size is the size of the file.
func (f *file) size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// sync makes names durable.
func (d *folder) sync() error {
	if err := d.do("sync", "."); err != nil {
		return err
	}
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (d *folder) rename(from, to string) error {
	if err := d.do("rename", from); err != nil {
		return err
	}
	return d.root.Rename(from, to)
}

// remove removes a file; one that is not there is no error.
func (d *folder) remove(name string) error {
	if err := d.do("remove", name); err != nil {
		return err
	}
	if err := d.root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d *folder) exists(name string) (bool, error) {
	_, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// replace makes b the content of a file, durably: it is the old one or the new one, whenever it is read.
func (d *folder) replace(name string, b []byte) error {
	fresh := name + ".new"
	if err := d.remove(fresh); err != nil {
		return err
	}
	f, err := d.edit(fresh)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.rename(fresh, name); err != nil {
		return err
	}
	return d.sync()
}

// read reads a small file.
func (d *folder) read(name string, most int64) ([]byte, error) {
	f, info, err := d.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes: %w", name, info.Size(), formats.ErrCorrupt)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// names lists the folder.
func (d *folder) names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	slices.Sort(all)
	return all, err
}

// lock takes the chain for this handle until the file is closed, or the process ends however it does.
// Who cannot write here reads without a lock where there is no file to lock: then nobody ever wrote.
func (d *folder) lock(exclusive bool) (*os.File, error) {
	how, flag := unix.LOCK_SH, os.O_RDONLY
	if exclusive {
		how, flag = unix.LOCK_EX, os.O_RDWR|os.O_CREATE
	}
	if is, err := d.root.Lstat(lockName); err == nil && !is.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", lockName, formats.ErrCorrupt)
	}
	f, err := d.root.OpenFile(lockName, flag|unix.O_NONBLOCK, fileMode)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("another process works on the chain: %w", ErrInUse)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unlock gives the chain back. To close the file is not enough: a process that somebody starts in this
// moment has it open, too, until it has become another program.
func unlock(f *os.File) error {
	return errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_UN), f.Close())
}

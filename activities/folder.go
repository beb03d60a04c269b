package activities

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hypersdk/providers"
)

// folder is the output folder of an export, held open. Everything in it is reached through its root,
// so that no link and no name leads out of it.
type folder struct {
	root *os.Root
	path string // absolute
	made bool   // by this call
	// claimFile is where it says whose the folder is, or the one file of a job that shares it.
	claimFile string
}

// openFolder opens <output>/<name>, and makes it where it is missing and create is set.
func (c Config) openFolder(t Target, create bool) (*folder, error) {
	if err := c.checkOutput(t); err != nil {
		return nil, err
	}
	out, err := c.openOutput(t.Output, create && t.Alone == "")
	if err != nil {
		return nil, fmt.Errorf("output folder: %w", pathError(err))
	}
	if t.Alone != "" {
		return &folder{root: out, path: t.Output, claimFile: claimOf(t.Alone)}, nil
	}
	defer out.Close()
	f := &folder{path: filepath.Join(t.Output, t.Folder), claimFile: claimName}
	if create {
		switch err := out.Mkdir(t.Folder, 0o750); {
		case err == nil:
			f.made = true
		case !errors.Is(err, fs.ErrExist):
			return nil, fmt.Errorf("output folder: %w", pathError(err))
		}
	}
	if st, err := out.Stat(t.Folder); err == nil && !st.IsDir() {
		return nil, refuse(providers.Invalid, "output folder %s: not a directory", f.path)
	}
	if f.root, err = out.OpenRoot(t.Folder); err != nil {
		return nil, fmt.Errorf("output folder: %w", pathError(err))
	}
	if f.made {
		err = syncDir(out)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (c Config) checkOutput(t Target) error {
	switch {
	case !filepath.IsAbs(t.Output):
		return refuse(providers.Invalid, "output path %q is not absolute", t.Output)
	case strings.ContainsRune(t.Output, 0) || cleanPath(t.Output) != strings.TrimRight(t.Output, "/") && t.Output != "/":
		return refuse(providers.Invalid, "output path %q is not clean: it may not contain '..', '.' or empty elements", t.Output)
	case t.Alone != "":
		if !plain(t.Alone) || t.Folder != "" {
			return refuse(providers.Invalid, "%q is not the name of a file", t.Alone)
		}
	case !plain(t.Folder):
		return refuse(providers.Invalid, "%q is not the name of a folder", t.Folder)
	}
	return nil
}

func cleanPath(p string) string { return filepath.Clean(p) }

// openOutput opens the folder that was asked for; where the operator has named the folders below which
// jobs may write, it is reached through one of them.
func (c Config) openOutput(path string, create bool) (*os.Root, error) {
	path = filepath.Clean(path)
	if len(c.Roots) == 0 {
		if create {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return nil, err
			}
		}
		return os.OpenRoot(path)
	}
	for _, r := range c.Roots {
		below, err := filepath.Rel(r, path)
		if err != nil || !filepath.IsLocal(below) {
			continue
		}
		root, err := os.OpenRoot(r)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		if create && below != "." {
			if err := root.MkdirAll(below, 0o755); err != nil {
				return nil, err
			}
		}
		return root.OpenRoot(below)
	}
	return nil, refuse(providers.Denied, "%s is not below a folder that jobs may write to (%s)", path, strings.Join(c.Roots, ", "))
}

func (f *folder) Close() error { return f.root.Close() }

// same says whether the path of the folder still leads to name as it is open in file.
func (f *folder) same(name string, file *os.File) bool {
	there, err := os.Lstat(filepath.Join(f.path, name))
	if err != nil {
		return false
	}
	here, err := file.Stat()
	return err == nil && os.SameFile(there, here)
}

// exists says whether there is something by that name.
func (f *folder) exists(name string) (bool, error) {
	_, err := f.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// remove removes a file; one that is not there is removed.
func (f *folder) remove(name string) error {
	if err := f.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// open opens a regular file; flag may say O_CREATE.
func (f *folder) open(name string, flag int) (*os.File, error) {
	if st, err := f.root.Lstat(name); err == nil && !st.Mode().IsRegular() {
		return nil, refuse(providers.Denied, "%s is not a regular file", filepath.Join(f.path, name))
	}
	file, err := f.root.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, pathError(err)
	}
	return file, nil
}

// lock takes a file for this process alone; what is taken by another is busy.
func (f *folder) lock(file *os.File, name string) error {
	switch err := flock(file); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return refuse(providers.Precondition, "%s is still being written by another attempt or job", filepath.Join(f.path, name))
	case err != nil:
		return fmt.Errorf("lock %s: %w", filepath.Join(f.path, name), err)
	}
	if !f.same(name, file) {
		return refuse(providers.Precondition, "%s was replaced while it was opened", filepath.Join(f.path, name))
	}
	return nil
}

// flock asks for a moment: a process that somebody starts just then has what we closed open, too, until it
// has become another program.
func flock(file *os.File) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK) && wait < 100*time.Millisecond:
			<-time.After(wait)
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// rename gives a file its name. Unless replace is set, a name that is taken is an Exists error.
func (f *folder) rename(from, to string, replace bool) error {
	if replace {
		return f.root.Rename(from, to)
	}
	dir, err := f.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	err = unix.Renameat2(int(dir.Fd()), from, int(dir.Fd()), to, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
		// A file system that cannot: link fails where the name is taken.
		if err = f.root.Link(from, to); err == nil {
			return f.root.Remove(from)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return refuse(providers.Exists, "%s appeared while the job was running; set overwrite to replace it", filepath.Join(f.path, to))
	}
	return err
}

// reserve takes the space of the first n bytes of a file, in whatever format they will be written.
func reserve(file *os.File, n int64) error {
	if n == 0 {
		return nil
	}
	for {
		err := unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return refuse(providers.Unsupported, "the file system of %s cannot reserve space; leave out thin: false", file.Name())
		case err != nil:
			return &fs.PathError{Op: "reserve", Path: file.Name(), Err: err}
		}
		return nil
	}
}

// tryReserve says whether space can be reserved in the folder.
func (f *folder) tryReserve() error {
	file, err := f.open(f.claimFile, os.O_RDWR)
	if err != nil {
		return err
	}
	defer file.Close()
	return reserve(file, 1)
}

func syncDir(r *os.Root) error {
	d, err := r.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// pathError gives an error of the file system a reason, and drops the name of the system call.
func pathError(err error) error {
	var pe *fs.PathError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return &sentence{providers.NotFound, err}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, unix.ELOOP):
		return &sentence{providers.Denied, err}
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ENXIO):
		return &sentence{providers.Invalid, err}
	case errors.As(err, &pe) && strings.Contains(pe.Err.Error(), "escapes"):
		return &sentence{providers.Denied, err}
	}
	return err
}

// Hidden names of what is being worked on.
func partName(final string) string    { return "." + final + ".part" }
func journalName(final string) string { return "." + final + ".journal" }
func digestsName(final string) string { return "." + final + ".digests" }

// claimOf is the claim on one file in a folder that others use too.
func claimOf(final string) string { return "." + final + ".job" }

const (
	manifestName = "manifest.json"
	claimName    = ".hypersdk-job.json"
)

// claim says which job, on which host, a folder belongs to. It is what keeps two jobs apart, and a
// host that was away from the files of the one that took its place.
type claim struct {
	Job   string   `json:"job"`
	Host  string   `json:"host"`
	Made  bool     `json:"made,omitempty"`  // the folder was made by the job
	Files []string `json:"files,omitempty"` // final names
	Chain bool     `json:"chain,omitempty"` // the job adds a point to the chain in the folder
	// Naming is set once the files are being given their names: by final name, the inodes of those that
	// are the job's own.
	Naming map[string]uint64 `json:"naming,omitempty"`
}

const maxClaim = 256 << 10

// readClaim reads who the folder belongs to; nobody is the zero claim.
func (f *folder) readClaim() (claim, error) {
	file, err := f.open(f.claimFile, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return claim{}, nil
	}
	if err != nil {
		return claim{}, err
	}
	defer file.Close()
	return decodeClaim(file), nil
}

func decodeClaim(r io.Reader) claim {
	var c claim
	b, err := io.ReadAll(io.LimitReader(r, maxClaim))
	if err != nil || json.Unmarshal(b, &c) != nil {
		return claim{} // torn: whoever wrote it had not begun
	}
	for _, n := range c.Files {
		if !plain(n) {
			return claim{}
		}
	}
	return c
}

// take makes the folder the job's. ended says of another job whether it has ended: then what it left
// is removed.
func (f *folder) take(ctx context.Context, mine claim, ended func(context.Context, string) (bool, error)) (before claim, err error) {
	file, err := f.open(f.claimFile, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return claim{}, err
	}
	defer file.Close()
	if err := f.lock(file, f.claimFile); err != nil {
		return claim{}, err
	}
	before = decodeClaim(file)
	mine.Made = f.made
	switch {
	case before.Job == mine.Job:
		mine.Made, mine.Naming, mine.Chain = mine.Made || before.Made, before.Naming, before.Chain
	case before.Job != "":
		over, err := ended(ctx, before.Job)
		if err != nil {
			return claim{}, err
		}
		if !over {
			return claim{}, refuse(providers.Precondition, "%s is being written by job %s", f.what(), before.Job)
		}
		if err := f.discardFiles(before.Files); err != nil {
			return claim{}, err
		}
		if before.Chain {
			if err := f.discardPoint(ctx, before.Job); err != nil {
				return claim{}, err
			}
		}
	}
	return before, writeClaim(file, mine)
}

// what is what the claim is on, for people.
func (f *folder) what() string {
	if f.claimFile == claimName {
		return f.path
	}
	return filepath.Join(f.path, strings.TrimSuffix(strings.TrimPrefix(f.claimFile, "."), ".job"))
}

// mine says whether the folder belongs to the job on this host.
func (f *folder) mine(job, host string) (claim, bool, error) {
	c, err := f.readClaim()
	return c, c.Job == job && c.Host == host, err
}

func writeClaim(file *os.File, c claim) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if err := file.Truncate(0); err != nil {
		return err
	}
	if _, err := file.WriteAt(b, 0); err != nil {
		return err
	}
	return file.Sync()
}

// discardFiles removes what is hidden of these disks.
func (f *folder) discardFiles(finals []string) error {
	var errs []error
	for _, n := range finals {
		if !plain(n) {
			continue
		}
		errs = append(errs, f.remove(partName(n)), f.remove(journalName(n)), f.remove(digestsName(n)), f.remove(packName(n)), f.removeRound(n))
	}
	if f.claimFile == claimName {
		errs = append(errs, f.remove(partName(manifestName)))
	}
	return errors.Join(errs...)
}

package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"hypersdk/formats"
	"hypersdk/formats/local"
)

// part is the hidden file in which a target is written until it is whole: locked, with the journal of
// how far it came and the digests of its blocks beside it.
type part struct {
	final  string
	unsafe bool // nothing waits for the disk
	file   *os.File
	target *local.Target // file

	journalFile, digestsFile *os.File

	journal *formats.Journal
	digests *formats.Digests // nil: nothing is digested
	from    formats.Checkpoint
	stale   bool // there was one, of another conversion
}

// hidden is the name of a part, or of a file beside it.
func hidden(final, ext string) string {
	return filepath.Join(filepath.Dir(final), "."+filepath.Base(final)+".part"+ext)
}

const (
	journalExt = ".journal"
	digestsExt = ".digests"
)

// openPart opens the part of a target, or begins it. id is everything that its bytes depend on.
func openPart(final string, id any, size int64, digested, unsafe bool) (_ *part, err error) {
	p := &part{final: final, unsafe: unsafe}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	old, err := p.openFile()
	if err != nil {
		return nil, err
	}
	p.target = local.NewTarget(p.file, unsafe)
	if p.journalFile, err = openHidden(hidden(final, journalExt)); err != nil {
		return nil, err
	}
	if p.digestsFile, err = openHidden(hidden(final, digestsExt)); err != nil {
		return nil, err
	}
	if !old {
		// Whatever journal is there belongs to a file that is gone.
		if err := p.journalFile.Truncate(0); err != nil {
			return nil, err
		}
	}
	name, err := p.identity(id)
	if err != nil {
		return nil, err
	}
	if p.journal, p.from, err = formats.OpenJournal(local.NewTarget(p.journalFile, unsafe), name); err != nil {
		return nil, err
	}
	p.stale = old && p.from.Off == 0
	if p.from.Off > 0 && p.openDigests(size, digested) {
		return p, nil
	}
	return p, p.anew(size, digested)
}

// identity names the conversion, in this very file.
func (p *part) identity(id any) (string, error) {
	st, err := p.file.Stat()
	if err != nil {
		return "", err
	}
	own := local.Identify("", st)
	b, err := json.Marshal([]any{id, own.Dev, own.Ino})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

func openHidden(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o666)
}

// openFile opens and locks the file; old says whether it was there.
func (p *part) openFile() (old bool, err error) {
	name := hidden(p.final, "")
	if _, err := os.Lstat(name); err == nil {
		old = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if p.file, err = openHidden(name); err != nil {
		return false, err
	}
	if err := unix.Flock(int(p.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errors.New("another conversion is writing it")
		}
		return false, fmt.Errorf("%s: %w", p.final, err)
	}
	here, err := p.file.Stat()
	if err != nil {
		return false, err
	}
	// Whoever held the lock may have renamed the file between our opening it and locking it.
	there, err := os.Lstat(name)
	if err != nil || !os.SameFile(here, there) || !here.Mode().IsRegular() {
		return false, fmt.Errorf("%s: another conversion was writing %s just now, try again", p.final, name)
	}
	return old, nil
}

// openDigests opens the digests of a copy that is taken up.
func (p *part) openDigests(size int64, digested bool) bool {
	if !digested {
		return true
	}
	d, err := formats.OpenDigests(local.NewTarget(p.digestsFile, p.unsafe))
	if err != nil || d.Size() != size {
		return false
	}
	p.digests = d
	return true
}

// anew forgets what was written.
func (p *part) anew(size int64, digested bool) error {
	// The journal says so before the bytes are gone.
	if err := p.journal.Record(formats.Checkpoint{}); err != nil {
		return err
	}
	p.from = formats.Checkpoint{}
	if err := local.Resize(p.file, 0); err != nil {
		return err
	}
	if !digested {
		return nil
	}
	var err error
	p.digests, err = formats.CreateDigests(local.NewTarget(p.digestsFile, p.unsafe), size)
	return err
}

// finish gives the file its name, durably. It replaces nothing unless it is told to.
func (p *part) finish(replace bool) error {
	if err := p.target.Sync(); err != nil {
		return err
	}
	if err := rename(hidden(p.final, ""), p.final, replace); err != nil {
		return err
	}
	for _, ext := range []string{journalExt, digestsExt} {
		if err := os.Remove(hidden(p.final, ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if p.unsafe {
		return nil
	}
	return syncFolder(p.final)
}

// syncFolder makes the name of a file durable.
func syncFolder(name string) error {
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// rename moves a file. Where the file system cannot refuse to replace one, it is looked for first.
func rename(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if _, serr := os.Lstat(to); serr == nil {
			err = unix.EEXIST
		} else {
			return os.Rename(from, to)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return existsError(to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func existsError(name string) error {
	return fmt.Errorf("%s exists already; --force replaces it, once the new one is whole", name)
}

// discard removes what nobody can go on with.
func (p *part) discard() error {
	var errs []error
	for _, ext := range []string{"", journalExt, digestsExt} {
		if err := os.Remove(hidden(p.final, ext)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close releases what is held; what is written stays.
func (p *part) Close() error {
	var errs []error
	if p.target != nil {
		p.target.Wait()
	}
	for _, f := range []*os.File{p.file, p.journalFile, p.digestsFile} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

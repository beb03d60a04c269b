package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
)

// digestsExt is put behind the name of a disk for its block digests.
const digestsExt = ".digests"

// part is a disk that is being written: its hidden file, locked, with its journal and its digests.
type part struct {
	*folder
	job, host, name string // of the job; name is the final one

	file, journalFile, digestsFile *os.File

	journal *formats.Journal
	digests *formats.Digests
	from    formats.Checkpoint
	sealed  formats.Digest // of a disk that is complete
	whole   bool
	// advanced is told when a checkpoint is durable.
	advanced func()
	// source says with an error that what is copied is not what it was any more; confirm that all that was
	// copied is what was meant.
	source  func() error
	confirm func(context.Context) error
}

// identity is everything that the bytes of a part depend on: a journal of other bytes is worth nothing.
type identity struct {
	Ref    providers.DiskRef
	Size   int64
	Format string
	Opt    formats.CreateOptions
	Inode  uint64
	Image  *Image       `json:",omitempty"`
	Chain  *ChainSource `json:",omitempty"`
}

func (s *Site) newPart(f *folder, job, name string) *part {
	return &part{
		folder: f, job: job, host: s.Host, name: name, advanced: func() {},
		source: func() error { return nil }, confirm: func(context.Context) error { return nil },
	}
}

// openPart opens the hidden file of a disk, or begins it, in a folder that the job has claimed.
func (s *Site) openPart(in TransferRequest) (_ *part, err error) {
	f, err := s.openFolder(in.Target, false)
	if err != nil {
		return nil, err
	}
	p := s.newPart(f, in.Job, in.File)
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := p.stillMine(); err != nil {
		return nil, err
	}
	if err := p.openFile(); err != nil {
		return nil, err
	}
	if err := p.openJournal(in); err != nil {
		return nil, err
	}
	return p, p.openDigests(in.Size)
}

// openFile opens the hidden file. One that has to be made has nothing to resume: whatever journal is
// there belongs to a file that is gone.
func (p *part) openFile() error {
	if !plain(p.name) {
		return refuse(providers.Invalid, "%q is not the name of a file", p.name)
	}
	file, err := p.open(partName(p.name), os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(p.remove(journalName(p.name)), p.remove(digestsName(p.name)), p.remove(packName(p.name))); err != nil {
			return err
		}
		file, err = p.open(partName(p.name), os.O_RDWR|os.O_CREATE|os.O_EXCL)
	}
	if err != nil {
		return err
	}
	p.file = file
	return p.lock(file, partName(p.name))
}

func (p *part) openJournal(in TransferRequest) error {
	id, err := json.Marshal(identity{in.Ref, in.Size, in.Target.Format, in.Target.createOptions(), inode(p.file), in.Image, in.Chain})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(id)
	if p.journalFile, err = p.open(journalName(p.name), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	p.journal, p.from, err = formats.OpenJournal(p.journalFile, hex.EncodeToString(sum[:]))
	return err
}

// openDigests opens the sidecar of a copy that is taken up; without it the copy begins anew.
func (p *part) openDigests(size int64) (err error) {
	if p.digestsFile, err = p.open(digestsName(p.name), os.O_RDWR|os.O_CREATE); err != nil {
		return err
	}
	if p.from.Off > 0 {
		if d, err := formats.OpenDigests(p.digestsFile); err == nil && d.Size() == size {
			p.digests = d
			p.sealed, p.whole = d.Sealed()
			p.whole = p.whole && p.from.Off == size
			return nil
		}
	}
	// The journal says so before the bytes are gone.
	if err := p.journal.Record(formats.Checkpoint{}); err != nil {
		return err
	}
	p.from = formats.Checkpoint{}
	if err := local.Resize(p.file, 0); err != nil {
		return err
	}
	p.digests, err = formats.CreateDigests(p.digestsFile, size)
	return err
}

// stillMine checks that the folder belongs to this job on this host.
func (p *part) stillMine() error {
	c, mine, err := p.mine(p.job, p.host)
	switch {
	case err != nil:
		return err
	case mine:
		return nil
	case c.Job == p.job:
		return refuse(providers.Precondition, "%s belongs to the job on host %s now", p.what(), c.Host)
	case c.Job != "":
		return refuse(providers.Precondition, "%s belongs to job %s now", p.what(), c.Job)
	}
	return p.gone()
}

// durable is told every checkpoint: the journal is advanced, once it is sure that the file is still
// where it belongs. A folder that was removed or replaced is noticed here.
func (p *part) durable(cp formats.Checkpoint) error {
	if !p.same(partName(p.name), p.file) {
		return p.gone()
	}
	if err := errors.Join(p.stillMine(), p.source()); err != nil {
		return err
	}
	if err := p.journal.Record(cp); err != nil {
		return err
	}
	p.advanced()
	return nil
}

func (p *part) gone() error {
	return refuse(providers.NotFound, "%s was removed or replaced while the disk was being written", filepath.Join(p.path, partName(p.name)))
}

// Close releases what is held; what is written stays.
func (p *part) Close() error {
	var errs []error
	for _, f := range []*os.File{p.file, p.journalFile, p.digestsFile} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(append(errs, p.folder.Close())...)
}

// noRoom says what ENOSPC means to the operator.
func (p *part) noRoom(in TransferRequest, host string, done int64, err error) error {
	left := in.Need
	if in.Size > 0 {
		left = int64(float64(in.Need) * (1 - float64(done)/float64(in.Size)))
	}
	return refuse(providers.Exhausted, "no space left in %s on host %s: about %s more is needed for %s; the job goes on when there is room (%w)",
		p.path, host, bytesText(max(left, 1<<20)), p.name, err)
}

func inode(f *os.File) uint64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return inodeOf(st)
}

// allocated is the bytes that a file takes on its file system.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// copyTo copies a source into the part, lays it down whole, and seals its digests.
func (p *part) copyTo(ctx context.Context, format formats.Format, in TransferRequest, src formats.Source, opt formats.CopyOptions, finishing func() func()) (formats.Result, formats.Digest, error) {
	target := local.NewTarget(p.file, false)
	defer target.Wait()
	w, err := format.Create(ctx, target, in.Size, in.Target.createOptions(), p.from)
	if err != nil {
		return formats.Result{}, formats.Digest{}, err
	}
	defer w.Close()
	if in.Target.Thick {
		if err := reserve(p.file, in.Size); err != nil {
			return formats.Result{}, formats.Digest{}, err
		}
	}
	opt.From, opt.Digests, opt.Durable = p.from, p.digests, p.durable
	res, err := formats.Copy(ctx, w, src, opt)
	if err != nil {
		return res, formats.Digest{}, err
	}
	defer finishing()()
	if err := errors.Join(p.source(), p.confirm(ctx)); err != nil {
		return res, formats.Digest{}, err
	}
	if err := w.Commit(ctx); err != nil {
		return res, formats.Digest{}, err
	}
	if err := p.file.Sync(); err != nil {
		return res, formats.Digest{}, fmt.Errorf("sync: %w", err)
	}
	if !p.same(partName(p.name), p.file) {
		return res, formats.Digest{}, p.gone()
	}
	sum, err := p.digests.Seal()
	return res, sum, err
}

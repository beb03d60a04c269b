package activities

import (
	"context"
	"crypto/sha256"
	"encoding"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"

	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// packName is the hidden name of the journal of a disk that is being moved into an archive.
func packName(final string) string { return "." + final + ".packed" }

// packSegment is how much of a disk is copied before that is made durable.
const packSegment = 64 << 20

// PackDisk moves the hidden file of a disk into the archive. Its journal says how much of it is durable
// there; the file is removed once all of it is.
func (d *Data) PackDisk(ctx context.Context, in PackRequest) (out PackedDisk, err error) {
	d.places.take(in.Job)
	attempt := activity.GetInfo(ctx).Attempt
	log := d.logger(in.Job).With("disk", in.Disk.Disk.Label, "file", in.Disk.File)
	m := newMeter(job.DiskProgress{
		Disk: string(in.Ref.Disk), File: in.Disk.File, Phase: job.Package, Total: in.Disk.Stored, Attempt: attempt,
	})
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, m)
	defer stop()

	began := time.Now()
	p := &packing{Site: d.Site, in: in, m: m, limit: limit}
	out, err = p.run(work)
	if err == nil {
		log.Info("packed", "into", in.Target.Archive(), "attempt", attempt, "from", m.now().ResumedFrom,
			"took", time.Since(began).Round(time.Millisecond).String(), "sha256", out.SHA256)
		return out, nil
	}
	return out, d.failed(ctx, log, PackActivity, p.explain(ctx, work, err))
}

// packing is one attempt to move a disk into an archive.
type packing struct {
	*Site
	in    PackRequest
	m     *meter
	limit *throttle

	folder  *folder
	archive *os.File
	journal *formats.Journal
	at      packed
}

// packed is how far a disk has got into an archive: the token of its checkpoints.
type packed struct {
	Off    int64  `json:"off"`    // of the file, that is in the archive
	Offset int64  `json:"offset"` // in the archive, where the file begins
	Stored int64  `json:"stored"` // size of the file
	Inode  uint64 `json:"inode"`  // of the file
	// Sum is the SHA-256 of what is there, hexadecimal, once that is all; State what is needed to go on
	// with it before.
	Sum   string `json:"sum,omitempty"`
	State string `json:"state,omitempty"`
}

// whole says whether all of the file is in the archive.
func (p packed) whole() bool { return p.Sum != "" && p.Off == p.Stored }

// openPacked opens the journal of a disk that is moved into an archive. It is worth nothing with another
// archive, snapshot or layout of the disk.
func (f *folder) openPacked(file string, ref providers.DiskRef, size int64, t Target, archive *os.File) (*formats.Journal, *os.File, packed, error) {
	id, err := json.Marshal(identity{Ref: ref, Size: size, Format: t.Format, Opt: t.createOptions(), Inode: inode(archive)})
	if err != nil {
		return nil, nil, packed{}, err
	}
	jf, err := f.open(packName(file), os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, nil, packed{}, err
	}
	sum := sha256.Sum256(id)
	j, cp, err := formats.OpenJournal(jf, "pack "+hex.EncodeToString(sum[:]))
	if err != nil {
		return nil, nil, packed{}, errors.Join(err, jf.Close())
	}
	var at packed
	if cp.Token != "" && json.Unmarshal([]byte(cp.Token), &at) != nil {
		at = packed{}
	}
	return j, jf, at, nil
}

func (p *packing) run(ctx context.Context) (PackedDisk, error) {
	free, err := p.slot(ctx, p.m)
	if err != nil {
		return PackedDisk{}, err
	}
	defer free()
	if p.folder, err = p.openOwned(p.in.Job, p.in.Target, p.in.Target.Archive()); err != nil {
		return PackedDisk{}, err
	}
	defer p.folder.Close()
	name := partName(p.in.Target.Archive())
	if p.archive, err = p.folder.open(name, os.O_RDWR); err != nil {
		return PackedDisk{}, err
	}
	defer p.archive.Close()
	if err := p.folder.lock(p.archive, name); err != nil {
		return PackedDisk{}, err
	}
	j, jf, at, err := p.folder.openPacked(p.in.Disk.File, p.in.Ref, p.in.Size, p.in.Target, p.archive)
	if err != nil {
		return PackedDisk{}, err
	}
	defer jf.Close()
	p.journal, p.at = j, at
	if at.Offset != p.in.Offset || at.Inode != p.in.Disk.Inode || at.Stored != p.in.Disk.Stored {
		p.at = packed{Offset: p.in.Offset, Inode: p.in.Disk.Inode, Stored: p.in.Disk.Stored}
	}
	if !p.at.whole() {
		if err := p.copy(ctx); err != nil {
			return PackedDisk{}, err
		}
	}
	defer p.m.work()()
	return PackedDisk{SHA256: p.at.Sum}, p.dropPart()
}

// copy copies what is missing, a segment at a time.
func (p *packing) copy(ctx context.Context) error {
	src, err := p.folder.openDisk(p.in.Disk)
	if err != nil {
		return err
	}
	defer src.Close()
	h, err := p.at.hash()
	if err != nil {
		return err
	}
	p.m.from(p.at.Off)
	stop := activity.GetWorkerStopChannel(ctx)
	buf := make([]byte, 1<<20)
	for p.at.Off < p.at.Stored {
		end := min(p.at.Off+packSegment, p.at.Stored)
		off, err := p.segment(ctx, src, h, buf, end, stop)
		if err == nil || errors.Is(err, formats.ErrStopped) {
			err = errors.Join(err, p.durable(off, h))
		}
		if err != nil {
			return err
		}
	}
	if p.at.Stored == 0 {
		return p.durable(0, h)
	}
	return nil
}

// segment copies up to end, or until the worker stops, and answers how far it came.
func (p *packing) segment(ctx context.Context, src *os.File, h hash.Hash, buf []byte, end int64, stop <-chan struct{}) (int64, error) {
	off := p.at.Off
	for off < end {
		if err := p.limit.wait(ctx, stop, p.m, 0); err != nil {
			return off, err
		}
		select {
		case <-stop:
			return off, formats.ErrStopped
		default:
		}
		b := buf[:min(int64(len(buf)), end-off)]
		if n, err := src.ReadAt(b, off); n < len(b) {
			return off, fmt.Errorf("%s: %w", p.in.Disk.File, err)
		}
		if _, err := p.archive.WriteAt(b, p.at.Offset+off); err != nil {
			return off, err
		}
		h.Write(b)
		off += int64(len(b))
		p.m.progress(formats.Progress{Done: off, Read: off, Written: off})
	}
	return off, nil
}

// durable makes what is in the archive durable, and notes it, once it is sure that the archive is still
// where it belongs.
func (p *packing) durable(off int64, h hash.Hash) error {
	defer p.m.work()()
	if err := p.archive.Sync(); err != nil {
		return err
	}
	name := p.in.Target.Archive()
	if !p.folder.same(partName(name), p.archive) {
		return refuse(providers.NotFound, "%s was removed or replaced while the package was being written", filepath.Join(p.folder.path, partName(name)))
	}
	if err := p.stillOwned(p.folder, p.in.Job, name); err != nil {
		return err
	}
	at := p.at
	at.Off = off
	at.Sum, at.State = "", ""
	if off == at.Stored {
		at.Sum = hex.EncodeToString(h.Sum(nil))
	} else {
		state, err := h.(encoding.BinaryMarshaler).MarshalBinary()
		if err != nil {
			return err
		}
		at.State = base64.StdEncoding.EncodeToString(state)
	}
	token, err := json.Marshal(at)
	if err != nil {
		return err
	}
	if err := p.journal.Record(formats.Checkpoint{Off: off, Token: string(token)}); err != nil {
		return err
	}
	p.at = at
	return nil
}

// hash is the sum of what is in the archive, to be gone on with.
func (p *packed) hash() (hash.Hash, error) {
	h := sha256.New()
	if p.Off == 0 {
		return h, nil
	}
	state, err := base64.StdEncoding.DecodeString(p.State)
	if err == nil {
		err = h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w: %w", err, formats.ErrCorrupt)
	}
	return h, nil
}

// dropPart removes the hidden file of the disk, which is in the archive now, and the journal of its copy.
func (p *packing) dropPart() error {
	if st, err := p.folder.root.Lstat(partName(p.in.Disk.File)); err == nil && inodeOf(st) == p.in.Disk.Inode {
		if err := p.folder.remove(partName(p.in.Disk.File)); err != nil {
			return err
		}
	}
	if err := p.folder.remove(journalName(p.in.Disk.File)); err != nil {
		return err
	}
	return syncDir(p.folder.root)
}

// explain finds out what an error of an attempt means.
func (p *packing) explain(ctx, work context.Context, err error) error {
	at := p.m.now()
	switch {
	case cancelled(ctx):
		return context.Canceled
	case errors.Is(err, formats.ErrStopped):
		return p.Paces.soon(refuse(providers.Unavailable, "the worker stops; %s of %s is in the package", bytesText(at.Done), bytesText(at.Total)))
	case work.Err() != nil && ctx.Err() == nil:
		return context.Cause(work)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return refuse(providers.Exhausted, "no space left in %s on host %s to put %s into %s: about %s more is needed; the job goes on when there is room (%w)",
			filepath.Join(p.in.Target.Output, p.in.Target.Folder), p.Name, p.in.Disk.File, p.in.Target.Archive(), bytesText(max(at.Total-at.Done, 1<<20)), err)
	}
	return err
}

// inArchive says of a disk that is to be copied that an earlier run of the job on this host has put it
// into the archive already.
func (t *transfer) inArchive() (Transferred, bool, error) {
	if t.in.Target.Archive() == "" || !plain(t.in.File) {
		return Transferred{}, false, nil
	}
	f, err := t.openOwned(t.in.Job, t.in.Target, t.in.File)
	if err != nil {
		return Transferred{}, false, err
	}
	defer f.Close()
	if there, err := f.exists(packName(t.in.File)); err != nil || !there {
		return Transferred{}, false, err
	}
	archive, err := f.open(partName(t.in.Target.Archive()), os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return Transferred{}, false, nil
	}
	if err != nil {
		return Transferred{}, false, err
	}
	defer archive.Close()
	_, jf, at, err := f.openPacked(t.in.File, t.in.Ref, t.in.Size, t.in.Target, archive)
	if err != nil {
		return Transferred{}, false, err
	}
	defer jf.Close()
	if there, err := f.exists(partName(t.in.File)); err != nil || there || !at.whole() {
		return Transferred{}, false, err // what is there is gone on with
	}
	side, err := f.open(digestsName(t.in.File), os.O_RDWR)
	if err != nil {
		return Transferred{}, false, nil // without its digests nothing could be verified
	}
	defer side.Close()
	digests, err := formats.OpenDigests(side)
	if err != nil {
		return Transferred{}, false, nil
	}
	sum, sealed := digests.Sealed()
	if !sealed || digests.Size() != t.in.Size {
		return Transferred{}, false, nil
	}
	return Transferred{Digest: sum.String(), Read: t.prior, Stored: at.Stored, Inode: at.Inode, ResumedFrom: t.in.Size}, true, nil
}

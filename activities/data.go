package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// TransferDisk copies one disk into its hidden file. An attempt goes on where the journal beside the
// file says that the last one stood, whatever ended it.
func (d *Data) TransferDisk(ctx context.Context, in TransferRequest) (out Transferred, err error) {
	d.places.take(in.Job)
	log := d.logger(in.Job).With("disk", in.Label, "file", in.File)
	attempt := activity.GetInfo(ctx).Attempt
	t := &transfer{Site: d.Site, in: in, m: newMeter(job.DiskProgress{
		Disk: string(in.Ref.Disk), File: in.File, Phase: job.Transfer, Total: in.Size, Attempt: attempt,
	})}
	t.prior = d.readBefore(in)
	defer t.noteRead()
	var leave func()
	t.limit, leave = d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, t.m)
	defer stop()

	began := time.Now()
	out, err = t.run(work, func(from int64) {
		log.Info("copying", "attempt", attempt, "size", in.Size, "from", from, "transport", in.Ref.Transport)
	})
	p := t.m.now()
	if err == nil {
		out.Attempts = attempt
		log.Info("copied", "attempt", attempt, "took", time.Since(began).Round(time.Millisecond).String(),
			"read", p.Read, "written", p.Written, "stored", out.Stored, "digest", out.Digest)
		return out, nil
	}
	log = log.With("done", p.Done, "read", p.Read)
	return out, d.failed(ctx, log, TransferActivity, t.explain(ctx, work, err))
}

// readPath is where it is noted how much of a disk was read.
func (s *Site) readPath(in TransferRequest) string {
	name := filepath.Base(in.File)
	if in.Image != nil { // whose targets may have one name in different folders
		sum := sha256.Sum256([]byte(in.Target.Output))
		name += "-" + hex.EncodeToString(sum[:4])
	}
	return filepath.Join(jobDir(s.logs.dir, in.Job), name+".read")
}

// readBefore is what earlier attempts on this host read.
func (s *Site) readBefore(in TransferRequest) int64 {
	b, err := os.ReadFile(s.readPath(in))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// noteRead notes what all attempts have read: a figure for people, so an error is none.
func (t *transfer) noteRead() {
	_ = os.WriteFile(t.readPath(t.in), strconv.AppendInt(nil, t.prior+t.m.now().Read, 10), 0o600)
}

// transfer is one attempt to copy a disk.
type transfer struct {
	*Site
	in    TransferRequest
	m     *meter
	limit *throttle
	part  *part
	prior int64 // read by earlier attempts
}

func (t *transfer) run(ctx context.Context, began func(from int64)) (Transferred, error) {
	free, err := t.slot(ctx, t.m)
	if err != nil {
		return Transferred{}, err
	}
	defer free()
	looking := sync.OnceFunc(t.m.work())
	defer looking()
	format, err := t.deps.Format(t.in.Target.Format)
	if err != nil {
		return Transferred{}, err
	}
	if out, ok, err := t.inArchive(); ok || err != nil {
		return out, err
	}
	if t.part, err = t.openPart(t.in); err != nil {
		return Transferred{}, err
	}
	defer t.part.Close()
	sum := t.part.sealed
	if !t.part.whole {
		src, release, err := t.source(ctx)
		if err != nil {
			return Transferred{}, err
		}
		defer func() { _ = release() }() // it was only read
		began(t.part.from.Off)
		t.m.from(t.part.from.Off)
		looking()
		if sum, err = t.copy(ctx, format, src); err != nil {
			return Transferred{}, err
		}
	}
	if c := t.in.Chain; c != nil && sum.String() != c.Digest {
		return Transferred{}, refuse(providers.Corrupt, "what was read of disk %q has the digest %s, point %d has %s; a check of the chain with depth data names the link", c.Disk, sum, c.Point, c.Digest)
	}
	st, err := t.part.file.Stat()
	if err != nil {
		return Transferred{}, err
	}
	p := t.m.now()
	return Transferred{
		Digest: sum.String(), Read: t.prior + p.Read, Stored: st.Size(), Inode: inode(t.part.file), ResumedFrom: p.ResumedFrom,
	}, nil
}

// slot waits until fewer disks are at work than the host may take on at once.
func (s *Site) slot(ctx context.Context, m *meter) (free func(), err error) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	default:
	}
	defer m.wait(fmt.Sprintf("a turn on its host, which works on %d disks at once", cap(s.slots)))()
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-activity.GetWorkerStopChannel(ctx):
		return nil, formats.ErrStopped
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// source opens what is copied. It is not wrapped, which would hide what it can do; release closes it, and
// what lies below it.
func (t *transfer) source(ctx context.Context) (img formats.Image, release func() error, err error) {
	if t.in.Image != nil {
		return t.openSource(ctx, *t.in.Image, t.in.Target.Format, t.in.Size)
	}
	if t.in.Chain != nil {
		return t.openPoint(ctx, *t.in.Chain, t.in.Size)
	}
	_, src, err := open[providers.DiskSource](ctx, t.Site, t.in.Connection)
	if err != nil {
		return nil, nil, err
	}
	if img, err = src.OpenDisk(ctx, t.in.Ref); err != nil {
		return nil, nil, t.refused(err)
	}
	if n := img.Size(); n != t.in.Size {
		return nil, nil, errors.Join(final(refuse(providers.Precondition, "the disk has %d bytes and had %d in its snapshot", n, t.in.Size)), img.Close())
	}
	return img, img.Close, nil
}

func (t *transfer) copy(ctx context.Context, format formats.Format, src formats.Image) (formats.Digest, error) {
	stop := activity.GetWorkerStopChannel(ctx)
	workers := t.in.Workers
	if workers == 0 {
		workers = t.Workers
	}
	t.part.advanced = t.noteRead
	if t.in.Image != nil {
		t.part.source = t.in.Image.unchanged
	}
	if c, ok := src.(providers.Confirmer); ok {
		t.part.confirm = c.Confirm
	}
	_, sum, err := t.part.copyTo(ctx, format, t.in, src, formats.CopyOptions{
		Workers: workers, Buffers: t.buffers, Progress: t.m.progress, Stop: stop,
		Pace: func(ctx context.Context, n int64) error { return t.limit.wait(ctx, stop, t.m, n) },
	}, t.m.work)
	return sum, err
}

// explain finds out what an error of an attempt means.
func (t *transfer) explain(ctx, work context.Context, err error) error {
	p := t.m.now()
	var decided *temporal.ApplicationError
	switch {
	case cancelled(ctx):
		return context.Canceled
	case errors.As(err, &decided):
		return err
	case errors.Is(err, formats.ErrStopped):
		return t.Paces.soon(refuse(providers.Unavailable, "the worker stops; %s of %s is safe", bytesText(p.Done), bytesText(t.in.Size)))
	case work.Err() != nil && ctx.Err() == nil:
		err = context.Cause(work) // cut off: what the copy says is only the echo
	case t.in.Image != nil && t.in.Image.unchanged() != nil:
		return t.in.Image.unchanged()
	case t.part != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)):
		err = t.part.noRoom(t.in, t.Name, p.Done, err)
	case errors.Is(err, fs.ErrNotExist) && t.part != nil && reasonOf(err) == providers.Unavailable:
		err = pathError(err)
	}
	if p.Done > p.ResumedFrom && reasonOf(err) == providers.Unavailable {
		return t.Paces.soon(err) // it came further: no reason to hesitate
	}
	return err
}

// VerifyDisk reads the hidden file of a disk again, from the disk and not from memory, through its
// format, and compares every block with what was received. The SHA-256 of the file is taken beside.
func (d *Data) VerifyDisk(ctx context.Context, in VerifyRequest) (out Verified, err error) {
	d.places.take(in.Job)
	attempt := activity.GetInfo(ctx).Attempt
	log := d.logger(in.Job).With("disk", in.Label, "file", in.File)
	m := newMeter(job.DiskProgress{Disk: in.Disk, File: in.File, Phase: job.Verify, Total: in.Size, Attempt: attempt})
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, m)
	defer stop()

	began := time.Now()
	out, err = d.verify(work, in, m, limit)
	if err == nil {
		log.Info("verified", "took", time.Since(began).Round(time.Millisecond).String(), "digest", in.Digest, "sha256", out.SHA256)
	}
	return out, d.failed(ctx, log, VerifyActivity, broken(ctx, work, err))
}

func (d *Data) verify(ctx context.Context, in VerifyRequest, m *meter, limit *throttle) (Verified, error) {
	free, err := d.slot(ctx, m)
	if err != nil {
		return Verified{}, err
	}
	defer free()
	f, err := d.openFolder(in.Target, false)
	if err != nil {
		return Verified{}, err
	}
	defer f.Close()
	stop := activity.GetWorkerStopChannel(ctx)
	pause := func(ctx context.Context, _ int64) error { return limit.wait(ctx, stop, m, 0) }
	if in.Target.Archive() != "" {
		return d.verifyMember(ctx, f, in, m, pause)
	}
	file, err := f.open(partName(in.File), os.O_RDONLY)
	if err != nil {
		return Verified{}, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return Verified{}, err
	}
	if err := local.DropCached(file); err != nil {
		return Verified{}, err
	}
	out := Verified{Stored: st.Size()}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hashed := make(chan error, 1)
	go func() {
		var err error
		out.SHA256, err = fileSum(ctx, file, pause, m)
		if err != nil {
			cancel(err)
		}
		hashed <- err
	}()
	err = d.compare(ctx, f, file, st.Size(), in, m, pause)
	if err != nil {
		cancel(err)
	}
	if herr := <-hashed; err == nil || errors.Is(err, context.Canceled) {
		err = herr
	}
	return out, err
}

func (d *Data) compare(ctx context.Context, f *folder, file io.ReaderAt, size int64, in VerifyRequest, m *meter, pace func(context.Context, int64) error) error {
	format, err := d.deps.Format(in.Target.Format)
	if err != nil {
		return err
	}
	side, err := f.open(digestsName(in.File), os.O_RDWR)
	if err != nil {
		return err
	}
	defer side.Close()
	digests, err := formats.OpenDigests(side)
	if err != nil {
		return err
	}
	img, err := format.Open(ctx, file, size, formats.OpenOptions{})
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(f.path, partName(in.File)), err)
	}
	defer img.Close()
	workers := in.Workers
	if workers == 0 {
		workers = d.Workers
	}
	got, err := formats.Verify(ctx, img, digests, formats.VerifyOptions{Workers: workers, Progress: m.progress, Pace: pace})
	if errors.Is(err, formats.ErrCorrupt) {
		return fmt.Errorf("the target differs from what was received: %w", err)
	}
	if err != nil {
		return err
	}
	if got.String() != in.Digest {
		return refuse(providers.Corrupt, "the target has the digest %s, what was received has %s", got, in.Digest)
	}
	return nil
}

// fileSum is the SHA-256 of a file as it is.
func fileSum(ctx context.Context, file *os.File, pace func(context.Context, int64) error, m *meter) (string, error) {
	h := sha256.New()
	b := make([]byte, 1<<20)
	for off := int64(0); ; {
		if err := pace(ctx, int64(len(b))); err != nil {
			return "", err
		}
		n, err := file.ReadAt(b, off)
		h.Write(b[:n])
		off += int64(n)
		m.touch()
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

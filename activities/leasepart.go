package activities

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/providers"
)

// wire is what stands between a connection and the copy of a disk: it holds bytes back while the job is
// paused or limited, and keeps them as they come where they are to be kept.
type wire struct {
	ctx   context.Context
	stop  <-chan struct{}
	limit *throttle
	m     *meter
	file  *os.File // nil: they are not kept
	off   int64
}

func (w *wire) Write(p []byte) (int, error) {
	select {
	case <-w.stop:
		return 0, formats.ErrStopped
	default:
	}
	if err := w.limit.wait(w.ctx, w.stop, w.m, int64(len(p))); err != nil {
		return 0, err
	}
	w.m.came(int64(len(p)))
	if w.file == nil {
		return len(p), nil
	}
	n, err := w.file.WriteAt(p, w.off)
	w.off += int64(n)
	return n, err
}

// streamOptimized is the form of VMDK that leases send.
const streamOptimized = "streamOptimized"

// keeps says whether the bytes of a disk, as the lease sends them, are the file that was asked for.
func (c *leasedCopy) keeps(l providers.Lease) bool {
	i := slices.IndexFunc(l.Disks(), func(d providers.LeasedDisk) bool { return d.ID == c.in.Ref.Disk })
	o := c.in.Target.createOptions()
	return i >= 0 && l.Disks()[i].Format == c.in.Target.Format && o.Level == 0 && o.Adapter == "" &&
		(o.Subformat == "" && o.Compression != "" || strings.EqualFold(o.Subformat, streamOptimized))
}

// keeper is the Writer of a disk whose stored form goes past it into the file. It only takes part in the
// copy so that every block is unpacked, checked and digested.
type keeper struct{ file *os.File }

// keptBlock is the block that moves through it: a grain of streamOptimized.
const keptBlock = 64 << 10

func (k keeper) BlockSize() int64                               { return keptBlock }
func (k keeper) WriteAt(p []byte, _ int64) (int, error)         { return len(p), nil }
func (k keeper) WriteZeroes(_, _ int64) error                   { return nil }
func (k keeper) Sync(context.Context) error                     { return k.file.Sync() }
func (k keeper) Commit(context.Context) error                   { return nil }
func (k keeper) Close() error                                   { return nil }
func (k keeper) Accepts(formats.Packed, int64) bool             { return true }
func (k keeper) WritePacked(_, _ int64, _ formats.Packed) error { return nil }

func (k keeper) Pack(_, _ []byte) (formats.Packed, bool) { return formats.Packed{}, false }

func (k keeper) Checkpoint(off int64) (formats.Checkpoint, error) {
	return formats.Checkpoint{Off: off}, nil
}

// restart makes a part that is not whole empty: it cannot be taken up in its middle.
func (p *part) restart(size int64) error {
	if p.from.Off == 0 {
		return nil // openPart has done so
	}
	if err := p.journal.Record(formats.Checkpoint{}); err != nil {
		return err
	}
	p.from = formats.Checkpoint{}
	if err := local.Resize(p.file, 0); err != nil {
		return err
	}
	var err error
	p.digests, err = formats.CreateDigests(p.digestsFile, size)
	return err
}

// streamTo copies a disk that comes front to back into the part. The journal hears of it only when it
// is whole; until then bytes are brought to the disk now and then so that the end does not take long.
func (p *part) streamTo(ctx context.Context, format formats.Format, in TransferRequest, src formats.Stream, keep bool, opt formats.CopyOptions, finishing func() func()) (formats.Digest, error) {
	var w formats.Writer = keeper{p.file}
	if !keep {
		var err error
		if w, err = format.Create(ctx, p.file, in.Size, in.Target.createOptions(), formats.Checkpoint{}); err != nil {
			return formats.Digest{}, err
		}
	}
	defer w.Close()
	if in.Target.Thick {
		if err := reserve(p.file, in.Size); err != nil {
			return formats.Digest{}, err
		}
	}
	opt.Digests = p.digests
	opt.Durable = func(formats.Checkpoint) error { return p.there() }
	res, err := formats.Copy(ctx, w, src, opt)
	if err != nil {
		return formats.Digest{}, err
	}
	defer finishing()()
	if err := w.Commit(ctx); err != nil {
		return formats.Digest{}, err
	}
	if err := p.file.Sync(); err != nil {
		return formats.Digest{}, fmt.Errorf("sync: %w", err)
	}
	if err := p.redigest(ctx, format, res.Late); err != nil {
		return formats.Digest{}, err
	}
	if err := p.there(); err != nil {
		return formats.Digest{}, err
	}
	sum, err := p.digests.Seal()
	if err != nil {
		return formats.Digest{}, err
	}
	return sum, p.journal.Record(formats.Checkpoint{Off: in.Size})
}

// there checks that the file is where it belongs, and the folder still the job's.
func (p *part) there() error {
	if !p.same(partName(p.name), p.file) {
		return p.gone()
	}
	return p.stillMine()
}

// redigest takes the sums of blocks that came after their turn from the file.
func (p *part) redigest(ctx context.Context, format formats.Format, late []formats.Extent) error {
	if len(late) == 0 {
		return nil
	}
	st, err := p.file.Stat()
	if err != nil {
		return err
	}
	img, err := format.Open(ctx, p.file, st.Size(), formats.OpenOptions{})
	if err != nil {
		return err
	}
	defer img.Close()
	return formats.Redigest(ctx, img, p.digests, late)
}

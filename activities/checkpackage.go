package activities

import (
	"bufio"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.temporal.io/sdk/activity"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/formats/ovf"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// CheckPackage reads an archive front to back, from the disk, as whoever imports it will, and compares
// its members with its manifest.
func (d *Data) CheckPackage(ctx context.Context, in CheckPackageRequest) (out CheckedPackage, err error) {
	d.places.take(in.Job)
	log := d.logger(in.Job).With("file", in.Target.Archive())
	m := newMeter(job.DiskProgress{Phase: job.Verify, File: in.Target.Archive(), Attempt: activity.GetInfo(ctx).Attempt})
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, m)
	defer stop()
	out, err = d.checkPackage(work, in, m, limit)
	if err == nil {
		log.Info("the package is what its manifest says", "stored", out.Stored, "sha256", out.SHA256)
	}
	return out, d.failed(ctx, log, CheckPackageActivity, broken(ctx, work, err))
}

func (d *Data) checkPackage(ctx context.Context, in CheckPackageRequest, m *meter, limit *throttle) (CheckedPackage, error) {
	free, err := d.slot(ctx, m)
	if err != nil {
		return CheckedPackage{}, err
	}
	defer free()
	f, err := d.openFolder(in.Target, false)
	if err != nil {
		return CheckedPackage{}, err
	}
	defer f.Close()
	file, err := f.open(partName(in.Target.Archive()), os.O_RDONLY)
	if err != nil {
		return CheckedPackage{}, err
	}
	defer file.Close()
	if err := local.DropCached(file); err != nil {
		return CheckedPackage{}, err
	}
	h := sha256.New()
	stop := activity.GetWorkerStopChannel(ctx)
	r := &paced{r: io.TeeReader(file, h), wait: func() error { return limit.wait(ctx, stop, m, 0) }, m: m}
	if err := readPackage(ctx, bufio.NewReaderSize(r, 1<<20)); err != nil {
		return CheckedPackage{}, fmt.Errorf("%s: %w", filepath.Join(f.path, in.Target.Archive()), err)
	}
	return CheckedPackage{SHA256: hex.EncodeToString(h.Sum(nil)), Stored: r.n}, nil
}

// readPackage reads all of an archive, and compares it with its manifest, which must be there.
func readPackage(ctx context.Context, r io.Reader) error {
	o, err := ovf.NewReader(r)
	if err != nil {
		return err
	}
	for {
		if _, err = o.Next(ctx); err != nil {
			break
		}
	}
	if !errors.Is(err, io.EOF) {
		return err
	}
	if len(o.Manifest()) == 0 {
		return fmt.Errorf("it has no manifest: %w", formats.ErrCorrupt)
	}
	_, err = io.Copy(io.Discard, r) // what is behind the last member
	return err
}

// paced reads while the job may go on.
type paced struct {
	r    io.Reader
	wait func() error
	m    *meter
	n    int64
}

func (p *paced) Read(b []byte) (int, error) {
	if err := p.wait(); err != nil {
		return 0, err
	}
	n, err := p.r.Read(b)
	p.n += int64(n)
	p.m.touch()
	return n, err
}

// verifyMember reads a disk in the archive of a package again, and compares every block of it with what
// was received. The sum of the file is what the manifest of the package says, which CheckPackage proves.
func (d *Data) verifyMember(ctx context.Context, f *folder, in VerifyRequest, m *meter, pace func(context.Context, int64) error) (Verified, error) {
	file, err := f.open(partName(in.Target.Archive()), os.O_RDONLY)
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
	p, err := ovf.Index(ctx, file, st.Size())
	if err != nil {
		return Verified{}, fmt.Errorf("%s: %w", filepath.Join(f.path, in.Target.Archive()), err)
	}
	for _, member := range p.Envelope.Files {
		if member.Href != in.File {
			continue
		}
		o, err := p.OpenFile(member)
		if err != nil {
			return Verified{}, err
		}
		defer o.Close()
		out := Verified{Stored: o.Size}
		for _, s := range p.Manifest {
			if s.Name == in.File && s.Hash == crypto.SHA256 {
				out.SHA256 = hex.EncodeToString(s.Sum)
			}
		}
		return out, d.compare(ctx, f, o, o.Size, in, m, pace)
	}
	return Verified{}, refuse(providers.Corrupt, "%s has no %s in it", filepath.Join(f.path, in.Target.Archive()), in.File)
}

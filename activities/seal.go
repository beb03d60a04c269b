package activities

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"

	"go.temporal.io/sdk/activity"

	"hypersdk/formats/ovf"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// SealPackage makes a package whole: it puts the sums of the disks into the archive, or writes the
// descriptor and the manifest that lie beside the disks. Doing it again gives the same files.
func (d *Data) SealPackage(ctx context.Context, in PackageRequest) (out SealedPackage, err error) {
	d.places.take(in.Job)
	log := d.logger(in.Job)
	m := newMeter(job.DiskProgress{Phase: job.Package, Attempt: activity.GetInfo(ctx).Attempt})
	limit, leave := d.limits.join(in.Job, in.Limits)
	defer leave()
	work, stop := d.watch(ctx, m)
	defer stop()
	out, err = d.seal(work, in, m, limit)
	if err == nil {
		for _, f := range out.Files {
			log.Info("package sealed", "file", f.Name, "stored", f.Stored)
		}
	}
	return out, d.failed(ctx, log, SealActivity, broken(ctx, work, err))
}

func (d *Data) seal(ctx context.Context, in PackageRequest, m *meter, limit *throttle) (SealedPackage, error) {
	f, err := d.openOwned(in.Job, in.Target, in.Target.Base)
	if err != nil {
		return SealedPackage{}, err
	}
	defer f.Close()
	if in.Target.Archive() != "" {
		file, err := f.sealArchive(ctx, in)
		return SealedPackage{Files: []FinishFile{file}}, err
	}
	stop := activity.GetWorkerStopChannel(ctx)
	pace := func(ctx context.Context, _ int64) error { return limit.wait(ctx, stop, m, 0) }
	for i := range in.Disks {
		if err := d.sumOf(ctx, f, &in.Disks[i], pace, m); err != nil {
			return SealedPackage{}, err
		}
	}
	env, err := d.describe(ctx, f, in)
	if err != nil {
		return SealedPackage{}, err
	}
	return f.sealFolder(in, env)
}

// sumOf reads a disk whose sum nobody has taken yet: the export is not verified.
func (d *Data) sumOf(ctx context.Context, f *folder, disk *PackagedDisk, pace func(context.Context, int64) error, m *meter) error {
	if disk.SHA256 != "" {
		return nil
	}
	file, err := f.openDisk(*disk)
	if err != nil {
		return err
	}
	defer file.Close()
	disk.SHA256, err = fileSum(ctx, file, pace, m)
	return err
}

// manifestOf are the sums of the disks of a package.
func (in PackageRequest) manifestOf() (ovf.Manifest, error) {
	var out ovf.Manifest
	for _, d := range in.Disks {
		sum, err := hex.DecodeString(d.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return nil, refuse(providers.Invalid, "%q is not the SHA-256 of %s", d.SHA256, d.File)
		}
		out = append(out, ovf.Sum{Name: d.File, Hash: crypto.SHA256, Sum: sum})
	}
	return out, nil
}

// sealArchive writes the sums into the archive.
func (f *folder) sealArchive(ctx context.Context, in PackageRequest) (FinishFile, error) {
	sums, err := in.manifestOf()
	if err != nil {
		return FinishFile{}, err
	}
	name := partName(in.Target.Archive())
	file, err := f.open(name, os.O_RDWR)
	if err != nil {
		return FinishFile{}, err
	}
	defer file.Close()
	if err := f.lock(file, name); err != nil {
		return FinishFile{}, err
	}
	st, err := file.Stat()
	if err != nil {
		return FinishFile{}, err
	}
	if err := ovf.Seal(ctx, file, st.Size(), sums, nil); err != nil {
		return FinishFile{}, fmt.Errorf("%s: %w", in.Target.Archive(), err)
	}
	return FinishFile{Name: in.Target.Archive(), Inode: inodeOf(st), Stored: st.Size()}, file.Sync()
}

// sealFolder writes the descriptor and the manifest, hidden, beside the hidden disks.
func (f *folder) sealFolder(in PackageRequest, env ovf.Envelope) (SealedPackage, error) {
	var descriptor, manifest bytes.Buffer
	if _, err := env.WriteTo(&descriptor); err != nil {
		return SealedPackage{}, err
	}
	sums, err := in.manifestOf()
	if err != nil {
		return SealedPackage{}, err
	}
	sum := sha256.Sum256(descriptor.Bytes())
	all := append(ovf.Manifest{{Name: in.Target.descriptor(), Hash: crypto.SHA256, Sum: sum[:]}}, sums...)
	if _, err := all.WriteTo(&manifest); err != nil {
		return SealedPackage{}, err
	}
	var out SealedPackage
	for _, w := range []struct {
		name string
		b    []byte
	}{{in.Target.descriptor(), descriptor.Bytes()}, {in.Target.sums(), manifest.Bytes()}} {
		file, err := f.sealFile(w.name, w.b)
		if err != nil {
			return SealedPackage{}, err
		}
		out.Files = append(out.Files, file)
	}
	return out, syncDir(f.root)
}

// sealFile writes a small file of a package under its hidden name.
func (f *folder) sealFile(name string, b []byte) (out FinishFile, err error) {
	file, err := f.open(partName(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return out, err
	}
	defer file.Close()
	if _, err := file.Write(b); err != nil {
		return out, err
	}
	if err := file.Sync(); err != nil {
		return out, err
	}
	st, err := file.Stat()
	if err != nil {
		return out, err
	}
	sum := sha256.Sum256(b)
	return FinishFile{Name: name, Inode: inodeOf(st), Stored: st.Size(), SHA256: hex.EncodeToString(sum[:])}, nil
}

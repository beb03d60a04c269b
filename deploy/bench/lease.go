package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// leases compares the transfer under a lease with curl of the same URL and sync, and with what people do
// with the file then.
func (b *bench) leases(ctx context.Context) error {
	if _, err := b.up(); err != nil {
		return err
	}
	var curl, then []time.Duration
	packed, plain, verified := []time.Duration{}, []time.Duration{}, []time.Duration{}
	if _, _, err := b.curlLease(ctx); err != nil { // the fake vCenter packs the disk the first time
		return err
	}
	for round := range b.rounds {
		c, t, err := b.curlLease(ctx)
		if err != nil {
			return err
		}
		curl, then = append(curl, c), append(then, t)
		for _, compress := range []bool{true, false} {
			s := job.Spec{VMPath: "big", OutputPath: filepath.Join(b.dir, "lease", fmt.Sprint(round, compress)), Format: "raw", Compress: compress}
			if s.Options.Transport = "nfc"; compress {
				s.Format = "qcow2"
			}
			if err := os.MkdirAll(s.OutputPath, 0o755); err != nil {
				return err
			}
			j, err := b.export(ctx, s)
			if err != nil {
				return err
			}
			c, v, err := b.took(ctx, j.ID)
			if err != nil {
				return err
			}
			if compress {
				packed, verified = append(packed, c), append(verified, v)
			} else {
				plain = append(plain, c)
			}
			if err := os.RemoveAll(s.OutputPath); err != nil {
				return err
			}
		}
	}
	round := func(d time.Duration) string { return d.Round(10 * time.Millisecond).String() }
	c, p, v, r, both := median(curl), median(packed), median(verified), median(plain), median(then)
	b.add("`curl` of a lease's URL of a disk of 4 GiB (2 GiB of data), and `sync -d`", round(c), "")
	b.add("transfer under a lease into qcow2, compressed; every grain unpacked, checked and digested",
		fmt.Sprintf("%s: %.2f of curl's rate; read again and compared in %s", round(p), c.Seconds()/p.Seconds(), round(v)), "at least 0.8")
	b.add("`curl` of a lease's URL and `sync -d`, then `hyperctl image convert` to raw and `sync -d`", round(both), "")
	b.add("transfer under a lease into raw", fmt.Sprintf("%s: %.2f of that time", round(r), r.Seconds()/both.Seconds()), "at most 1.2, less what overlaps")
	return nil
}

// curlLease downloads the disk of "big" under a lease, syncs it, and converts it to raw.
func (b *bench) curlLease(ctx context.Context) (curl, both time.Duration, err error) {
	file := filepath.Join(b.dir, "lease.vmdk")
	defer os.Remove(file)
	defer os.Remove(file + ".raw")
	disk, end, err := b.leaseURL(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, end()) }()
	begin := time.Now()
	for _, args := range [][]string{
		{"curl", "-fsS", "-o", file, disk}, {"sync", "-d", file},
		{filepath.Join(b.bin, "hyperctl"), "image", "convert", "-O", "raw", file, file + ".raw"}, {"sync", "-d", file + ".raw"},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return 0, 0, fmt.Errorf("%s: %w: %s", strings.Join(args[:2], " "), err, out)
		}
		if both = time.Since(begin); args[0] == "sync" && curl == 0 {
			curl = both
		}
	}
	return curl, both, nil
}

// leaseURL makes a snapshot of "big" and a lease on it; end takes both back.
func (b *bench) leaseURL(ctx context.Context) (disk string, end func() error, err error) {
	u, err := url.Parse(b.sim + "/sdk")
	if err != nil {
		return "", nil, err
	}
	u.User = url.UserPassword(user, password)
	c, err := govmomi.NewClient(ctx, u, true)
	if err != nil {
		return "", nil, err
	}
	vm, err := find.NewFinder(c.Client).VirtualMachine(ctx, "/DC0/vm/big")
	if err != nil {
		return "", nil, err
	}
	task, err := vm.CreateSnapshot(ctx, "bench", "", false, false)
	if err != nil {
		return "", nil, err
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		return "", nil, err
	}
	ref := info.Result.(types.ManagedObjectReference)
	lease, err := vm.ExportSnapshot(ctx, &ref)
	if err != nil {
		return "", nil, err
	}
	ready, err := lease.Wait(ctx, nil)
	if err != nil {
		return "", nil, err
	}
	return ready.DeviceUrl[0].Url, func() error { return errors.Join(lease.Complete(ctx), dropSnapshot(ctx, vm), c.Logout(ctx)) }, nil
}

func dropSnapshot(ctx context.Context, vm *object.VirtualMachine) error {
	task, err := vm.RemoveAllSnapshot(ctx, nil)
	if err != nil {
		return err
	}
	return task.Wait(ctx)
}

// leaseMemory is the peak of the daemon over idle with 8 disks at once under a lease.
func (b *bench) leaseMemory(ctx context.Context) error {
	for _, to := range []job.Spec{{Format: "raw"}, {Format: "qcow2", Compress: true}, {Format: "vmdk", Compress: true}} {
		if _, err := b.up(); err != nil {
			return err
		}
		if _, err := b.api.VMs(ctx, "", providers.Filter{Name: "eight"}); err != nil {
			return err
		}
		idle, err := b.status("VmRSS")
		if err != nil {
			return err
		}
		to.VMPath, to.OutputPath = "eight", filepath.Join(b.dir, "lease-memory-"+to.Format)
		to.Options.Transport = "nfc"
		if err := os.MkdirAll(to.OutputPath, 0o755); err != nil {
			return err
		}
		if _, err := b.export(ctx, to); err != nil {
			return err
		}
		peak, err := b.status("VmHWM")
		if err != nil {
			return err
		}
		if err := os.RemoveAll(to.OutputPath); err != nil {
			return err
		}
		b.add(fmt.Sprintf("memory over idle, 8 disks of 1 GiB at once under a lease, %s, compressed %t", to.Format, to.Compress),
			fmt.Sprintf("%d MiB (idle %d MiB)", peak-idle, idle), "under 200 MiB")
	}
	return nil
}

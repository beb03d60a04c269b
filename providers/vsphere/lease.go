package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats"
	"hypersdk/providers"
)

// NFC is the transport that reads the disks of a VM under an export lease: the host packs each of them
// into a streamOptimized VMDK while it is sent, front to back and never in part. It reads through a
// chain of snapshots and off every kind of datastore.
const NFC = "nfc"

const (
	// assumedTimeout is that of a lease which does not tell its own.
	assumedTimeout = time.Minute
	// lastReport is the longest that two reports of progress are apart.
	lastReport = 30 * time.Second
	// leaseEnd is how long ending a lease may take after the caller has given up.
	leaseEnd = 5 * time.Second
)

// refuseLease says why the disks of the VM cannot be read under a lease on a snapshot of ours, nil
// where nothing speaks against it.
func (m *machine) refuseLease() *providers.Error {
	no := func(r providers.Reason, msg string) *providers.Error {
		return &providers.Error{Op: "vsphere: export lease", Object: m.Self.Value, Reason: r, Msg: msg}
	}
	switch state := m.Runtime.ConnectionState; {
	case state != "" && state != types.VirtualMachineConnectionStateConnected:
		return no(providers.Precondition, "the VM is "+string(state))
	case m.Config == nil:
		return no(providers.Precondition, "the server does not tell the VM's configuration")
	case m.Config.Template:
		return no(providers.Unsupported, "it is a template, of which no snapshot can be taken; turn it into a VM first")
	case m.Config.KeyId != nil:
		return no(providers.Unsupported, "the VM is encrypted")
	}
	for _, dev := range m.Config.Hardware.Device {
		d, ok := dev.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if how, _ := mode(d.Backing); strings.HasPrefix(how, "independent") {
			return no(providers.Unsupported, label(&d.VirtualDevice)+" is independent ("+how+"), so that no snapshot has it")
		}
	}
	return nil
}

// lease is an export or import lease. A goroutine of its own reports progress, which is what keeps it alive,
// whether or not anybody reads.
type lease struct {
	p       *Provider
	ref     types.ManagedObjectReference
	object  string // for errors: "vm-42"
	timeout time.Duration
	disks   []*leasedDisk
	total   int64 // bytes that will come, estimated
	came    atomic.Int64
	clients map[string]*http.Client // by host

	ctx    context.Context // ends with the lease
	cancel context.CancelCauseFunc
	keeper sync.WaitGroup

	mu    sync.Mutex
	lost  error
	ended bool
}

// leasedDisk is a disk of a lease and where it is.
type leasedDisk struct {
	providers.LeasedDisk
	key    string // by which the manifest names it
	url    string
	client *http.Client

	mu   sync.Mutex
	owed *sums // of a reading to the end that the manifest did not speak of yet
}

// Lease asks for the disks of a VM as a snapshot has them, or of a VM that is off as they are.
func (p *Provider) Lease(ctx context.Context, ref providers.SnapshotRef) (providers.Lease, error) {
	l := &lease{p: p, object: string(ref.VM), clients: map[string]*http.Client{}}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	if err := l.open(ref); err != nil {
		err = fail("lease the disks of", l.object, err)
		return nil, errors.Join(err, l.Close())
	}
	l.keeper.Go(l.keep)
	return l, nil
}

// open asks for the lease and waits until it is ready.
func (l *lease) open(ref providers.SnapshotRef) error {
	m, err := l.p.machine(l.ctx, ref.VM, diskProps)
	if err != nil {
		return err
	}
	devices, err := l.p.leasable(l.ctx, m, ref.Snapshot)
	if err != nil {
		return err
	}
	l.p.endLeftLeases(l.ctx, l.object)
	if l.ref, err = l.p.export(l.ctx, m.Self, ref.Snapshot); err != nil {
		return err
	}
	l.p.login.keepLease(l.ref.Value, l.object)
	info, err := l.ready()
	if err != nil {
		return err
	}
	if l.timeout = time.Duration(info.LeaseTimeout) * time.Second; l.timeout <= 0 {
		l.timeout = assumedTimeout
	}
	return l.take(info, devices)
}

// leasable is the devices whose disks a lease will offer.
func (p *Provider) leasable(ctx context.Context, m *machine, snapshot providers.SnapshotID) ([]types.BaseVirtualDevice, error) {
	if m.Config == nil {
		return nil, &providers.Error{Op: "vsphere: export lease", Object: m.Self.Value, Reason: providers.Precondition,
			Msg: "the server does not tell the VM's configuration"}
	}
	if snapshot == "" {
		return m.Config.Hardware.Device, nil
	}
	if !slices.ContainsFunc(snapshots(m.Snapshot), func(s providers.Snapshot) bool { return s.ID == snapshot }) {
		return nil, &providers.Error{Op: "vsphere: export lease", Object: m.Self.Value, Reason: providers.NotFound,
			Msg: "the VM has no snapshot " + string(snapshot) + " any more"}
	}
	return p.frozen(ctx, snapshot)
}

// export begins a lease.
func (p *Provider) export(ctx context.Context, vm types.ManagedObjectReference, snapshot providers.SnapshotID) (types.ManagedObjectReference, error) {
	if snapshot == "" {
		res, err := methods.ExportVm(ctx, p.soap, &types.ExportVm{This: vm})
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return res.Returnval, nil
	}
	res, err := methods.ExportSnapshot(ctx, p.soap, &types.ExportSnapshot{This: snapshotRef(snapshot)})
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	return res.Returnval, nil
}

// ready waits until the lease can be used, for as long as the configuration allows. It is asked, like
// a task, rather than watched.
func (l *lease) ready() (*types.HttpNfcLeaseInfo, error) {
	within := time.Duration(l.p.config.LeaseReady)
	late := time.Now().Add(within)
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		one, err := load[mo.HttpNfcLease](l.ctx, l.p, l.ref, "state", "error", "info")
		switch {
		case err != nil && !passes(err):
			return nil, err
		case err == nil && one.State == types.HttpNfcLeaseStateReady && one.Info != nil:
			return one.Info, nil
		case err == nil && (one.State == types.HttpNfcLeaseStateError || one.State == types.HttpNfcLeaseStateDone):
			return nil, leaseFault(one)
		case time.Now().After(late):
			return nil, &providers.Error{Op: "vsphere: lease", Object: l.object, Reason: providers.Unavailable,
				Msg: fmt.Sprintf("the lease was not ready after %s; look at the tasks and the host of the VM", within)}
		}
		if err := sleep(l.ctx, pause); err != nil {
			return nil, err
		}
	}
}

// passes says whether a call failed for a reason that may be over with the next one.
func passes(err error) bool {
	r := reason(err)
	return r == providers.Unavailable || r == providers.Throttled
}

// leaseFault is why a lease ended that nobody here has ended.
func leaseFault(l mo.HttpNfcLease) error {
	if l.Error == nil {
		return &providers.Error{Op: "vsphere: lease", Reason: providers.Unavailable, Msg: "the server ended the lease and does not say why"}
	}
	task := newTaskError(l.Error)
	var e *taskError
	if errors.As(task, &e) {
		return &said{"the lease failed: " + e.text, task}
	}
	return task
}

// keep reports progress until the lease ends or is lost.
func (l *lease) keep() {
	every := min(l.timeout/4, lastReport)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for last := time.Now(); ; {
		if err := l.report(l.timeout / 2); err == nil {
			last = time.Now()
		} else if why := l.gone(last, err); why != nil {
			l.lose(why)
			return
		}
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// report tells how many of the bytes came.
func (l *lease) report(within time.Duration) error {
	ctx, cancel := context.WithTimeout(l.ctx, max(within, time.Second))
	defer cancel()
	percent := int32(0)
	if l.total > 0 {
		percent = int32(min(l.came.Load()*100/l.total, 99))
	}
	_, err := methods.HttpNfcLeaseProgress(ctx, l.p.soap, &types.HttpNfcLeaseProgress{This: l.ref, Percent: percent})
	return err
}

// gone says why the lease is lost after a report has failed; nil where it holds, or nobody can tell yet.
func (l *lease) gone(last time.Time, failed error) error {
	if l.ctx.Err() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, l.timeout/4+time.Second)
	defer cancel()
	one, err := load[mo.HttpNfcLease](ctx, l.p, l.ref, "state", "error")
	switch {
	case notThere(err):
		return errors.New("the server does not know it any more")
	case err == nil && one.State == types.HttpNfcLeaseStateReady:
		if time.Since(last) <= 2*l.timeout {
			return nil
		}
	case err == nil && (one.State == types.HttpNfcLeaseStateError || one.State == types.HttpNfcLeaseStateDone):
		return leaseFault(one)
	}
	if since := time.Since(last); since > l.timeout {
		return fmt.Errorf("no progress could be reported for %s: %w", since.Round(time.Second), strip(failed))
	}
	return nil
}

// look finds out whether the lease still holds.
func (l *lease) look() {
	if why := l.gone(time.Now(), nil); why != nil {
		l.lose(why)
	}
}

// lose ends all reading.
func (l *lease) lose(why error) {
	lost := &providers.Error{Op: "vsphere: lease", Object: l.object, Reason: providers.Unavailable, Msg: "the lease was lost", Err: strip(why)}
	l.mu.Lock()
	if l.lost == nil {
		l.lost = lost
	}
	l.mu.Unlock()
	l.cancel(lost)
}

// Err says why the lease no longer holds.
func (l *lease) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	if l.ctx.Err() != nil {
		return &providers.Error{Op: "vsphere: lease", Object: l.object, Reason: providers.Canceled, Err: context.Cause(l.ctx)}
	}
	return nil
}

// Disks are those that can be read.
func (l *lease) Disks() []providers.LeasedDisk {
	out := make([]providers.LeasedDisk, len(l.disks))
	for i, d := range l.disks {
		out[i] = d.LeasedDisk
	}
	return out
}

// Open reads a disk from its beginning.
func (l *lease) Open(ctx context.Context, disk providers.DiskID, tap io.Writer) (formats.Stream, error) {
	object := l.object + " disk " + string(disk)
	i := slices.IndexFunc(l.disks, func(d *leasedDisk) bool { return d.ID == disk })
	if i < 0 {
		return nil, &providers.Error{Op: "vsphere: open leased disk", Object: object, Reason: providers.NotFound, Msg: "the lease offers no such disk"}
	}
	if err := l.Err(); err != nil {
		return nil, err
	}
	return openStream(ctx, l, l.disks[i], object, tap)
}

// Commit compares what the manifest could not yet be asked about, and completes the lease.
func (l *lease) Commit(ctx context.Context) error {
	if err := l.Err(); err != nil {
		return err
	}
	for _, d := range l.disks {
		d.mu.Lock()
		owed := d.owed
		d.owed = nil
		d.mu.Unlock()
		if owed == nil {
			continue
		}
		known, err := l.compare(ctx, d, owed)
		if err != nil {
			return err
		}
		if !known {
			l.p.login.log.Info("the server tells no manifest of a disk; it was checked by its own sums only",
				"provider", Kind, "op", "export lease", "vm", l.object, "disk", string(d.ID))
		}
	}
	return l.end(func(ctx context.Context) error {
		_, err := methods.HttpNfcLeaseComplete(ctx, l.p.soap, &types.HttpNfcLeaseComplete{This: l.ref})
		return err
	})
}

// Close aborts the lease, unless it is complete.
func (l *lease) Close() error {
	return l.end(func(ctx context.Context) error { return l.p.abortLease(ctx, l.ref.Value) })
}

// end ends the lease once, whatever has become of its context. A lease that is gone has ended.
func (l *lease) end(how func(context.Context) error) error {
	l.mu.Lock()
	was := l.ended
	l.ended = true
	l.mu.Unlock()
	if was {
		return nil
	}
	l.cancel(errClosedLease)
	l.keeper.Wait()
	for _, c := range l.clients {
		c.CloseIdleConnections()
	}
	if l.ref.Value == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.ctx), leaseEnd)
	defer cancel()
	err := how(ctx)
	if err != nil && !notThere(err) {
		return fail("end the lease on", l.object, err)
	}
	l.p.login.dropLease(l.ref.Value)
	return nil
}

var errClosedLease = errors.New("the lease has ended")

func (p *Provider) abortLease(ctx context.Context, ref string) error {
	_, err := methods.HttpNfcLeaseAbort(ctx, p.soap, &types.HttpNfcLeaseAbort{This: types.ManagedObjectReference{Type: "HttpNfcLease", Value: ref}})
	return err
}

// endLeftLeases aborts what a program that was killed has left of its leases on a VM; on all VMs for "".
// Where that does not work they end by themselves, when nobody has reported progress for long enough.
func (p *Provider) endLeftLeases(ctx context.Context, vm string) {
	ctx, cancel := context.WithTimeout(ctx, tidyTimeout)
	defer cancel()
	for _, left := range p.login.leftLeases(vm) {
		err := p.abortLease(ctx, left.Ref)
		switch {
		case err == nil:
			p.login.log.Info("aborted the lease of a program that was killed", "provider", Kind, "op", "lease", "vm", left.VM)
		case !answered(err):
			continue
		}
		p.login.dropLease(left.Ref)
	}
}

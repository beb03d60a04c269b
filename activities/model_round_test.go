package activities

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// round is one incremental export.
type round struct {
	*model
	r     *rand.Rand // its own: what the guest does next does not hang on how many attempts it takes
	job   string
	snap  providers.Snapshot
	state state // as of the snapshot
	in    AppendRequest
	// plain: nothing went wrong, so that nothing was read twice.
	plain bool
	// gone: somebody has removed the snapshot.
	gone bool
	// wants is what may become of each disk: one set for each time that it was decided anew.
	wants []map[string]outcome
}

// outcome is what is to become of a disk of a point.
type outcome struct {
	full   bool
	by     string
	reason string // that the real one contains
	alert  bool
	least  int64 // bytes that it takes from the source
	most   int64
	read   int64 // at most, where nothing went wrong
}

// round makes an incremental export, to its end or until it is given up.
func (m *model) round() {
	t := m.t
	m.jobs++
	m.count("rounds")
	r := &round{model: m, r: rand.New(rand.NewPCG(m.r.Uint64(), 2)), job: fmt.Sprint("job-", m.jobs), plain: true}
	before, points := m.listing(), m.manifest().Points
	if m.r.IntN(2) == 0 {
		r.trouble()
	}
	if r.export() {
		r.leave(job.Completed)
	} else {
		m.sim.ClearFaults()
		r.giveUp()
		require.Equal(t, points, m.manifest().Points, "the points are those from before %s", r.job)
		require.Equal(t, before, m.listing(), "the files are those from before %s", r.job)
		m.count("given up")
	}
	m.sim.ClearFaults()
	if m.whole(); m.r.IntN(8) == 0 {
		m.all()
	} else {
		m.newest()
	}
	if len(m.points) > 10 {
		m.merge()
	}
}

// export is the steps of a job. It is false where the job is given up.
func (r *round) export() bool {
	t := r.t
	vm := cbt.VM{ID: r.sim.State().VMs[0].ID, Name: r.vm, Provider: "vsphere"}
	target := Target{Output: r.out, Folder: r.vm, Format: chainFormat, Chain: true}
	key := "hypersdk-" + r.job
	ok := r.step("prepare", true, func() error {
		_, err := perform(r.control.Prepare, PrepareRequest{
			Job: r.job, Target: target, Need: 1, VM: providers.VMID(vm.ID), SnapshotKey: key, Chain: vm,
		})
		return err
	})
	if !ok {
		return false
	}
	r.step("snapshot", false, func() (err error) {
		r.snap, err = perform(r.control.Snapshot, SnapshotRequest{Job: r.job, VM: providers.VMID(vm.ID), Key: key})
		return err
	})
	r.frozen()
	r.in = AppendRequest{
		Job: r.job, VM: vm, Snapshot: r.snap.ID, Time: r.snap.Created, Transport: "datastore", Target: target,
		Full: r.r.IntN(40) == 0, Audit: r.r.IntN(12) == 0, NoVerify: r.r.IntN(10) == 0,
	}
	for _, d := range r.snap.Disks {
		r.in.Disks = append(r.in.Disks, AppendDisk{Disk: d.ID, Label: d.Label, Size: d.Size, ChangeID: d.ChangeID})
	}
	r.in.Audit = r.in.Audit || r.forgotten()
	r.meanwhile()
	out, ok := r.append()
	if !ok {
		return false
	}
	r.check(out)
	if r.r.IntN(25) == 0 {
		return false // something else of the job went wrong
	}
	r.step("finish", false, func() error {
		return carryOut(r.control.FinishPoint, FinishPointRequest{Job: r.job, Target: target, Number: out.Point.Number})
	})
	r.points[out.Point.Number] = r.state
	r.count("points")
	r.drop()
	require.Empty(t, r.ours())
	return true
}

// carryOut is perform for activities without a result.
func carryOut[In any](f func(context.Context, In) error, in In) error {
	_, err := perform(func(ctx context.Context, in In) (struct{}, error) { return struct{}{}, f(ctx, in) }, in)
	return err
}

// step tries a step until it succeeds, or, where that is an option, is given up. What goes wrong passes: it
// must not be the end of a job.
func (r *round) step(name string, option bool, try func() error) bool {
	r.t.Helper()
	for n := 1; ; n++ {
		if n > 5 {
			r.sim.ClearFaults()
		}
		err := try()
		if err == nil {
			return true
		}
		r.plain = false
		app := failure(r.t, err)
		require.False(r.t, app.NonRetryable(), "%s: %s: %v", r.job, name, err)
		require.Less(r.t, n, 12, "%s: %s: %v", r.job, name, err)
		<-time.After(time.Duration(n) * time.Millisecond)
		if r.r.IntN(4) == 0 {
			r.restart()
		}
		if option && r.r.IntN(8) == 0 {
			return false
		}
	}
}

// frozen keeps what the disks hold at the snapshot.
func (r *round) frozen() {
	t := r.t
	r.stand()
	r.moment++
	r.state = state{}
	require.Len(t, r.snap.Disks, len(r.disks))
	for i, d := range r.disks {
		r.state[d.id] = frozenContent{d.now.clone(), d.epoch, r.moment}
		is := r.snap.Disks[i]
		require.Equal(t, d.id, string(is.ID))
		require.Equal(t, d.now.size, is.Size)
		require.Equal(t, d.epoch != 0, is.ChangeID != "", "disk %s is tracked", d.id)
		img, err := r.sim.DiskAt(r.vm, i, string(r.snap.ID))
		require.NoError(t, err)
		at, err := d.now.same(img)
		require.NoError(t, err)
		require.EqualValues(t, -1, at, "the snapshot does not hold what disk %s held", d.id)
	}
}

// last is the newest point.
func (r *round) last() state {
	newest := int64(0)
	for n := range r.points {
		newest = max(newest, n)
	}
	return r.points[newest]
}

// forgotten says whether a tracker has left something out that counts: only an audit can help then.
func (r *round) forgotten() bool {
	for _, d := range r.disks {
		if old, ok := r.last()[d.id]; ok {
			if _, forgotten := d.claimed(r.t, old.moment, r.moment); forgotten {
				return true
			}
		}
	}
	return false
}

// meanwhile is what happens to the VM between the snapshot and the copy.
func (r *round) meanwhile() {
	for range r.r.IntN(3) {
		require.NoError(r.t, r.write(r.r))
	}
	switch r.r.IntN(60) {
	case 0:
		require.NoError(r.t, r.sim.ResetTracking(r.vm))
		r.lost()
	case 1:
		r.setTracking(false)
	case 2:
		r.revert(r.snap.Name, r.frozenContents())
	case 3:
		r.takeForeign()
	case 4:
		r.dropSnapshot(r.snap.Name)
		r.gone = true
	}
}

func (r *round) frozenContents() (all []content) {
	for _, d := range r.disks {
		all = append(all, r.state[d.id].content)
	}
	return all
}

// decide says what is to become of the disks, if the copy begins now.
func (r *round) decide() {
	wants := map[string]outcome{}
	for _, d := range r.disks {
		wants[d.id] = r.expect(d, r.state[d.id])
	}
	r.wants = append(r.wants, wants)
}

func (r *round) expect(d *modelDisk, now frozenContent) outcome {
	t := r.t
	full := func(why string) outcome {
		return outcome{full: true, reason: why, least: now.size, most: now.size, read: now.size}
	}
	old, there := r.last()[d.id]
	switch {
	case len(r.points) == 0:
		return full("first point of the chain")
	case !there:
		return full("the disk was not there at point")
	case r.in.Full:
		return full("it was asked for")
	}
	truth := now.differs(t, old.content, formats.BlockSize)
	compared := func(why string) outcome {
		o := outcome{by: "comparison", reason: why, least: truth.Bytes(), most: truth.Bytes(), read: now.size + truth.Bytes()*13/12}
		if old.size != now.size {
			o.most += now.size - old.size + 2*formats.BlockSize
			o.read += o.most
		}
		return o
	}
	claimed, _ := d.claimed(t, old.moment, now.moment)
	switch {
	case now.epoch == 0:
		return compared("its changes are not tracked")
	case old.epoch == 0:
		return compared("its changes were not tracked yet")
	case old.size != now.size:
		return full("the disk was resized from")
	case !r.tracking:
		return full("change tracking is switched off")
	case old.epoch != now.epoch:
		return full("tracking began anew")
	case d.epoch != now.epoch:
		return full("the server does not know the last copy's point")
	case !r.in.Audit:
		return outcome{by: "tracking", least: claimed.Bytes(), most: claimed.Bytes(), read: claimed.Bytes() * 13 / 12}
	}
	if missed := now.differs(t, old.content, 4096).Subtract(claimed); missed.Len() > 0 {
		o := compared("missed changes of")
		o.alert, o.read = true, 3*now.size
		return o
	}
	return outcome{by: "tracking", least: claimed.Bytes(), most: claimed.Bytes(), read: 3 * now.size}
}

// append adds the point, in as many attempts as it takes.
func (r *round) append() (out Appended, ok bool) {
	t := r.t
	for n := 1; ; n++ {
		require.Less(t, n, 15, "%s comes to no end", r.job)
		if n > 6 {
			r.sim.ClearFaults()
		}
		if m := r.manifest(); m.ByKey(r.job) == nil {
			r.decide()
		}
		out, err := r.attempt(n > 6)
		if err == nil {
			require.False(t, r.gone && r.plain, "nothing was left to copy from")
			return out, true
		}
		switch foreign := len(r.foreign) > 0; {
		case temporal.IsCanceledError(err):
			r.count("cancelled")
			return out, false
		case r.gone && failure(t, err).NonRetryable():
			require.Equal(t, string(providers.NotFound), failure(t, err).Type(), "%v", err)
			return out, false
		case foreign && r.plain:
			require.Equal(t, string(providers.Precondition), failure(t, err).Type(), "%v", err)
			require.Contains(t, err.Error(), "has another snapshot")
			fallthrough
		case foreign && n > 3:
			if r.r.IntN(2) == 0 {
				return out, false
			}
			r.dropForeign()
			r.count("foreign snapshots in the way")
		}
		require.False(t, failure(t, err).NonRetryable(), "%s: %v", r.job, err)
		r.plain = false
		r.readable()
		if r.r.IntN(10) == 0 {
			return out, false
		}
		if r.r.IntN(20) == 0 {
			require.NoError(t, r.sim.ResetTracking(r.vm))
			r.lost()
		}
	}
}

// readable reads some point right after an attempt has ended, before anybody cleans up.
func (r *round) readable() {
	t := r.t
	c := r.chain(cbt.Options{ReadOnly: true})
	if c == nil {
		return
	}
	defer c.Close()
	m := c.Manifest()
	for _, p := range m.Points {
		want := r.points[p.Number]
		if p.Key == r.job {
			want = r.state
		}
		if r.r.IntN(len(m.Points)) > 1 {
			continue
		}
		for _, d := range p.Disks {
			img, err := c.Open(t.Context(), p.Number, d.Disk)
			require.NoError(t, err)
			at, err := want[d.Disk].same(img)
			require.NoError(t, err)
			require.EqualValues(t, -1, at, "disk %s at point %d is not what it was", d.Disk, p.Number)
			require.NoError(t, img.Close())
		}
	}
}

// check compares what became of the disks with what may become of them.
func (r *round) check(out Appended) {
	t := r.t
	require.Len(t, out.Disks, len(r.disks))
	var why []string
	for _, wants := range r.wants {
		bad, alerts := "", 0
		for _, d := range out.Disks {
			want := wants[d.Disk]
			if want.alert {
				alerts++
			}
			if s := want.differs(d, r.plain && !r.in.Audit); s != "" && bad == "" {
				bad = s
			}
		}
		if bad == "" && alerts != len(out.Alerts) {
			bad = fmt.Sprintf("%d alerts are due: %v", alerts, out.Alerts)
		}
		if bad == "" {
			for _, d := range out.Disks {
				r.count(d.By + map[bool]string{true: "full"}[d.Full])
			}
			if alerts > 0 {
				r.count("alerts")
			}
			return
		}
		why = append(why, bad)
	}
	require.Fail(t, "a disk was not copied as it should have been", "%s, point %d: %s", r.job, out.Point.Number, strings.Join(why, "; or "))
}

// differs says what of a disk is not as it should be; "": nothing.
func (o outcome) differs(d job.DiskResult, plain bool) string {
	switch {
	case d.Full != o.full, d.By != o.by, !strings.Contains(d.Reason, o.reason), o.reason == "" && d.Reason != "":
		return fmt.Sprintf("disk %s: full %t by %q because %q instead of full %t by %q because %q", d.Disk, d.Full, d.By, d.Reason, o.full, o.by, o.reason)
	case d.Changed < o.least || d.Changed > o.most:
		return fmt.Sprintf("disk %s (%s, %s): %d bytes changed instead of %d to %d", d.Disk, d.By, d.Reason, d.Changed, o.least, o.most)
	case plain && d.Read > o.read:
		return fmt.Sprintf("disk %s (%s, %s): %d bytes were read of %d, instead of %d at most", d.Disk, d.By, d.Reason, d.Read, d.Changed, o.read)
	}
	return ""
}

// ours is the snapshots that the job has on the VM.
func (r *round) ours() (names []string) {
	all, err := r.sim.Snapshots(r.vm)
	require.NoError(r.t, err)
	for _, s := range all {
		if strings.HasPrefix(s.Name, "hypersdk ") {
			names = append(names, s.Name)
		}
	}
	return names
}

// drop removes the job's snapshot.
func (r *round) drop() {
	there := len(r.ours()) > 0
	r.step("drop the snapshot", false, func() error {
		return carryOut(r.control.DropSnapshot, DropRequest{Job: r.job, VM: providers.VMID(r.sim.State().VMs[0].ID), Key: "hypersdk-" + r.job})
	})
	if there {
		r.stand()
	}
}

// giveUp cleans up after the job: itself, or, where it died, its host some time later.
func (r *round) giveUp() {
	t := r.t
	if r.r.IntN(2) == 0 {
		r.engine.ended[r.job] = true
		there := len(r.ours()) > 0
		for n := 0; ; n++ { // what is in use now is removed by a later one
			require.NoError(t, r.site.Sweep(t.Context()))
			if left, err := os.ReadDir(r.site.records()); err == nil && len(left) == 0 {
				break
			}
			require.Less(t, n, 10, "what the job left behind is not removed")
			<-time.After(time.Duration(n) * time.Millisecond)
			r.restart()
		}
		if there {
			r.stand()
		}
	} else {
		for range 1 + r.r.IntN(2) {
			r.step("discard", false, func() error {
				return carryOut(r.control.Discard, DiscardRequest{Job: r.job, Target: Target{Output: r.out, Folder: r.vm, Format: chainFormat, Chain: true}})
			})
		}
		r.drop()
	}
	r.leave(job.Failed)
	require.Empty(t, r.ours())
}

// leave ends the job's stay.
func (r *round) leave(state job.State) {
	r.step("leave", false, func() error {
		return carryOut(r.control.Leave, LeaveRequest{Job: r.job, Host: "h1", State: state, Clean: true})
	})
}

// listing is the files in the folder of the chain.
func (m *model) listing() []string {
	entries, err := os.ReadDir(m.dir())
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(m.t, err)
	var out []string
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(m.t, err)
		if e.Name() == chainFile { // which counts its changes
			out = append(out, e.Name())
			continue
		}
		out = append(out, fmt.Sprint(e.Name(), " ", info.Size()))
	}
	return slices.Sorted(slices.Values(out))
}

// manifest is what the chain is made of.
func (m *model) manifest() cbt.Manifest {
	c := m.chain(cbt.Options{ReadOnly: true})
	if c == nil {
		return cbt.Manifest{}
	}
	defer c.Close()
	return c.Manifest()
}

package cbt

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

var (
	seeds   = flag.Uint64("seeds", 6, "how many guests the model test plays")
	seed    = flag.Uint64("seed", 0, "play only the guest of this seed")
	steps   = flag.Int("steps", 400, "what each guest does")
	longest = flag.Duration("longest", 10*time.Second, "how long each guest plays at most")
)

var errCrash = errors.New("crash")

// crash lets n steps pass, and then nothing any more.
type crash struct {
	mu    sync.Mutex
	left  int
	armed bool
	ops   []string
}

func (c *crash) step(op, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops = append(c.ops, op+" "+name)
	if !c.armed {
		return nil
	}
	if c.left--; c.left < 0 {
		return errCrash
	}
	return nil
}

// model plays a guest, and a chain that is made of it.
type model struct {
	t      *testing.T
	r      *rand.Rand
	dir    string
	c      *Chain
	crash  *crash
	drives []*drive
	made   int // drives
	points int // attempts
	want   truth
	deltas int
	fulls  map[string]int
	kills  int
}

// The guest writes, discards, is resized, gets and loses disks, and its tracker is reset; points are
// added, merged and deleted; everything that touches a file may be the last thing the program does.
func TestEveryPointIsWhatTheDiskHeld(t *testing.T) {
	all := make([]uint64, *seeds)
	for i := range all {
		all[i] = uint64(i + 1)
	}
	if *seed != 0 {
		all = []uint64{*seed}
	}
	for _, s := range all {
		t.Run(fmt.Sprint("seed ", s), func(t *testing.T) {
			t.Parallel()
			m := &model{t: t, r: rand.New(rand.NewPCG(s, 99)), dir: quick(t), want: make(truth), fulls: make(map[string]int)}
			o := Options{Compression: []string{"", "zlib", "zstd"}[s%3], ClusterSize: []int64{0, 4096}[s%2]}
			c, err := Create(t.Context(), m.dir, VM{ID: "vm", Name: "guest"}, o)
			require.NoError(t, err)
			require.NoError(t, c.Close())
			m.open()
			m.plug()
			for end, i := time.Now().Add(*longest), 0; i < *steps; i++ {
				if time.Now().After(end) {
					t.Logf("stopped after %d steps: the machine is slow", i)
					break
				}
				m.act()
			}
			m.want.require(t, m.c)
			report, err := m.c.Check(t.Context(), CheckOptions{Depth: CheckData})
			require.NoError(t, err)
			require.NoError(t, report.Err())
			require.NoError(t, m.c.Close())
			require.Positive(t, m.deltas, "some points were deltas")
			t.Logf("%d points, %d deltas, %d kills, full because %v", m.points, m.deltas, m.kills, m.fulls)
		})
	}
}

func (m *model) open() {
	var err error
	m.crash = new(crash)
	m.c, err = Open(m.t.Context(), m.dir, Options{step: m.crash.step})
	require.NoError(m.t, err)
}

func (m *model) plug() {
	m.made++
	m.drives = append(m.drives, newDrive(fmt.Sprint("scsi0:", m.made), (1+m.r.Int64N(3<<11))*512))
}

func (m *model) drive() *drive { return m.drives[m.r.IntN(len(m.drives))] }

func (m *model) act() {
	switch n := m.r.IntN(100); {
	case n < 55:
		m.drive().write(m.r)
	case n < 58:
		d := m.drive()
		d.resize((1 + m.r.Int64N(3<<11)) * 512)
	case n < 60 && len(m.drives) < 4:
		m.plug()
	case n < 61 && len(m.drives) > 1:
		i := m.r.IntN(len(m.drives))
		m.drives = slices.Delete(m.drives, i, i+1)
	case n < 63:
		m.drive().reset()
	case n < 65:
		m.revert()
	case n < 85:
		m.point()
	case n < 91:
		m.merge()
	case n < 95:
		m.delete()
	case n < 98:
		m.change(m.want, nil, func() error { return m.c.Clean(m.t.Context()) })
	default:
		report, err := m.c.Check(m.t.Context(), CheckOptions{Depth: Depth(m.r.IntN(3))})
		require.NoError(m.t, err)
		require.NoError(m.t, report.Err())
	}
}

// change makes a change during which the program may die. before is what the chain holds until it is
// made, after what it holds then; nil: the same. The change is tried until it is made, or given up.
func (m *model) change(before, after truth, do func() error) (made bool) {
	if after == nil {
		after = before
	}
	for {
		if m.r.IntN(2) == 0 {
			m.crash.armed, m.crash.left = true, m.r.IntN(1<<m.r.IntN(9))
		}
		m.crash.ops = nil
		err := do()
		m.crash.armed = false
		if err == nil {
			m.want = after
			m.look()
			return true
		}
		require.ErrorIs(m.t, err, errCrash)
		m.kills++
		require.NoError(m.t, m.c.Close())
		m.readable(before, after)
		m.open()
		if len(m.c.Manifest().Points) != len(before) || m.crossed(before, after) {
			m.want = after
			m.want.require(m.t, m.c)
			return true
		}
		m.want = before
		m.want.require(m.t, m.c)
		if m.r.IntN(3) == 0 {
			return false // the caller has other plans now
		}
	}
}

// look reads some point, and now and then all.
func (m *model) look() {
	if m.r.IntN(5) == 0 {
		m.want.require(m.t, m.c)
		return
	}
	man := m.c.Manifest()
	require.Len(m.t, man.Points, len(m.want))
	for i, p := range man.Points {
		if i != len(man.Points)-1 && m.r.IntN(len(man.Points)) > 0 {
			continue
		}
		for name, want := range m.want[p.Number] {
			requireDisk(m.t, m.c, p.Number, name, want)
		}
	}
}

// crossed says whether the chain is after the change: its newest or oldest point is another one.
func (m *model) crossed(before, after truth) bool {
	for _, p := range m.c.Manifest().Points {
		if before[p.Number] == nil {
			return true
		}
	}
	return len(before) != len(after) && len(m.c.Manifest().Points) == len(after)
}

// readable reads everything right after a crash, before anybody cleans up.
func (m *model) readable(before, after truth) {
	c, err := Open(m.t.Context(), m.dir, Options{ReadOnly: true})
	require.NoError(m.t, err)
	defer c.Close()
	w := before
	for _, p := range c.Manifest().Points {
		if before[p.Number] == nil {
			w = after
		}
	}
	if len(c.Manifest().Points) != len(before) {
		w = after
	}
	w.require(m.t, c)
	report, err := c.Check(m.t.Context(), CheckOptions{Depth: CheckData})
	require.NoError(m.t, err)
	require.NoError(m.t, report.Err())
	require.ErrorIs(m.t, c.Clean(m.t.Context()), ErrReadOnly)
}

// revert makes a drive what it was at some point. Its tracker begins anew.
func (m *model) revert() {
	d := m.drive()
	for _, n := range slices.Sorted(maps.Keys(m.want)) {
		if old, ok := m.want[n][d.name]; ok {
			d.data = slices.Clone(old)
			d.reset()
			return
		}
	}
}

func (m *model) point() {
	t := m.t
	m.points++
	p := NewPoint{Key: fmt.Sprint("attempt ", m.points), Time: time.Unix(int64(m.points), 0)}
	state := make(map[string]memory)
	compared := make(map[string]*Changes) // to be, and what the tracker says
	man := m.c.Manifest()
	newest := man.Newest()
	for _, d := range m.drives {
		var since Point
		var old *Disk
		if newest != nil {
			if old = newest.disk(d.name); old != nil {
				since = old.ChangeID
			}
		}
		data, id, changes := d.snapshot(since)
		state[d.name] = data
		if old != nil && m.r.IntN(4) == 0 {
			compared[d.name] = changes
		}
		p.Disks = append(p.Disks, NewDisk{Disk: d.name, Size: data.Size(), ChangeID: id, Changes: changes})
	}
	after := m.want.clone()
	after[man.Next] = state
	often := m.r.IntN(2) == 0 // checkpoints
	m.change(m.want, after, func() error {
		for i := range p.Disks {
			d := &p.Disks[i]
			if claim, ok := compared[d.Disk]; ok {
				if err := m.compare(p, d, claim, state[d.Disk]); err != nil {
					return err
				}
			}
		}
		a, err := m.c.Begin(t.Context(), p)
		if err != nil {
			return err
		}
		defer a.Close()
		var (
			wg   sync.WaitGroup
			errs = make([]error, len(state))
		)
		for i, plan := range a.Plans() {
			opt := formats.CopyOptions{Workers: 2}
			if often {
				opt.Distance = 1 << 20
			}
			wg.Go(func() {
				res, err := a.Copy(t.Context(), plan.Disk, state[plan.Disk], opt)
				if errs[i] = err; err == nil {
					assert.LessOrEqual(t, res.Read, plan.Ranges.Bytes())
					assert.NoError(t, a.Verify(t.Context(), plan.Disk, formats.VerifyOptions{}))
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if err := a.Commit(t.Context()); err != nil {
			return err
		}
		m.crash.armed = false // what follows asks, and changes nothing
		_, err = m.c.Begin(t.Context(), p)
		require.ErrorIs(t, err, ErrExists, "it is not done twice")
		for _, plan := range a.Plans() {
			if plan.Full {
				m.fulls[plan.Reason[:min(len(plan.Reason), 20)]]++
			} else {
				m.deltas++
			}
		}
		return nil
	})
}

// compare finds what changed without a tracker, or audits what the tracker claims.
func (m *model) compare(p NewPoint, d *NewDisk, claim *Changes, data memory) error {
	var (
		truth Changes
		err   error
	)
	if claim == nil {
		truth, err = m.c.Compare(m.t.Context(), p, d.Disk, data, formats.VerifyOptions{})
	} else {
		var missed Set
		missed, truth, err = m.c.Audit(m.t.Context(), p, d.Disk, *claim, data, formats.VerifyOptions{})
		require.Zero(m.t, missed.Len(), "this tracker can be trusted")
	}
	var full *FullError
	if errors.As(err, &full) {
		d.Changes, d.Why = nil, full.Reason
		return nil
	}
	d.Changes = &truth
	return err
}

func (m *model) merge() {
	points := m.c.Manifest().Points
	if len(points) == 0 {
		return
	}
	upTo := points[m.r.IntN(len(points))].Number
	after := m.want.clone()
	for n := range after {
		if n < upTo {
			delete(after, n)
		}
	}
	m.change(m.want, after, func() error { return m.c.Merge(m.t.Context(), upTo, formats.CopyOptions{}) })
}

func (m *model) delete() {
	man := m.c.Manifest()
	newest := man.Newest()
	if newest == nil {
		require.ErrorIs(m.t, m.c.DeleteNewest(m.t.Context()), ErrNotFound)
		return
	}
	if i := m.r.IntN(len(man.Points)); i+1 < len(man.Points) {
		needed := slices.ContainsFunc(man.Points[i+1].Disks, func(d Disk) bool { return !d.Full })
		if needed {
			require.ErrorIs(m.t, m.c.Delete(m.t.Context(), man.Points[i].Number), ErrNeeded)
			return
		}
		newest = &man.Points[i]
	}
	after := m.want.clone()
	delete(after, newest.Number)
	m.change(m.want, after, func() error { return m.c.Delete(context.Background(), newest.Number) })
}

package activities

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/testsuite"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/qcow2"
	"hypersdk/formats/raw"
	"hypersdk/providers"
	"hypersdk/providers/connections"
	"hypersdk/providers/vsphere"
)

// modelSeed is a variable of the environment: "7" plays only the guest of this seed, "7:500" for so many
// rounds. HYPERSDK_SLOW plays more guests, for longer.
const modelSeed = "HYPERSDK_MODEL"

// played is what the model test plays.
type played struct {
	seeds   []uint64
	rounds  int
	longest time.Duration // for one guest
}

func whatToPlay(t *testing.T) played {
	p := played{seeds: []uint64{1, 2, 3, 4, 5, 6}, rounds: 60, longest: 8 * time.Second}
	if os.Getenv("HYPERSDK_SLOW") != "" {
		p.rounds, p.longest = 400, 4*time.Minute
		for s := uint64(7); s <= 12; s++ {
			p.seeds = append(p.seeds, s)
		}
	}
	if one := os.Getenv(modelSeed); one != "" {
		s, rounds, _ := strings.Cut(one, ":")
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, modelSeed)
		p.seeds, p.longest = []uint64{n}, time.Hour
		p.rounds, err = strconv.Atoi(cmp.Or(rounds, strconv.Itoa(p.rounds)))
		require.NoError(t, err, modelSeed)
	}
	return p
}

// model plays a VM that is worked with, and a chain that its incremental exports make: with the real
// provider against a fake vCenter, and the real activities.
type model struct {
	t *testing.T
	*modelVM
	r     *rand.Rand
	home  string // of the host: its logs and records
	out   string
	conns *connections.Connections
	*bench

	told   told
	jobs   int
	points map[int64]state
	tally  map[string]int
}

// state is what the disks held at a point, by disk.
type state map[string]frozenContent

type frozenContent struct {
	content
	epoch, moment int
}

// The guest writes, discards, gets and loses disks, is reverted and switched off; its tracking is reset, is
// off for a while, and forgets; exports meet faults of every call and every byte, and are cut off, killed
// and given up. After each, every point is what the disks held, and only what had to be was copied in full.
func TestEveryPointOfAVM(t *testing.T) {
	p := whatToPlay(t)
	for _, seed := range p.seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			m := newModel(t, seed)
			acts, round := 0, 0
			for end := time.Now().Add(p.longest); round < p.rounds; acts++ {
				if time.Now().After(end) && round >= 5 {
					t.Logf("stopped after %d of %d rounds: the machine is slow", round, p.rounds)
					break
				}
				if m.act() {
					round++
				}
				if t.Failed() {
					break
				}
			}
			m.all()
			t.Logf("%d steps, %d of them writes, and %d rounds: %v", acts-round+m.wrote, m.wrote, round, m.tally)
			require.NotZero(t, m.tally["points"])
		})
	}
}

func newModel(t *testing.T, seed uint64) *model {
	r := rand.New(rand.NewPCG(seed, 41))
	m := &model{t: t, modelVM: newModelVM(t, r), r: r, home: quick(t), out: quick(t), points: map[int64]state{}, tally: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("this was %s=%d; at last the host said:\n%s", modelSeed, seed, m.told.tail())
		}
		m.stop()
	})
	m.start()
	m.setTracking(r.IntN(4) > 0)
	return m
}

// quick is a folder in memory where there is one: to be killed a thousand times it is as good as a disk.
func quick(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "activities-model") //nolint:usetesting // t.TempDir has no say in where
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// newHost is a host with its folders, and a connection to a fake vCenter.
func newHost(t *testing.T, log *slog.Logger, url, data, out string) (*bench, *connections.Connections, error) {
	config, err := json.Marshal(map[string]string{
		"server": url, "username": "administrator@vsphere.local", "password": "hypersim", "stall_timeout": "2s",
	})
	if err != nil {
		return nil, nil, err
	}
	conns := connections.New(connections.Options{
		Drivers: providers.Set{vsphere.Driver()},
		Static:  map[string]connections.Config{connections.Default: {Kind: vsphere.Kind, Config: config}},
	})
	c := DefaultConfig()
	c.Data, c.Host, c.Name, c.Version = data, "h1", "host one", "test"
	c.Heartbeat, c.Stall, c.StopWithin = time.Second, 10*time.Second, 5*time.Second
	b := &bench{t: t, out: out, engine: newEngine(), formats: map[string]formats.Format{"raw": raw.Format(), "qcow2": qcow2.Format()}}
	site, err := New(c, Deps{Log: log, Connections: conns, Engine: b.engine, Format: b.format, Probe: b.probe})
	b.site, b.control, b.data = site, &Control{site}, &Data{site}
	return b, conns, err
}

// perform runs an activity as a worker would.
func perform[In, Out any](f func(context.Context, In) (Out, error), in In, set ...func(*testsuite.TestActivityEnvironment)) (out Out, err error) {
	var suite testsuite.WorkflowTestSuite
	suite.SetLogger(log.NewStructuredLogger(slog.New(slog.DiscardHandler)))
	env := suite.NewTestActivityEnvironment()
	env.SetTestTimeout(2 * time.Minute)
	env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: "activity"})
	for _, s := range set {
		s(env)
	}
	v, err := env.ExecuteActivity("activity", in)
	if err == nil && v.HasValue() {
		err = v.Get(&out)
	}
	return out, err
}

// start begins a process; what it knows is what lies in its folders.
func (m *model) start() {
	var err error
	m.bench, m.conns, err = newHost(m.t, slog.New(slog.NewTextHandler(&m.told, nil)), m.sim.URL().String(), m.home, m.out)
	require.NoError(m.t, err)
}

func (m *model) stop() { _ = m.conns.Close() }

// restart throws the process away, and with it all that it had in memory.
func (m *model) restart() {
	ended := m.engine.ended
	m.stop()
	m.start()
	m.engine.ended = ended
	m.tally["restarts"]++
}

func (m *model) count(what string) { m.tally[what]++ }

// act takes one step; round says that it was an export.
func (m *model) act() (round bool) {
	switch n := m.r.IntN(1000); {
	case !m.tracking && len(m.foreign) == 0 && m.r.IntN(5) == 0:
		m.setTracking(true)
	case m.forgets() && m.r.IntN(5) == 0:
		m.remember()
	case len(m.foreign) > 0 && m.r.IntN(5) == 0:
		if f := m.foreign[m.r.IntN(len(m.foreign))]; m.r.IntN(2) == 0 {
			m.revert(f.name, f.disks)
			m.count("reverts")
		}
		m.dropForeign()
	case n < 640:
		for range 1 + m.r.IntN(4) {
			require.NoError(m.t, m.write(m.r))
		}
	case n < 860:
		m.round()
		return true
	case n < 868:
		require.NoError(m.t, m.sim.ResetTracking(m.vm))
		m.lost()
	case n < 874:
		m.setTracking(false)
	case n < 884:
		m.power(!m.on)
	case n < 900:
		if len(m.foreign) < 2 {
			m.takeForeign()
		}
	case n < 912:
		m.forget(m.r.IntN(len(m.disks)), true)
	case n < 932:
		m.hardware(n)
	case n < 960:
		m.merge()
	case n < 975:
		m.deleteNewest()
	default:
		m.restart()
	}
	return false
}

// forget lets the tracker of a disk leave out what the guest writes from now on, or no longer.
func (m *model) forget(i int, on bool) {
	every := 0
	if m.disks[i].forgets = on; on {
		every = 1
	}
	require.NoError(m.t, m.sim.ForgetWrites(m.vm, i, every))
}

func (m *model) forgets() bool {
	return slices.ContainsFunc(m.disks, func(d *modelDisk) bool { return d.forgets })
}

func (m *model) remember() {
	for i := range m.disks {
		m.forget(i, false)
	}
}

// hardware gives the VM a disk, takes one away, or makes one larger.
func (m *model) hardware(n int) {
	t := m.t
	switch {
	case len(m.foreign) > 0:
	case n%3 == 0 && len(m.disks) < 3:
		require.NoError(t, m.sim.AddDisk(m.vm, newVirtualDisk(m.r)))
		m.plugged(len(m.disks))
		m.stand()
	case n%3 == 1 && len(m.disks) > 1:
		require.NoError(t, m.sim.RemoveDisk(m.vm))
		m.disks = m.disks[:len(m.disks)-1]
	default:
		i := m.r.IntN(len(m.disks))
		d := m.disks[i]
		if d.now.size > 16<<20 {
			return
		}
		size := d.now.size + (1+m.r.Int64N(2<<10))<<10
		require.NoError(t, m.sim.ResizeDisk(m.vm, i, size))
		d.now.grow(size)
		d.epoch = 0
		m.stand()
	}
}

func (m *model) dir() string { return filepath.Join(m.out, m.vm) }

// chain opens the chain; nil: there is none.
func (m *model) chain(o cbt.Options) *cbt.Chain {
	m.t.Helper()
	if _, err := os.Stat(filepath.Join(m.dir(), chainFile)); os.IsNotExist(err) {
		require.Empty(m.t, m.points)
		return nil
	}
	for late := time.After(time.Minute); ; {
		c, err := cbt.Open(m.t.Context(), m.dir(), o)
		if !errors.Is(err, cbt.ErrInUse) {
			require.NoError(m.t, err)
			return c
		}
		// A process that another guest starts has the locks of this one until it has become another program.
		select {
		case <-time.After(time.Millisecond):
		case <-late:
			require.NoError(m.t, err)
		}
	}
}

// all reads all points, and checks the chain.
func (m *model) all() { m.look(func(cbt.State) bool { return true }, true) }

// newest reads the newest point, and checks the chain.
func (m *model) newest() {
	last := slices.Max(append(slices.Collect(maps.Keys(m.points)), 0))
	m.look(func(s cbt.State) bool { return s.Number == last }, true)
}

// look reads some of the points, and checks the chain. tidy: nothing else lies in its folder.
func (m *model) look(which func(cbt.State) bool, tidy bool) {
	t := m.t
	t.Helper()
	c := m.chain(cbt.Options{ReadOnly: true})
	if c == nil {
		return
	}
	defer c.Close()
	man := c.Manifest()
	require.Len(t, man.Points, len(m.points))
	for _, p := range man.Points {
		require.Len(t, p.Disks, len(m.points[p.Number]), "disks of point %d", p.Number)
		for _, d := range p.Disks {
			want, ok := m.points[p.Number][d.Disk]
			require.True(t, ok, "point %d has a disk %s", p.Number, d.Disk)
			require.Equal(t, want.size, d.Size)
			if !which(p) {
				continue
			}
			img, err := c.Open(t.Context(), p.Number, d.Disk)
			require.NoError(t, err)
			at, err := want.same(img)
			require.NoError(t, err)
			require.EqualValues(t, -1, at, "disk %s at point %d is not what it was", d.Disk, p.Number)
			require.NoError(t, img.Close())
		}
	}
	report, err := c.Check(t.Context(), cbt.CheckOptions{Depth: cbt.CheckData})
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	if tidy {
		require.Empty(t, report.Strays)
	}
}

// merge gives up the oldest points. Now and then it is cut off, and then the chain is what it was, or what
// it is to be.
func (m *model) merge() {
	t := m.t
	c := m.chain(cbt.Options{})
	if c == nil {
		return
	}
	all := slices.Sorted(maps.Keys(m.points))
	upTo := all[m.r.IntN(len(all))]
	ctx := t.Context()
	if m.r.IntN(3) == 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, time.Duration(m.r.IntN(30))*time.Millisecond)
		defer cancel()
	}
	err := c.Merge(ctx, upTo, formats.CopyOptions{})
	done := len(c.Manifest().Points) < len(all) || upTo == all[0]
	require.NoError(t, c.Close())
	if err != nil {
		require.Error(t, ctx.Err(), "%v", err)
	} else {
		require.True(t, done)
	}
	if done {
		maps.DeleteFunc(m.points, func(n int64, _ state) bool { return n < upTo })
		m.count("merges")
	}
	if err != nil { // what it has hidden, for the next one to go on with, is no harm
		m.look(func(cbt.State) bool { return true }, false)
		c := m.chain(cbt.Options{})
		require.NoError(t, c.Clean(t.Context()))
		require.NoError(t, c.Close())
	}
	m.all()
}

// deleteNewest gives up the newest point.
func (m *model) deleteNewest() {
	t := m.t
	c := m.chain(cbt.Options{})
	if c == nil {
		return
	}
	man := c.Manifest()
	if len(man.Points) > 1 {
		require.NoError(t, c.DeleteNewest(t.Context()))
		delete(m.points, man.Newest().Number)
		m.count("deleted")
	}
	require.NoError(t, c.Close())
	m.newest()
}

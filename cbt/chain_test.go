package cbt

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/all"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
)

// some is a disk of size bytes that differs by seed.
func some(seed byte, size int) memory {
	m := make(memory, size)
	for off := 0; off < len(m); off += 3 * trackGrain {
		copy(m[off:min(off+trackGrain, len(m))], noise[int(seed)*100:])
	}
	return m
}

// three is a chain of a base and two deltas, and what its points hold.
func three(t testing.TB, o Options) (*Chain, string, []memory) {
	t.Helper()
	c, dir := newChain(t, o)
	states := []memory{some(1, 5<<20)}
	add(t, c, "d", states[0], "a", nil)
	for i, off := range []int64{3 << 20, 1<<20 + trackGrain} {
		next := slices.Clone(states[i])
		copy(next[off:], noise[:2*trackGrain])
		ids := []Point{"a", "b", "c"}
		add(t, c, "d", next, ids[i+1], &Changes{From: ids[i], To: ids[i+1], By: Tracked, Ranges: Set{[]Range{{off, 2 * trackGrain}}}})
		states = append(states, next)
	}
	return c, dir, states
}

func TestAnyToolReadsAChain(t *testing.T) {
	for _, compression := range []string{"", "zlib", "zstd"} {
		c, dir, states := three(t, Options{Compression: compression})
		require.NoError(t, c.Merge(t.Context(), 2, formats.CopyOptions{}))
		add(t, c, "d", states[0], "d", nil)
		for n, want := range map[int64]memory{2: states[1], 3: states[2], 4: states[0]} {
			flat := filepath.Join(dir, "flat")
			require.NoError(t, os.WriteFile(flat, want, 0o600))
			m := c.Manifest()
			file := filepath.Join(dir, m.Points[m.index(n)].Disks[0].File)
			formatstest.QemuCheck(t, "qcow2", file)
			formatstest.QemuCompare(t, "qcow2", file, "raw", flat)
		}
	}
}

func TestFlattenIntoEveryFormat(t *testing.T) {
	c, _, states := three(t, Options{})
	for _, f := range all.Formats() {
		if f.Create == nil {
			continue
		}
		for n, want := range states {
			to := formatstest.NewMemFile()
			w, err := f.Create(t.Context(), to, want.Size(), formats.CreateOptions{}, formats.Checkpoint{})
			require.NoError(t, err, f.Name)
			res, err := c.Flatten(t.Context(), int64(n+1), "d", w, formats.CopyOptions{})
			require.NoError(t, err, f.Name)
			require.NoError(t, w.Close())
			m := c.Manifest()
			require.Equal(t, m.Points[n].Disks[0].Digest, res.Digest.String())
			img, err := f.Open(t.Context(), to, to.Size(), formats.OpenOptions{})
			require.NoError(t, err)
			requireContent(t, img, want, "%s, point %d", f.Name, n+1)
			require.NoError(t, img.Close())
		}
	}
}

func TestFlattenGoesOnWhereItStopped(t *testing.T) {
	c, _, states := three(t, Options{})
	want := states[2]
	for _, off := range []int64{2 << 20, 4 << 20, want.Size()} {
		f := formatstest.NewMemFile()
		w, err := raw.Create(t.Context(), f, want.Size(), formats.CreateOptions{}, formats.Checkpoint{})
		require.NoError(t, err)
		_, err = w.WriteAt(want[:off], 0)
		require.NoError(t, err)
		cp, err := w.Checkpoint(off)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		w, err = raw.Create(t.Context(), f, want.Size(), formats.CreateOptions{}, cp)
		require.NoError(t, err)
		res, err := c.Flatten(t.Context(), 3, "d", w, formats.CopyOptions{From: cp})
		require.NoError(t, err)
		require.LessOrEqual(t, res.Read, want.Size()-off)
		require.NoError(t, w.Close())
		img, err := raw.Open(t.Context(), f, f.Size(), formats.OpenOptions{})
		require.NoError(t, err)
		requireContent(t, img, want, "from %d on", off)
	}
}

func TestFlattenNeverCommitsDamage(t *testing.T) {
	c, dir, states := three(t, Options{})
	damage(t, filepath.Join(dir, "disk0-000002.qcow2"), noise[:64])
	to := formatstest.NewMemFile()
	w, err := all.Formats()[0].Create(t.Context(), to, states[0].Size(), formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	_, err = c.Flatten(t.Context(), 3, "d", w, formats.CopyOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.NoError(t, w.Close())
	_, err = all.Open(t.Context(), to, to.Size(), formats.OpenOptions{})
	require.Error(t, err, "it was never committed")
}

// damage changes a byte of a file where it holds what is given.
func damage(t testing.TB, file string, at []byte) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	i := bytes.Index(b, at)
	require.GreaterOrEqual(t, i, 0, "%s holds what is to be damaged", file)
	b[i+7] ^= 0x10
	require.NoError(t, os.WriteFile(file, b, 0o600))
}

func TestAMissingOrDamagedLinkIsNamed(t *testing.T) {
	base, delta := "disk0-000001.qcow2", "disk0-000002.qcow2"
	for name, x := range map[string]struct {
		do    func(t *testing.T, dir string)
		depth Depth
		file  string // that is named
		reads bool   // the newest point can be opened all the same
		says  string
	}{
		"missing base":  {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, base))) }, CheckLinks, base, false, "missing"},
		"missing delta": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, delta))) }, CheckLinks, delta, false, "missing"},
		"cut": {func(t *testing.T, dir string) {
			info, err := os.Stat(filepath.Join(dir, delta))
			require.NoError(t, err)
			require.NoError(t, os.Truncate(filepath.Join(dir, delta), info.Size()-65536))
		}, CheckLinks, delta, false, ""},
		"another backing name": {func(t *testing.T, dir string) {
			patch(t, filepath.Join(dir, delta), "disk0-000001.qcow2", "../../../etc/shado")
		}, CheckLinks, delta, false, "etc/shado"},
		"a symbolic link": {func(t *testing.T, dir string) {
			require.NoError(t, os.Rename(filepath.Join(dir, delta), filepath.Join(dir, "elsewhere")))
			require.NoError(t, os.Symlink("elsewhere", filepath.Join(dir, delta)))
		}, CheckLinks, delta, false, "regular file"},
		"the same file twice": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "disk0-000003.qcow2")))
			require.NoError(t, os.Link(filepath.Join(dir, delta), filepath.Join(dir, "disk0-000003.qcow2")))
		}, CheckLinks, "disk0-000003.qcow2", false, "same file"},
		"a pipe": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, base)))
			require.NoError(t, mkfifo(filepath.Join(dir, base)))
		}, CheckLinks, base, false, "regular file"},
		"index missing": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(filepath.Join(dir, "disk0-000002.digests")))
		}, CheckLinks, "disk0-000002.digests", true, "missing"},
		"index damaged":     {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "disk0-000002.digests"), 4096+100) }, CheckTables, "disk0-000002.digests", true, ""},
		"index of another":  {func(t *testing.T, dir string) { swap(t, dir, "disk0-000001.digests", "disk0-000002.digests") }, CheckLinks, "disk0-000001.digests", true, "not that of the point"},
		"tables damaged":    {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, delta), 0x10000+3) }, CheckTables, delta, false, ""},
		"data of a delta":   {func(t *testing.T, dir string) { damage(t, filepath.Join(dir, delta), noise[:64]) }, CheckData, delta, true, "are not what was copied"},
		"data of the base":  {func(t *testing.T, dir string) { damage(t, filepath.Join(dir, base), noise[100:164]) }, CheckData, base, true, "are not what was copied"},
		"header of another": {func(t *testing.T, dir string) { swap(t, dir, delta, "disk0-000003.qcow2") }, CheckLinks, delta, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir, states := three(t, Options{})
			report, err := c.Check(t.Context(), CheckOptions{Depth: CheckData})
			require.NoError(t, err)
			require.NoError(t, report.Err())
			x.do(t, dir)
			if x.depth > CheckLinks {
				report, err := c.Check(t.Context(), CheckOptions{Depth: x.depth - 1})
				require.NoError(t, err)
				require.NoError(t, report.Err(), "a check that is not as deep cannot see it")
			}
			report, err = c.Check(t.Context(), CheckOptions{Depth: x.depth})
			require.NoError(t, err)
			require.ErrorIs(t, report.Err(), formats.ErrCorrupt)
			require.Equal(t, x.file, report.Problems[0].File, "%+v", report.Problems)
			require.Contains(t, report.Problems[0].What, x.says)
			img, err := c.Open(t.Context(), 3, "d")
			if x.reads {
				require.NoError(t, err)
				require.NoError(t, img.Close())
				return
			}
			var named *LinkError
			if err == nil { // what is wrong may show only when it is read
				defer img.Close()
				err = readFull(img, make([]byte, len(states[0])), 0)
			}
			require.ErrorAs(t, err, &named)
			require.Equal(t, x.file, named.File)
		})
	}
}

func patch(t *testing.T, file, old, fresh string) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(b), old)
	require.NoError(t, os.WriteFile(file, bytes.Replace(b, []byte(old), []byte(fresh), 1), 0o600))
}

func flip(t *testing.T, file string, off int) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	b[off] ^= 0xff
	require.NoError(t, os.WriteFile(file, b, 0o600))
}

func swap(t *testing.T, dir, a, b string) {
	t.Helper()
	for _, mv := range [][2]string{{a, "x"}, {b, a}, {"x", b}} {
		require.NoError(t, os.Rename(filepath.Join(dir, mv[0]), filepath.Join(dir, mv[1])))
	}
}

func TestWhatCannotBeProvedIsCopiedInFull(t *testing.T) {
	changed := Set{[]Range{{0, 10}}}
	for name, x := range map[string]struct {
		disk  NewDisk
		spoil func(t *testing.T, dir string)
		says  string // "": a delta
	}{
		"tracked":                  {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: changed}}},
		"compared":                 {disk: NewDisk{Disk: "d", Size: 5 << 20, Changes: &Changes{By: Compared, Ranges: changed}}},
		"compared, grown":          {disk: NewDisk{Disk: "d", Size: 6 << 20, Changes: &Changes{By: Compared, Ranges: changed}}},
		"tracked, resized":         {disk: NewDisk{Disk: "d", Size: 6 << 20, ChangeID: "z", Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: changed}}, says: "resized from 5242880 to 6291456"},
		"of an older point":        {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: "b", To: "z", By: Tracked, Ranges: changed}}, says: `since "b", the newest point is "c"`},
		"up to another point":      {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "y", Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: changed}}, says: `up to "z", the point is "y"`},
		"not known":                {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z"}, says: "not known"},
		"a reason that is no text": {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Why: "\x1b[2J\xff" + strings.Repeat("long ", 999)}, says: " [2J?long long"},
		"change ids that are long": {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: Point(strings.Repeat("é", 2000)), To: "z", By: Tracked}}, says: `since "éé`},
		"not known, and why":       {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Why: "tracking was reset"}, says: "tracking was reset"},
		"by nobody":                {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: "c", To: "z", Ranges: changed}}, says: "how the changes were found"},
		"another disk":             {disk: NewDisk{Disk: "e", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: "c", To: "z", By: Tracked}}, says: "was not there at point 3"},
		"upon a link that is gone": {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: changed}},
			spoil: func(t *testing.T, dir string) {
				require.NoError(t, os.Remove(filepath.Join(dir, "disk0-000002.qcow2")))
			}, says: "damage: point 2"},
		"without the index": {disk: NewDisk{Disk: "d", Size: 5 << 20, ChangeID: "z", Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: changed}},
			spoil: func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "disk0-000003.digests"), 9) }, says: "damage: point 3"},
	} {
		t.Run(name, func(t *testing.T) {
			c, dir, states := three(t, Options{})
			if x.spoil != nil {
				x.spoil(t, dir)
			}
			next := append(slices.Clone(states[2]), make(memory, x.disk.Size-states[2].Size())...)
			copy(next, "a change")
			copy(next[len(next)-1000:], "another")
			if x.disk.Size == states[2].Size() {
				next = next[:len(states[2])]
				copy(next[len(next)-1000:], states[2][len(next)-1000:])
			}
			a, err := c.Begin(t.Context(), NewPoint{Key: "k", Disks: []NewDisk{x.disk}})
			require.NoError(t, err)
			defer a.Close()
			plan := a.Plans()[0]
			require.Equal(t, x.says != "", plan.Full, plan.Reason)
			require.Contains(t, plan.Reason, x.says)
			_, err = a.Copy(t.Context(), x.disk.Disk, next, formats.CopyOptions{})
			require.NoError(t, err)
			require.NoError(t, a.Commit(t.Context()))
			requireDisk(t, c, 4, x.disk.Disk, next)
			m := c.Manifest()
			require.Equal(t, plan.Reason, m.Newest().Disks[0].Reason)
			if x.spoil == nil {
				report, err := c.Check(t.Context(), CheckOptions{Depth: CheckData})
				require.NoError(t, err)
				require.NoError(t, report.Err())
			}
		})
	}
}

func TestADeltaIsNotBuiltUponSilentDamage(t *testing.T) {
	c, dir, states := three(t, Options{})
	damage(t, filepath.Join(dir, "disk0-000001.qcow2"), noise[100:164]) // in the first block of the disk
	a, err := c.Begin(t.Context(), NewPoint{Key: "k", Disks: []NewDisk{{Disk: "d", Size: 5 << 20, ChangeID: "z",
		Changes: &Changes{From: "c", To: "z", By: Tracked, Ranges: Set{[]Range{{trackGrain, trackGrain}}}}}}})
	require.NoError(t, err)
	defer a.Close()
	_, err = a.Copy(t.Context(), "d", states[2], formats.CopyOptions{})
	require.ErrorIs(t, err, formats.ErrCorrupt)
	require.ErrorContains(t, err, "builds upon is damaged")
	require.Error(t, a.Commit(t.Context()), "what was not copied is not committed")
}

func TestMergeGivesNothingUpForDamage(t *testing.T) {
	c, dir, states := three(t, Options{})
	damage(t, filepath.Join(dir, "disk0-000002.qcow2"), noise[:64])
	require.ErrorIs(t, c.Merge(t.Context(), 3, formats.CopyOptions{}), formats.ErrCorrupt)
	m := c.Manifest()
	require.Len(t, m.Points, 3)
	requireDisk(t, c, 1, "d", states[0])
}

func TestChangesOfAChain(t *testing.T) {
	c, dir, states := three(t, Options{})
	require.ErrorIs(t, c.Delete(t.Context(), 1), ErrNeeded)
	require.ErrorIs(t, c.Delete(t.Context(), 9), ErrNotFound)
	require.ErrorIs(t, c.Merge(t.Context(), 9, formats.CopyOptions{}), ErrNotFound)
	_, err := c.Open(t.Context(), 9, "d")
	require.ErrorIs(t, err, ErrNotFound)
	_, err = c.Open(t.Context(), 1, "e")
	require.ErrorIs(t, err, ErrNotFound)
	img, err := c.Open(t.Context(), 1, "d")
	require.NoError(t, err)
	defer img.Close()
	require.NoError(t, c.Merge(t.Context(), 2, formats.CopyOptions{}))
	requireContent(t, img, states[0], "an image that was open before its point was given up")
	truth{2: {"d": states[1]}, 3: {"d": states[2]}}.require(t, c)
	m := c.Manifest()
	require.True(t, m.Points[0].Disks[0].Full)
	require.Equal(t, "merged from points 1 to 2", m.Points[0].Disks[0].Reason)
	require.NoError(t, c.Merge(t.Context(), 2, formats.CopyOptions{}), "once more is nothing")
	require.NoError(t, c.DeleteNewest(t.Context()))
	truth{2: {"d": states[1]}}.require(t, c)
	require.Equal(t, int64(4), add(t, c, "d", states[0], "n", nil), "numbers are not used again")
	require.NoError(t, c.Delete(t.Context(), 2), "nobody builds upon it")
	truth{4: {"d": states[0]}}.require(t, c)
	require.NoError(t, c.DeleteNewest(t.Context()))
	require.Equal(t, []string{".lock", "chain.json"}, names(t, dir), "nothing is left behind")
}

func names(t testing.TB, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestOneAtATime(t *testing.T) {
	c, dir, states := three(t, Options{})
	_, err := Open(t.Context(), dir, Options{})
	require.ErrorIs(t, err, ErrInUse)
	_, err = Open(t.Context(), dir, Options{ReadOnly: true})
	require.ErrorIs(t, err, ErrInUse)
	_, err = Create(t.Context(), dir, VM{}, Options{})
	require.ErrorIs(t, err, ErrInUse)
	a, err := c.Begin(t.Context(), NewPoint{Key: "k", Disks: []NewDisk{{Disk: "d", Size: 5 << 20}}})
	require.NoError(t, err)
	require.ErrorIs(t, c.Merge(t.Context(), 2, formats.CopyOptions{}), ErrInUse)
	require.NoError(t, a.Close())
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "closing twice")
	_, err = c.Open(t.Context(), 1, "d")
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = Create(t.Context(), dir, VM{}, Options{})
	require.ErrorIs(t, err, ErrExists)
	one, err := Open(t.Context(), dir, Options{ReadOnly: true})
	require.NoError(t, err)
	two, err := Open(t.Context(), dir, Options{ReadOnly: true})
	require.NoError(t, err, "readers share")
	_, err = Open(t.Context(), dir, Options{})
	require.ErrorIs(t, err, ErrInUse)
	for _, c := range []*Chain{one, two} {
		requireDisk(t, c, 3, "d", states[2])
		_, err := c.Begin(t.Context(), NewPoint{})
		require.ErrorIs(t, err, ErrReadOnly)
		require.NoError(t, c.Close())
	}
	_, err = Open(t.Context(), t.TempDir(), Options{})
	require.ErrorIs(t, err, ErrNotFound)
}

func TestAnAttemptGoesOnWhereItStopped(t *testing.T) {
	c, dir := newChain(t, Options{})
	data := make(memory, 160<<20)
	for off := 0; off < len(data); off += len(noise) {
		copy(data[off:], noise)
	}
	p := NewPoint{Key: "k", Disks: []NewDisk{{Disk: "d", Size: data.Size(), ChangeID: "a"}}}
	try := func(p NewPoint, stop bool) (formats.Result, error) {
		a, err := c.Begin(t.Context(), p)
		require.NoError(t, err)
		defer a.Close()
		opt := formats.CopyOptions{Workers: 1}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if stop {
			opt.Durable = func(cp formats.Checkpoint) error {
				if cp.Off > 60<<20 {
					cancel()
				}
				return nil
			}
		}
		res, err := a.Copy(ctx, "d", data, opt)
		if err == nil {
			err = a.Commit(t.Context())
		}
		return res, err
	}
	_, err := try(p, true)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, c.Close())
	c, err = Open(t.Context(), dir, Options{})
	require.NoError(t, err)
	defer c.Close()
	m := c.Manifest()
	require.Empty(t, m.Points, "nothing is seen of it")
	res, err := try(p, false)
	require.NoError(t, err)
	require.Less(t, res.Read, int64(110<<20), "what was durable is not read again")
	requireDisk(t, c, 1, "d", data)
	report, err := c.Check(t.Context(), CheckOptions{Depth: CheckData})
	require.NoError(t, err)
	require.NoError(t, report.Err())

	// Another attempt does not go on with this one, and cleans up after it.
	p = NewPoint{Key: "l", Disks: []NewDisk{{Disk: "e", Size: data.Size(), ChangeID: "b"}, p.Disks[0]}}
	a, err := c.Begin(t.Context(), p)
	require.NoError(t, err)
	_, err = a.Copy(t.Context(), "e", data, formats.CopyOptions{})
	require.NoError(t, err)
	require.ErrorContains(t, a.Commit(t.Context()), `disk "d" has not been copied`)
	require.NoError(t, a.Close())
	report, err = c.Check(t.Context(), CheckOptions{})
	require.NoError(t, err)
	require.NoError(t, report.Err())
	require.Len(t, report.Strays, 3, "an image, its index and its journal wait for the next attempt: %v", report.Strays)
	a, err = c.Begin(t.Context(), p)
	require.NoError(t, err)
	require.True(t, a.Plans()[0].Full)
	res, err = a.Copy(t.Context(), "e", data, formats.CopyOptions{})
	require.NoError(t, err)
	require.Zero(t, res.Read, "it is complete already")
	require.NoError(t, a.Close())
	require.NoError(t, c.Clean(t.Context()))
	require.Equal(t, []string{".lock", "chain.json", "disk0-000001.digests", "disk0-000001.qcow2"}, names(t, dir))
}

// Everything that a name is given to is on the disk before, and every name is on the disk before the
// next step.
func TestOrderOfSteps(t *testing.T) {
	m := new(crash)
	c, _ := newChain(t, Options{step: m.step})
	data := some(1, 3<<20)
	add(t, c, "d", data, "a", nil)
	add(t, c, "d", data, "b", &Changes{From: "a", To: "b", By: Tracked})
	require.NoError(t, c.Merge(t.Context(), 2, formats.CopyOptions{}))
	dirty, pending := make(map[string]bool), false
	for i, op := range m.ops {
		verb, name, _ := strings.Cut(op, " ")
		switch {
		case verb == "write" || verb == "truncate":
			dirty[name] = true
			require.True(t, strings.HasPrefix(name, ".") || strings.HasSuffix(name, ".new"), "step %d: %s is written in place", i, name)
		case verb == "sync" && name == ".":
			pending = false
		case verb == "sync":
			dirty[name] = false
		case verb == "rename":
			require.False(t, dirty[name], "step %d: %s gets its name before it is on the disk", i, name)
			if name == "chain.json.new" {
				require.False(t, pending, "step %d: the manifest names files whose names are not on the disk", i)
			}
			pending = true
		case verb == "remove" && fileForm.MatchString(name):
			require.False(t, pending, "step %d: %s is removed before the manifest is on the disk", i, name)
		case verb == "remove" && name == intentName:
			require.False(t, pending, "step %d: the change is forgotten before it is on the disk", i)
		}
	}
}

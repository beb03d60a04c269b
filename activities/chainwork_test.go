package activities

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/formats/raw"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// growing is a chain of one disk of 6 MiB, of which each point changes the MiB that has its number.
type growing struct {
	dir   string
	id    string
	disks [][]byte // at point 1, 2, …
}

func grow(t *testing.T, points int) growing {
	t.Helper()
	g := growing{dir: filepath.Join(t.TempDir(), "web-01")}
	require.NoError(t, os.Mkdir(g.dir, 0o755))
	c, err := cbt.Create(t.Context(), g.dir, cbt.VM{ID: "vm-42", Name: "web-01"}, cbt.Options{})
	require.NoError(t, err)
	defer c.Close()
	g.id = c.Manifest().ID
	disk := make([]byte, 6*mib)
	for i := range disk {
		disk[i] = byte(i*11/7) | 1
	}
	for n := range points {
		d := cbt.NewDisk{Disk: "2000", Size: int64(len(disk)), ChangeID: cbt.Point(fmt.Sprint("c/", n+1))}
		if n > 0 {
			for i := range mib {
				disk[n*mib+i] ^= 0x5a
			}
			ranges, err := cbt.Collect(func(yield func(cbt.Range) bool) { yield(cbt.Range{Off: int64(n) * mib, Len: mib}) })
			require.NoError(t, err)
			d.Changes = &cbt.Changes{From: cbt.Point(fmt.Sprint("c/", n)), To: d.ChangeID, By: cbt.Tracked, Ranges: ranges}
		}
		a, err := c.Begin(t.Context(), cbt.NewPoint{Key: fmt.Sprint("job ", n), Time: time.Unix(int64(1000+n), 0), Disks: []cbt.NewDisk{d}})
		require.NoError(t, err)
		img, err := raw.Format().Open(t.Context(), bytes.NewReader(disk), int64(len(disk)), formats.OpenOptions{})
		require.NoError(t, err)
		_, err = a.Copy(t.Context(), "2000", img, formats.CopyOptions{})
		require.NoError(t, err)
		require.NoError(t, a.Commit(t.Context()))
		g.disks = append(g.disks, bytes.Clone(disk))
	}
	return g
}

func (g growing) work(action job.ChainAction) job.ChainWork {
	return job.ChainWork{Action: action, Path: g.dir}
}

// see looks at a chain as a job does.
func (b *bench) seeChain(w job.ChainWork) ChainSeen {
	b.t.Helper()
	seen, err := call(b, b.control.LookAtChain, LookAtChainRequest{Job: "job-1", Work: w})
	require.NoError(b.t, err)
	require.Empty(b.t, seen.Missing)
	return *seen.Chain
}

func (b *bench) chainRequest(w job.ChainWork) ChainRequest {
	return ChainRequest{Job: "job-1", Work: w, Seen: b.seeChain(w)}
}

// holds reads the disk of a chain at a point.
func (g growing) holds(t *testing.T, point int64) {
	t.Helper()
	c, err := cbt.Open(t.Context(), g.dir, cbt.Options{ReadOnly: true})
	require.NoError(t, err)
	defer c.Close()
	img, err := c.Open(t.Context(), point, "2000")
	require.NoError(t, err)
	defer img.Close()
	got := make([]byte, img.Size())
	_, err = img.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(g.disks[point-1], got), "point %d is not what it was", point)
}

// spoil changes one byte of a file that holds data from its middle on.
func (g growing) spoil(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(g.dir, name), os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	at, b := st.Size()-st.Size()/4, []byte{0}
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{b[0] ^ 1}, at)
	require.NoError(t, err)
}

func TestAskChain(t *testing.T) {
	b := newBench(t)
	for _, path := range []string{"/x/web-01", "/x/web-01", "/y/web-01"} {
		asked, err := call(b, b.control.AskChain, AskChainRequest{Job: "job-1", Path: path, Priority: 7})
		require.NoError(t, err)
		require.Equal(t, path, asked.VM)
	}
	keys := []string{b.engine.tickets[0].Key, b.engine.tickets[1].Key, b.engine.tickets[2].Key}
	require.Equal(t, keys[0], keys[1], "two jobs on one chain are never admitted at once")
	require.NotEqual(t, keys[0], keys[2])
	require.Equal(t, 7, b.engine.tickets[0].Priority)
}

// What cannot be done with a chain as it is, is said before anything is touched.
func TestLookAtChain(t *testing.T) {
	b := newBench(t)
	g := grow(t, 3)
	b.formats = map[string]formats.Format{}
	flat := func(w job.ChainWork) job.ChainWork {
		w.TargetFormat, w.OutputPath = "raw", b.out
		return w
	}
	seen := b.seeChain(flat(g.work(job.FlattenChain)))
	require.EqualValues(t, 3, seen.Point, "the newest")
	require.Equal(t, []DiskSeen{{Disk: "2000", Number: 1, Size: 6 * mib, Held: seen.Disks[0].Held, File: "disk0-000003.qcow2", Digest: seen.Disks[0].Digest}}, seen.Disks)
	require.Positive(t, seen.Disks[0].Held)
	require.Equal(t, "web-01", seen.VM.Name)
	require.EqualValues(t, 8*mib, b.seeChain(g.work(job.CheckChain)).Weight, "a base, and two deltas")
	merge := g.work(job.MergeChain)
	merge.UpTo = 2
	require.EqualValues(t, 12*mib, b.seeChain(merge).Weight, "it is written, and read again")
	merge.UpTo = 1
	require.Empty(t, b.seeChain(merge).Disks, "there is nothing to do")

	missing, err := call(b, b.control.LookAtChain, LookAtChainRequest{Job: "job-1", Work: job.ChainWork{Action: job.CheckChain, Path: b.out}})
	require.NoError(t, err)
	require.Equal(t, providers.NotFound, missing.Reason)
	require.Contains(t, missing.Missing, b.out)
	missing, err = call(b, b.control.LookAtChain, LookAtChainRequest{Job: "job-1", Work: job.ChainWork{Action: job.CheckChain, Path: "/nowhere/at/all"}})
	require.NoError(t, err)
	require.NotEmpty(t, missing.Missing, "another host may have it")

	for _, c := range []struct {
		name   string
		work   func(*job.ChainWork)
		reason providers.Reason
		says   string
	}{
		{"no such point", func(w *job.ChainWork) { w.Point = 9 }, providers.NotFound, "has no point 9; it has 3, from 1 to 3"},
		{"no such disk", func(w *job.ChainWork) { w.Disk = "2001" }, providers.NotFound, `has no disk "2001"; it has "2000"`},
		{"no such format", func(w *job.ChainWork) { w.TargetFormat = "floppy" }, providers.Unsupported, "there is no such format"},
		{"into the chain", func(w *job.ChainWork) { w.OutputPath = g.dir }, providers.Invalid, "no place for other files"},
		{"a file of the chain", func(w *job.ChainWork) { w.Disk, w.OutputPath, w.Overwrite = "2000", g.dir+"/disk0-000001.qcow2", true }, providers.Invalid, "no place for other files"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := flat(g.work(job.FlattenChain))
			c.work(&w)
			_, err := call(b, b.control.LookAtChain, LookAtChainRequest{Job: "job-1", Work: w})
			require.Equal(t, string(c.reason), failure(t, err).Type(), "%s", err)
			require.ErrorContains(t, err, c.says)
		})
	}
	t.Run("in use", func(t *testing.T) {
		other, err := cbt.Open(t.Context(), g.dir, cbt.Options{})
		require.NoError(t, err)
		defer other.Close()
		_, err = call(b, b.control.LookAtChain, LookAtChainRequest{Job: "job-1", Work: g.work(job.CheckChain)})
		require.Equal(t, string(providers.Precondition), failure(t, err).Type())
		require.False(t, failure(t, err).NonRetryable(), "it is tried again")
	})
}

func TestCheckChain(t *testing.T) {
	b := newBench(t)
	g := grow(t, 3)
	for _, depth := range []string{"", job.CheckDepthTables, job.CheckDepthData} {
		w := g.work(job.CheckChain)
		w.Depth = depth
		out, err := call(b, b.data.CheckChain, b.chainRequest(w))
		require.NoError(t, err)
		require.Equal(t, 3, out.Points)
		require.Equal(t, 3, out.Check.Links)
		require.Zero(t, out.Check.Damage)
		require.Empty(t, out.First)
		if depth == job.CheckDepthData {
			require.EqualValues(t, 8*mib, out.Check.Read)
		}
	}

	// One byte in the middle of a delta, and a base that is gone.
	g.spoil(t, "disk0-000003.qcow2")
	w := g.work(job.CheckChain)
	w.Depth = job.CheckDepthData
	out, err := call(b, b.data.CheckChain, b.chainRequest(w))
	require.NoError(t, err, "what it finds is no failure of the activity")
	require.Equal(t, 1, out.Check.Damage)
	require.Equal(t, "disk0-000003.qcow2", out.Check.Problems[0].File)
	require.EqualValues(t, 3, out.Check.Problems[0].Point)
	require.Contains(t, out.First, "disk0-000003.qcow2")

	require.NoError(t, os.Remove(filepath.Join(g.dir, "disk0-000001.qcow2")))
	out, err = call(b, b.data.CheckChain, b.chainRequest(g.work(job.CheckChain)))
	require.NoError(t, err)
	require.Contains(t, out.First, `the chain is damaged: point 1 of disk "2000": disk0-000001.qcow2: it is missing`)
	require.Equal(t, job.CheckDepthLinks, out.Check.Depth)
}

// A report is told within bounds, whatever is in the folder.
func TestACheckIsToldWithinBounds(t *testing.T) {
	r := cbt.CheckReport{Points: 1}
	for i := range 5000 {
		r.Problems = append(r.Problems, cbt.Problem{Point: int64(i), Disk: string(make([]byte, 5000)), File: "disk0-000001.qcow2", What: string(make([]byte, 5000))})
		r.Strays = append(r.Strays, "disk0-000009.qcow2")
	}
	out := toldReport(job.ChainWork{}, r)
	require.Equal(t, 5000, out.Check.Damage)
	require.Len(t, out.Check.Problems, 100)
	require.Len(t, out.Check.Strays, 100)
	require.Less(t, len(out.Check.Problems[0].What)+len(out.Check.Problems[0].Disk), 600)
	require.Less(t, len(out.First), 2500, "quoted, at most")
	require.Contains(t, out.First, "5000 problems, the first: point 0 of disk")
}

func TestMergeChain(t *testing.T) {
	b := newBench(t)
	g := grow(t, 4)
	w := g.work(job.MergeChain)
	w.UpTo = 3
	in := b.chainRequest(w)
	for range 2 { // as if the answer to the first had been lost
		out, err := call(b, b.data.MergeChain, in)
		require.NoError(t, err)
		require.Equal(t, 2, out.Points)
		require.Equal(t, []string{filepath.Join(g.dir, "disk0-000003.qcow2")}, out.Files)
		require.True(t, out.Disks[0].Full)
		require.Positive(t, out.Total)
		in.Seen.Disks[0].Size, in.Seen.Disks[0].Held = 1<<60, 1<<60 // what is done needs no room any more
	}
	g.holds(t, 3)
	g.holds(t, 4)
	require.NoFileExists(t, filepath.Join(g.dir, "disk0-000001.qcow2"))
}

func TestMergeNeedsRoom(t *testing.T) {
	b := newBench(t)
	g := grow(t, 2)
	w := g.work(job.MergeChain)
	w.UpTo = 2
	in := b.chainRequest(w)
	in.Seen.Disks[0].Size, in.Seen.Disks[0].Held = 1<<60, 1<<60
	_, err := call(b, b.data.MergeChain, in)
	require.Equal(t, string(providers.Exhausted), failure(t, err).Type())
	require.True(t, failure(t, err).NonRetryable())
	require.ErrorContains(t, err, "another base")
	g.holds(t, 1)
}

// A merge that is cancelled ends soon, and what it hid is removed; the chain is as it was.
func TestCancelledMerge(t *testing.T) {
	b := newBench(t)
	g := grow(t, 3)
	b.engine.limits.MBps = 0.5 // the whole would take half a minute
	w := g.work(job.MergeChain)
	w.UpTo = 3
	in := b.chainRequest(w)
	in.Limits = b.engine.limits
	var cancel context.CancelCauseFunc
	began := make(chan time.Time, 1)
	set := cancellable(&cancel)
	go func() {
		hidden := filepath.Join(g.dir, ".disk0-000003.qcow2.part")
		for {
			if _, err := os.Stat(hidden); err == nil {
				break
			}
			pass(5 * time.Millisecond)
		}
		pass(300 * time.Millisecond)
		began <- time.Now()
		cancel(temporal.NewCanceledError())
	}()
	_, err := call(b, b.data.MergeChain, in, set)
	require.True(t, temporal.IsCanceledError(err), "%v", err)
	require.Less(t, time.Since(<-began), 10*time.Second, "of half a minute")
	require.FileExists(t, filepath.Join(g.dir, ".disk0-000003.qcow2.part"), "for who goes on with it")
	require.NoError(t, do(b, b.control.DiscardMerge, in))
	require.NoFileExists(t, filepath.Join(g.dir, ".disk0-000003.qcow2.part"))
	require.NoFileExists(t, filepath.Join(g.dir, ".disk0-000003.qcow2.journal"))
	for n := range int64(3) {
		g.holds(t, n+1)
	}
}

// A worker that stops ends a merge at once, and the next one goes on with it: while it is written, and while
// it is read again.
func TestMergeOfAWorkerThatStops(t *testing.T) {
	for name, size := range map[string]int64{"writing": mib, "reading again": 6 * mib} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			g := grow(t, 3)
			b.engine.limits.MBps = 4
			w := g.work(job.MergeChain)
			w.UpTo = 3
			in := b.chainRequest(w)
			in.Limits = b.engine.limits
			part := filepath.Join(g.dir, ".disk0-000003.qcow2.part")
			stop := make(chan struct{})
			go func() {
				defer close(stop)
				for {
					if st, err := os.Stat(part); err == nil && st.Size() >= size {
						pass(200 * time.Millisecond)
						return
					}
					pass(5 * time.Millisecond)
				}
			}()
			_, err := call(b, b.data.MergeChain, in, func(env *testsuite.TestActivityEnvironment) { env.SetWorkerStopChannel(stop) })
			require.Equal(t, string(providers.Unavailable), failure(t, err).Type())
			require.False(t, failure(t, err).NonRetryable())
			require.ErrorContains(t, err, "the worker stops")
			before, err := os.Stat(part)
			require.NoError(t, err)
			b.engine.limits.MBps, in.Limits.MBps = 0, 0
			_, err = call(b, b.data.MergeChain, in)
			require.NoError(t, err)
			after, err := os.Stat(filepath.Join(g.dir, "disk0-000003.qcow2"))
			require.NoError(t, err)
			require.True(t, os.SameFile(before, after), "the file that was begun is the one that was ended")
			g.holds(t, 3)
		})
	}
}

func TestDeletePoint(t *testing.T) {
	b := newBench(t)
	g := grow(t, 3)
	w := g.work(job.DeletePoint)
	w.Point = 2
	_, err := call(b, b.control.DeletePoint, b.chainRequest(w))
	require.Equal(t, string(providers.Invalid), failure(t, err).Type())
	require.True(t, failure(t, err).NonRetryable())
	require.ErrorContains(t, err, `point 3 reads disk "2000" through it`)

	w.Point = 0
	in := b.chainRequest(w)
	require.EqualValues(t, 3, in.Seen.Point, "settled once, so that trying again does not delete another")
	out, err := call(b, b.control.DeletePoint, in)
	require.NoError(t, err)
	require.Equal(t, 2, out.Points)
	_, err = call(b, b.control.DeletePoint, in)
	require.Equal(t, string(providers.NotFound), failure(t, err).Type())
	g.holds(t, 2)
}

// A chain that took the place of another is not worked on.
func TestAnotherChain(t *testing.T) {
	b := newBench(t)
	g := grow(t, 2)
	w := g.work(job.DeletePoint)
	in := b.chainRequest(w)
	in.Seen.ID = "0123456789abcdef0123456789abcdef"
	_, err := call(b, b.control.DeletePoint, in)
	require.Equal(t, string(providers.Precondition), failure(t, err).Type())
	require.True(t, failure(t, err).NonRetryable())
	_, err = call(b, b.data.CheckChain, in)
	require.ErrorContains(t, err, "another chain")
	require.NoError(t, os.RemoveAll(g.dir))
	require.NoError(t, do(b, b.control.DiscardMerge, in), "what is gone holds nothing")
}

// flattenRequest copies a disk of the chain to the bench.
func (b *bench) flattenRequest(g growing, point int64, format string) (TransferRequest, PrepareImagesRequest) {
	w := g.work(job.FlattenChain)
	w.Point, w.TargetFormat, w.OutputPath = point, format, b.out
	seen := b.seeChain(w)
	d := seen.Disks[0]
	layout := ChainLayout(w)
	t := Target{Output: b.out, Alone: "flat." + format, Format: format, Create: &layout}
	return TransferRequest{
		Job: "job-1", Label: "disk 2000", Size: d.Size, Need: d.Size, Ref: providers.DiskRef{Disk: "2000"}, Target: t, File: t.Alone,
		Chain: &ChainSource{Path: g.dir, ID: seen.ID, Point: seen.Point, Disk: d.Disk, Digest: d.Digest},
	}, PrepareImagesRequest{Job: "job-1", Images: []PrepareImage{{Target: t, Need: d.Size}}}
}

func TestFlatten(t *testing.T) {
	for _, format := range []string{"raw", "vmdk"} {
		b := newBench(t)
		g := grow(t, 3)
		for point := range int64(3) {
			in, prepare := b.flattenRequest(g, point+1, format)
			_, err := call(b, b.control.PrepareImages, prepare)
			require.NoError(t, err)
			out, err := call(b, b.data.TransferDisk, in)
			require.NoError(t, err)
			require.Equal(t, in.Chain.Digest, out.Digest)
			_, err = call(b, b.data.VerifyDisk, VerifyRequest{Job: "job-1", Disk: "2000", Size: in.Size, Target: in.Target, File: in.File, Digest: out.Digest})
			require.NoError(t, err)
			done, err := call(b, b.control.FinishImages, FinishImagesRequest{Job: "job-1", Images: []FinishImage{{Target: in.Target, Inode: out.Inode}}})
			require.NoError(t, err)
			if format == "raw" {
				got, err := os.ReadFile(done.Files[0])
				require.NoError(t, err)
				require.True(t, bytes.Equal(g.disks[point], got))
			}
			require.NoError(t, os.Remove(done.Files[0]))
		}
	}
}

// What is written is held against the digest of the point: damage never gets a name.
func TestFlattenOfDamage(t *testing.T) {
	b := newBench(t)
	g := grow(t, 2)
	in, prepare := b.flattenRequest(g, 2, "raw")
	_, err := call(b, b.control.PrepareImages, prepare)
	require.NoError(t, err)
	g.spoil(t, "disk0-000001.qcow2")
	_, err = call(b, b.data.TransferDisk, in)
	require.Equal(t, string(providers.Corrupt), failure(t, err).Type(), "%s", err)
	require.ErrorContains(t, err, "a check of the chain")

	require.NoError(t, os.Remove(filepath.Join(g.dir, "disk0-000001.qcow2")))
	in, _ = b.flattenRequest(g, 1, "raw")
	_, err = call(b, b.data.TransferDisk, in)
	require.Equal(t, string(providers.Corrupt), failure(t, err).Type(), "%s", err)
	require.ErrorContains(t, err, "disk0-000001.qcow2", "the link is named")
}

func TestDescribeChain(t *testing.T) {
	b := newBench(t)
	g := grow(t, 3)
	out, err := call(b, b.control.DescribeChain, DescribeChainRequest{Target: PlaceOf(g.dir)})
	require.NoError(t, err)
	v := out.View
	require.Equal(t, g.id, v.ID)
	require.Equal(t, g.dir, v.Path)
	require.Equal(t, "h1", v.Host)
	require.Len(t, v.Points, 3)
	require.EqualValues(t, 1, v.Points[0].Number)
	require.True(t, v.Points[0].Disks[0].Full)
	require.Equal(t, "first point of the chain", v.Points[0].Disks[0].Reason)
	require.Equal(t, cbt.Tracked, v.Points[2].Disks[0].By)
	require.EqualValues(t, mib, v.Points[2].Disks[0].Changed)
	require.Equal(t, "disk0-000003.qcow2", v.Points[2].Disks[0].File)
	held, err := cbt.Open(t.Context(), g.dir, cbt.Options{})
	require.NoError(t, err)
	defer held.Close() // somebody who works on the chain does not keep it from being told
	out, err = call(b, b.control.DescribeChain, DescribeChainRequest{Target: PlaceOf(g.dir), Newest: true})
	require.NoError(t, err)
	require.Len(t, out.View.Points, 1)
	require.Equal(t, 3, out.View.Total)
	out, err = call(b, b.control.DescribeChain, DescribeChainRequest{Target: PlaceOf("/nowhere/web-01")})
	require.NoError(t, err)
	require.Nil(t, out.View)
	require.Equal(t, providers.NotFound, out.Reason)
}

// A long chain is told within bounds.
func TestALongChainIsTold(t *testing.T) {
	m := &cbt.Manifest{}
	for n := range int64(4000) {
		m.Points = append(m.Points, cbt.State{Number: n + 1, Disks: make([]cbt.Disk, 7)})
	}
	v := viewOf(m, false)
	require.Equal(t, 4000, v.Total)
	require.Len(t, v.Points, maxToldDisks/7)
	require.EqualValues(t, 4000, v.Points[len(v.Points)-1].Number, "the newest are told")
	m.Points = []cbt.State{{Number: 1, Disks: make([]cbt.Disk, 1000)}}
	require.Len(t, viewOf(m, false).Points[0].Disks, maxToldDisks)
	require.Empty(t, viewOf(&cbt.Manifest{}, false).Points)
}

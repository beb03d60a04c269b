package activities

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/raw"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const mib = 1 << 20

// bench is a host with a platform to copy from and an engine that answers as told.
type bench struct {
	t        *testing.T
	site     *Site
	control  *Control
	data     *Data
	platform *platform
	engine   *engine
	conns    *conns
	out      string
	// format wraps the file that disks are laid out in.
	wrap func(formats.File) formats.File
	// formats are those that there are; nil: raw
	formats map[string]formats.Format
}

func newBench(t *testing.T, change ...func(*Config)) *bench {
	t.Helper()
	c := DefaultConfig()
	c.Data, c.Host, c.Name, c.Version = t.TempDir(), "h1", "host one", "test"
	c.Heartbeat, c.Stall, c.StopWithin = time.Second, 5*time.Second, time.Second
	for _, f := range change {
		f(&c)
	}
	require.NoError(t, c.Validate())
	b := &bench{t: t, out: t.TempDir(), engine: newEngine(), platform: newPlatform()}
	b.conns = &conns{platform: b.platform}
	site, err := New(c, Deps{
		Log: slog.New(slog.DiscardHandler), Connections: b.conns, Engine: b.engine, Format: b.format, Probe: b.probe,
	})
	require.NoError(t, err)
	b.site, b.control, b.data = site, &Control{site}, &Data{site}
	return b
}

func (b *bench) format(name string) (formats.Format, error) {
	if name == "vmdk" {
		return vmdk.Format(), nil
	}
	if f, ok := b.formats[name]; ok {
		return f, nil
	}
	if name != "raw" {
		return formats.Format{}, &providers.Error{Op: "formats", Object: name, Reason: providers.Unsupported, Msg: "there is no such format"}
	}
	f := raw.Format()
	create := f.Create
	f.Create = func(ctx context.Context, file formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (formats.Writer, error) {
		if b.wrap != nil {
			file = b.wrap(file)
		}
		return create(ctx, file, size, o, from)
	}
	return f, nil
}

// call runs an activity as a worker would.
func call[In, Out any](b *bench, f func(context.Context, In) (Out, error), in In, set ...func(*testsuite.TestActivityEnvironment)) (Out, error) {
	b.t.Helper()
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	env.SetTestTimeout(30 * time.Second)
	env.RegisterActivityWithOptions(f, activity.RegisterOptions{Name: "activity"})
	for _, s := range set {
		s(env)
	}
	var out Out
	v, err := env.ExecuteActivity("activity", in)
	if err == nil && v.HasValue() {
		err = v.Get(&out)
	}
	return out, err
}

// do is call for activities without a result.
func do[In any](b *bench, f func(context.Context, In) error, in In) error {
	b.t.Helper()
	_, err := call(b, func(ctx context.Context, in In) (struct{}, error) { return struct{}{}, f(ctx, in) }, in)
	return err
}

// failure is the error of an activity as a workflow sees it.
func failure(t *testing.T, err error) *temporal.ApplicationError {
	t.Helper()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	return app
}

func (b *bench) target() Target { return Target{Output: b.out, Folder: "web-01", Format: "raw"} }

func (b *bench) prepare(change ...func(*PrepareRequest)) (Prepared, error) {
	b.t.Helper()
	in := PrepareRequest{Job: "job-1", Target: b.target(), Files: []string{"web-01-disk-1.raw"}, VM: "vm-42", SnapshotKey: "hypersdk-job-1"}
	for _, f := range change {
		f(&in)
	}
	return call(b, b.control.Prepare, in)
}

func (b *bench) request() TransferRequest {
	return TransferRequest{
		Job: "job-1", Ref: providers.DiskRef{VM: "vm-42", Snapshot: "s1", Disk: "2000"}, Label: "Hard disk 1",
		Size: b.platform.disk.Size(), Need: b.platform.disk.Size(), Target: b.target(), File: "web-01-disk-1.raw",
	}
}

func (b *bench) transfer(set ...func(*testsuite.TestActivityEnvironment)) (Transferred, error) {
	b.t.Helper()
	return call(b, b.data.TransferDisk, b.request(), set...)
}

func (b *bench) verify(d Transferred) (Verified, error) {
	b.t.Helper()
	return call(b, b.data.VerifyDisk, VerifyRequest{
		Job: "job-1", Disk: "2000", Label: "Hard disk 1", Size: b.platform.disk.Size(), Target: b.target(), File: "web-01-disk-1.raw", Digest: d.Digest,
	})
}

func (b *bench) finish(d Transferred, v Verified, change ...func(*FinishRequest)) (Finished, error) {
	b.t.Helper()
	in := FinishRequest{
		Job: "job-1", Target: b.target(), Spec: job.Spec{VMPath: "/dc/vm/web-01", OutputPath: b.out}, VM: b.platform.vm, Kind: "fake",
		Host: Host{ID: "h1", Name: "host one"}, Verified: true, Via: "fast", Started: time.Unix(1000, 0), Snapshot: time.Unix(1010, 0),
		Disks: []FinishDisk{{DiskResult: job.DiskResult{
			Disk: "2000", File: "web-01-disk-1.raw", Format: "raw", Size: b.platform.disk.Size(), Stored: v.Stored, Digest: d.Digest, SHA256: v.SHA256,
		}, Label: "Hard disk 1", Inode: d.Inode}},
	}
	for _, f := range change {
		f(&in)
	}
	return call(b, b.control.Finish, in)
}

// path is a file in the output folder of the job.
func (b *bench) path(name string) string { return filepath.Join(b.out, "web-01", name) }

// names lists the output folder.
func (b *bench) names() []string {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Join(b.out, "web-01"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	require.NoError(b.t, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// sameAsSource compares a raw file with the disk of the platform.
func (b *bench) sameAsSource(path string) {
	b.t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(b.t, err)
	want := make([]byte, b.platform.disk.Size())
	_, err = b.platform.disk.ReadAt(want, 0)
	require.True(b.t, err == nil || errors.Is(err, io.EOF))
	require.True(b.t, slices.Equal(want, got), "the bytes of %s are not those of the source", path)
}

// log is the log of the job.
func (b *bench) log() string {
	b.t.Helper()
	page, _, err := b.site.Logs().Read(b.t.Context(), "job-1", 0)
	require.NoError(b.t, err)
	return string(page)
}

// cancellable makes the activity one that the test can cancel as the server would.
func cancellable(cancel *context.CancelCauseFunc) func(*testsuite.TestActivityEnvironment) {
	ctx, c := context.WithCancelCause(context.Background())
	*cancel = c
	return func(env *testsuite.TestActivityEnvironment) {
		env.SetWorkerOptions(worker.Options{BackgroundActivityContext: ctx})
	}
}

// platform is a provider with one VM of one disk.
type platform struct {
	mu        sync.Mutex
	vm        providers.VM
	disk      formats.Image
	snapshots map[string]providers.SnapshotID
	read      int64
	fault     func(ctx context.Context, off, n int64) error // of reading the disk
	openErr   error                                         // of opening it
	thawed    error                                         // what it says when it is asked to confirm
	vmErr     error
}

// noise is a disk without a zero: every copy of it takes as much space as it has bytes.
type noise struct {
	formats.Image // of the same size; only that is used
	period        []byte
}

// newNoise repeats something random of an odd length, so that no two blocks are alike.
func newNoise(seed uint64, size int64) noise {
	d := noise{formatstest.NewDisk(1, size), make([]byte, 1<<20-3)}
	r := rand.New(rand.NewPCG(seed, seed))
	for i := range d.period {
		d.period[i] = byte(r.Uint32()) | 1
	}
	return d
}

func (d noise) ReadAt(b []byte, off int64) (int, error) {
	n := min(int64(len(b)), d.Size()-off)
	if n <= 0 {
		return 0, io.EOF
	}
	for at := int64(0); at < n; {
		at += int64(copy(b[at:n], d.period[(off+at)%int64(len(d.period)):]))
	}
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// empty is a disk of zeros.
type empty struct{ formats.Image }

func (d empty) ReadAt(b []byte, off int64) (int, error) {
	n := min(int64(len(b)), d.Size()-off)
	clear(b[:n])
	if n < int64(len(b)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// newLargeBench has a disk of more than one segment.
func newLargeBench(t *testing.T, change ...func(*Config)) *bench {
	t.Helper()
	b := newBench(t, change...)
	b.platform.disk = newNoise(7, 56*mib+512)
	return b
}

func newPlatform() *platform {
	d := newNoise(7, 3*mib+512)
	return &platform{
		disk: d, snapshots: map[string]providers.SnapshotID{},
		vm: providers.VM{ID: "vm-42", Name: "web-01", Path: "/dc/vm/web-01", Disks: []providers.Disk{{ID: "2000", Label: "Hard disk 1", Size: d.Size()}}},
	}
}

func (p *platform) Kind() string               { return "fake" }
func (p *platform) Ping(context.Context) error { return nil }
func (p *platform) Close() error               { return nil }

func (p *platform) VMs(context.Context, providers.Filter) iter.Seq2[providers.VM, error] {
	return func(yield func(providers.VM, error) bool) { yield(p.vm, nil) }
}

func (p *platform) VM(_ context.Context, ref string) (providers.VM, error) {
	if p.vmErr != nil {
		return providers.VM{}, p.vmErr
	}
	if ref != p.vm.Path && ref != p.vm.Name && ref != string(p.vm.ID) {
		return providers.VM{}, &providers.Error{Op: "fake: vm", Object: ref, Reason: providers.NotFound, Msg: "there is no such VM"}
	}
	return p.vm, nil
}

func (p *platform) Snapshot(_ context.Context, _ providers.VMID, o providers.SnapshotOptions) (providers.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.snapshots[o.Key] == "" {
		p.snapshots[o.Key] = providers.SnapshotID("s" + o.Key)
	}
	return providers.Snapshot{ID: p.snapshots[o.Key], Name: o.Key, Disks: p.vm.Disks}, nil
}

func (p *platform) FindSnapshot(_ context.Context, _ providers.VMID, key string) (providers.Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id := p.snapshots[key]; id != "" {
		return providers.Snapshot{ID: id, Name: key}, nil
	}
	return providers.Snapshot{}, &providers.Error{Op: "fake: snapshot", Object: key, Reason: providers.NotFound}
}

func (p *platform) DeleteSnapshot(_ context.Context, _ providers.VMID, id providers.SnapshotID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, v := range p.snapshots {
		if v == id {
			delete(p.snapshots, k)
		}
	}
	return nil
}

func (p *platform) Transports(context.Context, providers.VM) ([]providers.Transport, error) {
	return []providers.Transport{{Name: "fast", Resumable: true}}, nil
}

func (p *platform) OpenDisk(ctx context.Context, _ providers.DiskRef) (formats.Image, error) {
	if p.openErr != nil {
		return nil, p.openErr
	}
	return &remote{Image: p.disk, p: p, ctx: ctx}, nil
}

// remote is a disk as it is read from the platform: all data, and only while its context lives.
type remote struct {
	formats.Image
	p   *platform
	ctx context.Context
}

func (r *remote) ReadAt(b []byte, off int64) (int, error) {
	r.p.mu.Lock()
	fault := r.p.fault
	r.p.mu.Unlock()
	if fault != nil {
		if err := fault(r.ctx, off, int64(len(b))); err != nil {
			return 0, err
		}
	}
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := r.Image.ReadAt(b, off)
	r.p.mu.Lock()
	r.p.read += int64(n)
	r.p.mu.Unlock()
	return n, err
}

func (r *remote) Confirm(context.Context) error {
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	return r.p.thawed
}

func (r *remote) Extents(_ context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if n > 0 {
			yield(formats.Extent{Off: off, Len: n, Kind: formats.Data}, nil)
		}
	}
}

// conns is one connection.
type conns struct {
	platform  *platform
	provider  providers.Provider // instead of it, where it is not nil
	err       error
	onOpen    func()
	forgotten []string
}

func (c *conns) Open(context.Context, string) (providers.Provider, error) {
	if c.onOpen != nil {
		c.onOpen()
	}
	if c.err != nil {
		return nil, c.err
	}
	if c.provider != nil {
		return c.provider, nil
	}
	return c.platform, nil
}

func (c *conns) Identity(string) (string, error) { return "fake://there", nil }

func (c *conns) Forget(_ context.Context, name string) error {
	c.forgotten = append(c.forgotten, name)
	return nil
}

// engine knows which jobs have ended and where the others are.
type engine struct {
	mu      sync.Mutex
	tickets []Ticket
	asked   int // for limits
	ended   map[string]bool
	where   map[string]string
	limits  job.Limits
	onAsked func(*engine)
	home    string
	err     error
}

func newEngine() *engine {
	return &engine{ended: map[string]bool{}, where: map[string]string{}, home: "cluster/default"}
}

func (e *engine) Ask(_ context.Context, t Ticket) error {
	e.tickets = append(e.tickets, t)
	return e.err
}

func (e *engine) Limits(context.Context, string) (job.Limits, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.asked++; e.onAsked != nil {
		e.onAsked(e)
	}
	return e.limits, e.err
}

func (e *engine) Hosts(context.Context) ([]string, error) { return []string{"h2", "h1"}, e.err }

func (e *engine) Ended(_ context.Context, job string) (bool, error)   { return e.ended[job], e.err }
func (e *engine) Where(_ context.Context, job string) (string, error) { return e.where[job], e.err }
func (e *engine) Home(context.Context) (string, error)                { return e.home, nil }

// pass lets time pass, in a test whose time is not real.
func pass(d time.Duration) { <-time.After(d) }

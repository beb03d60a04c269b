package vsphere_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/cbt"
	"hypersdk/formats"
	"hypersdk/providers"
	"hypersdk/providers/providertest"
	"hypersdk/providers/vsphere"
	"hypersdk/providers/vsphere/vspheretest"
)

func TestVDDKIsReadAndNothingIsLeft(t *testing.T) {
	t.Setenv("GOVC_PASSWORD", "from the environment")
	t.Setenv("LD_LIBRARY_PATH", "/somewhere")
	t.Setenv("TMPDIR", t.TempDir())
	b := setupVDDK(t, 24*mib, func(c *vsphere.Config) { c.VDDK.Transports, c.VDDK.Compression = "nbdssl:nbd", "skipz" })
	im := b.open(t.Context())
	got, err := readAll(im)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
	whole := make([]byte, len(b.truth))
	_, err = im.ReadAt(whole, 0)
	require.NoError(t, err, "longer than a request may be")
	require.True(t, bytes.Equal(b.truth, whole))
	require.NoError(t, im.(providers.Confirmer).Confirm(t.Context()))

	var zeros, at int64
	for e, err := range im.Extents(t.Context(), 0, im.Size()) {
		require.NoError(t, err)
		require.Equal(t, at, e.Off)
		if at = e.End(); e.Kind == formats.Zero {
			zeros += e.Len
			require.Equal(t, make([]byte, e.Len), b.truth[e.Off:e.End()])
		}
	}
	require.Equal(t, im.Size(), at)
	require.Greater(t, zeros, im.Size()/4, "what is not allocated is not read")

	require.Equal(t, []string{
		"--single", "--exit-with-parent", "--readonly", "--log=stderr", "vddk", "libdir=/opt/vmware-vix-disklib-distrib",
		"server=" + b.server.URL().Hostname(), "user=" + b.server.Username(), "password=-3", "thumbprint=" + b.server.Thumbprint(),
		"vm=moref=" + string(b.vm.ID), "snapshot=" + string(b.snap.ID), "transports=nbdssl:nbd",
		"port=" + b.server.URL().Port(), "compression=skipz", "file=" + b.snap.Disks[0].Path,
	}, strings.Split(strings.TrimSpace(b.read("argv")), "\n"))
	proc := func(name string) string {
		out, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", b.pid(), name))
		require.NoError(t, err)
		return string(out)
	}
	require.Contains(t, proc("cmdline"), "--single")
	for _, text := range []string{b.read("argv"), b.read("env"), proc("cmdline"), proc("environ")} {
		require.NotContains(t, text, b.server.Password())
		require.NotContains(t, text, "from the environment")
		require.NotContains(t, text, "/somewhere")
	}
	require.Zero(t, b.served(), "not a byte came over HTTP")

	require.NoError(t, im.Close())
	require.NoError(t, im.Close())
	b.gone(0)
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	require.NoError(t, err)
	for _, e := range left {
		require.NotContains(t, e.Name(), "nbd")
	}
	require.Equal(t, 1, strings.Count(b.read("probes"), "\n"), "nbdkit is asked once what it has")
	b.open(t.Context()).Close()
	require.Equal(t, 1, strings.Count(b.read("probes"), "\n"))
}

// served is how much of the disk went over HTTP.
func (b *vddkBench) served() int64 {
	c, err := b.server.ServedDisk("web-01", 0)
	require.NoError(b, err)
	return c.Sent()
}

// viaVDDK is a provider whose best transport is VDDK, and which first shows the disks to the stand.
type viaVDDK struct {
	*vsphere.Provider
	stand  *stand
	server *vspheretest.Server
	vm     string
}

func (v *viaVDDK) OpenDisk(ctx context.Context, ref providers.DiskRef) (formats.Image, error) {
	if vm, err := v.VM(ctx, v.vm); err == nil {
		i := slices.IndexFunc(vm.Disks, func(d providers.Disk) bool { return d.ID == ref.Disk })
		if i >= 0 && ref.Snapshot != "no-such-snapshot" {
			v.stand.disk(string(ref.Snapshot), vm.Disks[i].Path, content(v.stand.T, v.server, v.vm, i, string(ref.Snapshot)))
		}
	}
	if ref.Transport == "" {
		ref.Transport = vsphere.VDDK
	}
	return v.Provider.OpenDisk(ctx, ref)
}

func TestProviderWithVDDK(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{TLS: true, Datacenters: []string{"DC0", "DC 1"}, VMs: []vspheretest.VM{
		{Name: "web-01", Hostname: "web-01", ISO: "[datastore1] iso/debian.iso", Disks: []vspheretest.Disk{disk(1, 6<<20), disk(2, 3<<20+3<<10)}},
		{Name: "twin", Disks: []vspheretest.Disk{disk(3, 1<<20)}},
		{Name: "twin", Datacenter: "DC 1", Disks: []vspheretest.Disk{disk(4, 1<<20)}},
	}})
	st := newStand(t, s.Password())
	all := providers.Capabilities((*vsphere.Provider)(nil))
	providertest.Run(t, providertest.Harness{
		Open: func(t *testing.T) providers.Provider {
			c := config(s)
			st.configure(&c)
			p, err := vsphere.Open(t.Context(), c, providers.Env{Log: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			return &viaVDDK{p, st, s, "web-01"}
		},
		VM: "web-01", Absent: "vm-999999", Ambiguous: "twin", Want: all,
		Write: func(t *testing.T, vm providers.VM, d providers.Disk, off int64, p []byte) {
			i := slices.IndexFunc(vm.Disks, func(x providers.Disk) bool { return x.ID == d.ID })
			require.NoError(t, s.GuestWrite("web-01", i, off, p))
		},
		Package: func(t *testing.T) (providers.Package, providers.ImportTarget) {
			to := toNetwork("imported")
			to.Folder = "/DC0/vm"
			return packaged(t, nil, guestDisk(3, 1<<20)), to
		},
		Truth: func(t *testing.T, vm providers.VM, d providers.Disk) []byte {
			snaps, err := s.Snapshots("web-01")
			require.NoError(t, err)
			i := slices.IndexFunc(vm.Disks, func(x providers.Disk) bool { return x.ID == d.ID })
			return content(t, s, "web-01", i, snaps[0].ID)
		},
	})
}

func TestVDDKReadsThroughASnapshotOfOthers(t *testing.T) {
	b := setupVDDK(t, 4*mib)
	require.NoError(t, b.server.GuestWrite("web-01", 0, mib, bytes.Repeat([]byte{9}, mib)))
	first := b.ref
	b.snapshot("job/2")
	require.Equal(t, bytes.Repeat([]byte{9}, mib), b.truth[mib:2*mib])
	tr, err := b.p.Transports(t.Context(), b.vm)
	require.NoError(t, err)
	require.Equal(t, "datastore vddk nfc", tr[0].Name+" "+tr[1].Name+" "+tr[2].Name)
	require.NotEmpty(t, tr[0].Why)
	require.Equal(t, providers.Transport{Name: "vddk", Resumable: true}, tr[1])

	im := b.open(t.Context())
	got, err := readAll(im)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
	require.Regexp(t, `-\d{6}\.vmdk\n`, b.read("argv"), "the head of the chain is opened")
	require.NoError(t, b.p.DeleteSnapshot(t.Context(), first.VM, b.ref.Snapshot))
	require.ErrorIs(t, im.(providers.Confirmer).Confirm(t.Context()), providers.NotFound)
	_, err = b.p.OpenDisk(t.Context(), b.ref)
	require.ErrorIs(t, err, providers.NotFound)
}

func TestVDDKTransportSaysWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*vsphere.Config)
		dump   string // what the program tells of its plugin
		says   string
	}{
		"not configured":  {func(c *vsphere.Config) { c.VDDK.LibDir = "" }, "", "set vddk.libdir of the connection"},
		"no nbdkit":       {func(c *vsphere.Config) { c.VDDK.NBDKit = "/no/such/nbdkit" }, "", "there is no /no/such/nbdkit on this host"},
		"none in PATH":    {func(c *vsphere.Config) { c.VDDK.NBDKit = "nbdkit-of-nobody" }, "", "there is no nbdkit-of-nobody on this host"},
		"no plugin":       {func(c *vsphere.Config) { c.VDDK.NBDKit = "nbdkit" }, "", "nbdkit has no VDDK plugin that works"},
		"another program": {func(c *vsphere.Config) { c.VDDK.NBDKit = "/bin/echo" }, "", "does not answer as nbdkit does"},
		"an old plugin": {func(*vsphere.Config) {}, strings.ReplaceAll(works, "1.32.5", "1.28.3"),
			`version "1.28.3" of the VDDK plugin; 1.30 or newer`},
		"no library": {func(*vsphere.Config) {}, strings.ReplaceAll(works, "vddk_library_version=8\n", ""),
			"finds no VDDK that it can load in /opt/vmware-vix-disklib-distrib"},
	} {
		t.Run(name, func(t *testing.T) {
			b := setupVDDK(t, mib, c.change)
			if c.dump != "" {
				b.write("dump", c.dump, 0o600)
			}
			tr, err := b.p.Transports(t.Context(), b.vm)
			require.NoError(t, err)
			require.Len(t, tr, 3)
			i := slices.IndexFunc(tr, func(t providers.Transport) bool { return t.Name == vsphere.VDDK })
			require.Contains(t, tr[i].Why, c.says)
			require.False(t, tr[i].Leased)
			require.True(t, tr[i].Resumable)
			if name == "not configured" {
				require.Equal(t, 2, i, "it is no better way than those before")
			} else {
				require.Equal(t, 1, i)
			}
			require.Empty(t, tr[0].Why)
			_, err = b.p.OpenDisk(t.Context(), b.ref)
			require.ErrorIs(t, err, providers.Unsupported)
			require.ErrorContains(t, err, c.says)
		})
	}

	t.Run("mended while we run", func(t *testing.T) {
		b := setupVDDK(t, mib)
		b.write("dump", "", 0o600)
		_, err := b.p.OpenDisk(t.Context(), b.ref)
		require.ErrorIs(t, err, providers.Unsupported)
		b.write("dump", works, 0o600)
		b.open(t.Context())
	})
	t.Run("cancelled while nbdkit is asked", func(t *testing.T) {
		b := setupVDDK(t, mib)
		require.NoError(t, os.Remove(filepath.Join(b.dir, "dump")))
		require.NoError(t, syscall.Mkfifo(filepath.Join(b.dir, "dump"), 0o600)) // which nobody writes to
		for name, ask := range map[string]func(context.Context) error{
			"transports": func(ctx context.Context) error { _, err := b.p.Transports(ctx, b.vm); return err },
			"disk":       func(ctx context.Context) error { _, err := b.p.OpenDisk(ctx, b.ref); return err },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- ask(ctx) }()
			require.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(b.dir, "probes")); return err == nil }, time.Minute, time.Millisecond)
			cancel()
			require.ErrorIs(t, <-done, context.Canceled, name)
			require.NoError(t, os.Remove(filepath.Join(b.dir, "probes")))
		}
	})
	t.Run("plain HTTP", func(t *testing.T) {
		b := setup(t, mib, func(c *vsphere.Config) { c.VDDK.LibDir = "/opt/vddk" })
		tr, err := b.p.Transports(t.Context(), b.vm)
		require.NoError(t, err)
		require.Contains(t, tr[1].Why, "HTTPS only")
	})
}

func TestVDDKServesWhatTheDatastoreDoesNot(t *testing.T) {
	s := vspheretest.Start(t, vspheretest.Options{TLS: true, Datastores: []vspheretest.Datastore{{Name: "vsan", Type: "vsan"}},
		VMs: []vspheretest.VM{{Name: "web-01", Datastore: "vsan", Disks: []vspheretest.Disk{disk(1, mib)}}}})
	p := connect(t, s, newStand(t, s.Password()).configure)
	vm, err := p.VM(t.Context(), "web-01")
	require.NoError(t, err)
	tr, err := p.Transports(t.Context(), vm)
	require.NoError(t, err)
	require.Contains(t, tr[0].Why, "vsan")
	require.Equal(t, providers.Transport{Name: "vddk", Resumable: true}, tr[1])
}

func TestVDDKRefusals(t *testing.T) {
	// In the way of VDDK: nbdkit runs, and the disk cannot be opened when somebody connects.
	atOpen := func(msg string) string {
		return `exec nbdkit $options eval get_size='echo 512' pread='exit 1' open='echo "EIO VixDiskLib_Open: [datastore1] x.vmdk: ` + msg + `" >&2; exit 1'`
	}
	for name, c := range map[string]struct {
		serve  string
		reason providers.Reason
		says   string
	}{
		"no access":         {atOpen("You do not have access rights to this file"), providers.Denied, "VixDiskLib_Open: [datastore1] x.vmdk: You do not have access rights to this file"},
		"no file":           {atOpen("A file was not found"), providers.NotFound, "A file was not found"},
		"no route":          {atOpen("Cannot connect to host"), providers.Unavailable, "Cannot connect to host"},
		"no memory":         {atOpen("received NFC error 5 from server: Failed to allocate the requested 2097176 bytes"), providers.Throttled, "NFC error 5"},
		"no licence":        {atOpen("The host is not licensed for this feature"), providers.Unsupported, "not licensed"},
		"another size":      {`exec nbdkit $options memory 4M`, providers.Precondition, "serves 4194304 bytes, the disk has 1048576"},
		"dies at once":      {`exit 7`, providers.Unavailable, "nbdkit ended (exit status 7)"},
		"talks of secrets":  {`echo "nbdkit: error: cannot use $(cat "$lab/password") here" >&2; exit 1`, providers.Unavailable, "cannot use [redacted] here"},
		"crashes":           {`kill -SEGV $$`, providers.Unavailable, "segmentation fault"},
		"no server of NBD":  {`echo 'HTTP/1.1 400 Bad Request, and so on and so on'`, providers.Unavailable, "newstyle handshake"},
		"talks without end": {`yes 'nbdkit: error: and again' | head -n 100000 >&2; exit 1`, providers.Unavailable, "and again"},
	} {
		t.Run(name, func(t *testing.T) {
			b := setupVDDK(t, mib)
			b.serve(c.serve)
			_, err := b.p.OpenDisk(t.Context(), b.ref)
			require.ErrorIs(t, err, c.reason, "%v", err)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), b.server.Password())
			require.Less(t, len(err.Error()), 1000)
			b.gone(0)
			b.serve(`exec nbdkit $options file "$disk"`)
			b.open(t.Context()) // nothing is left in the way
		})
	}
	t.Run("wrong password", func(t *testing.T) {
		b := setupVDDK(t, mib)
		b.write("password", "another one", 0o600)
		_, err := b.p.OpenDisk(t.Context(), b.ref)
		require.ErrorIs(t, err, providers.Auth)
		require.ErrorContains(t, err, "incorrect user name or password")
		b.gone(0)
	})
}

func TestVDDKReadFails(t *testing.T) {
	b := setupVDDK(t, 4*mib)
	b.serve(`exec nbdkit $options --filter=error file "$disk" error-pread=EIO error-pread-rate=100% error-pread-file="$lab/fail"`)
	im := b.open(t.Context())
	_, err := readAll(im)
	require.NoError(t, err)
	b.write("fail", "", 0o600)
	_, err = readAll(im)
	require.ErrorIs(t, err, providers.Unavailable)
	require.ErrorContains(t, err, "vsphere: read disk "+string(b.vm.ID))
	require.NoError(t, os.Remove(filepath.Join(b.dir, "fail")))
	got, err := readAll(im)
	require.NoError(t, err, "one request failed, not the disk")
	require.True(t, bytes.Equal(b.truth, got))
}

func TestVDDKKilledInTheMiddle(t *testing.T) {
	b := setupVDDK(t, 8*mib)
	b.serve(`exec nbdkit $options --filter=delay file "$disk" rdelay=20ms`)
	im := b.open(t.Context())
	failed := make(chan error, 1)
	go func() {
		for {
			if _, err := readAll(im); err != nil {
				failed <- err
				return
			}
		}
	}()
	require.NoError(t, syscall.Kill(b.pid(), syscall.SIGKILL))
	err := <-failed
	require.ErrorIs(t, err, providers.Unavailable)
	require.ErrorContains(t, err, "nbdkit ended (signal: killed)")
	require.NotErrorIs(t, err, context.Canceled)
	_, err = im.ReadAt(make([]byte, 1), 0)
	require.ErrorIs(t, err, providers.Unavailable)
	require.NoError(t, im.Close())

	again := b.open(t.Context())
	got, err := readAll(again)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.truth, got))
}

// stubborn never greets, and does not mind being asked to end.
const stubborn = `exec sh -c 'trap "" TERM; while :; do sleep 0.1; done'`

func TestVDDKEndsWithItsContext(t *testing.T) {
	for name, serve := range map[string]string{
		"while it reads":         `exec nbdkit $options --filter=delay file "$disk" rdelay=5`,
		"before it was opened":   stubborn,
		"while it opens":         `exec nbdkit $options eval get_size='echo 512' pread='exit 1' open='sleep 5'`,
		"however it is asked to": `exec nbdkit $options eval get_size="echo 1048576" pread='trap "" TERM; sleep 5'`,
	} {
		t.Run(name, func(t *testing.T) {
			b := setupVDDK(t, mib)
			b.serve(serve)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() {
				im, err := b.p.OpenDisk(ctx, b.ref)
				if err == nil {
					_, err = im.ReadAt(make([]byte, 512), 0)
				}
				done <- err
			}()
			require.Eventually(t, func() bool { return b.pid() != 0 }, time.Minute, time.Millisecond)
			cancel()
			begin := time.Now()
			err := <-done
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, providers.Canceled, providers.ReasonOf(err))
			b.gone(2*time.Second - time.Since(begin))
		})
	}
}

func TestVDDKThatIsTooSlow(t *testing.T) {
	b := setupVDDK(t, mib, func(c *vsphere.Config) { c.VDDK.Ready = vsphere.Duration(200 * time.Millisecond) })
	b.serve(stubborn)
	_, err := b.p.OpenDisk(t.Context(), b.ref)
	require.ErrorIs(t, err, providers.Unavailable)
	require.ErrorContains(t, err, "longer than 200ms (vddk.ready)")
	b.gone(0)
}

func TestVDDKLimitsItsDisks(t *testing.T) {
	b := setupVDDK(t, mib, func(c *vsphere.Config) { c.VDDK.Disks = 1 })
	im := b.open(t.Context())
	_, err := b.p.OpenDisk(t.Context(), b.ref)
	require.ErrorIs(t, err, providers.Throttled)
	require.Positive(t, providers.RetryAfter(err))
	require.ErrorContains(t, err, "vddk.disks")
	require.NoError(t, im.Close())
	b.open(t.Context()).Close()
	b.serve("exit 1")
	for range 2 {
		_, err = b.p.OpenDisk(t.Context(), b.ref)
		require.ErrorIs(t, err, providers.Unavailable, "one that could not be opened counts no more")
	}
	require.False(t, errors.Is(err, providers.Throttled))
}

// A delta of tracked changes is read at random, which a lease cannot do.
func TestVDDKReadsWhatChanged(t *testing.T) {
	b := setupVDDK(t, 16*mib)
	ctx := t.Context()
	again := func(key string) {
		require.NoError(t, b.p.DeleteSnapshot(ctx, b.vm.ID, b.snap.ID))
		b.snapshot(key)
	}
	require.NoError(t, b.p.DeleteSnapshot(ctx, b.vm.ID, b.snap.ID))
	require.NoError(t, b.p.SetTracking(ctx, b.vm.ID, true))
	b.snapshot("stun")
	again("base")
	since, before := b.snap.Disks[0].ChangeID, b.truth
	for i := range int64(5) {
		require.NoError(t, b.server.GuestWrite("web-01", 0, 3*i*mib+512, bytes.Repeat([]byte{byte(i + 1)}, 100<<10)))
	}
	again("delta")
	ch, err := b.p.Changes(ctx, b.ref, since)
	require.NoError(t, err)

	delta := cbt.View(b.open(ctx), ch.Ranges)
	got, read := slices.Clone(before), int64(0)
	for e, err := range delta.Extents(ctx, 0, delta.Size()) {
		require.NoError(t, err)
		switch e.Kind {
		case formats.Data:
			_, err := delta.ReadAt(got[e.Off:e.End()], e.Off)
			require.NoError(t, err)
			read += e.Len
		case formats.Zero:
			clear(got[e.Off:e.End()])
		}
	}
	require.True(t, bytes.Equal(b.truth, got))
	require.Less(t, read, int64(mib))
	require.NoError(t, b.p.SetTracking(ctx, b.vm.ID, false))
}

package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheExamOfAnImageOverEveryKindOfServer(t *testing.T) {
	d := formatstest.NewDisk(1, 5*mib)
	file := rawFile(t, d)
	for name, s := range map[string]struct {
		serve func(t *testing.T) string
		tight bool
	}{
		"nbdkit": {func(t *testing.T) string { return nbdkit(t, "-r", "file", file) }, false},
		"nbdkit, whole blocks only": {func(t *testing.T) string {
			return nbdkit(t, "-r", "--filter=blocksize-policy", "file", file, "blocksize-minimum=4096", "blocksize-error-policy=error")
		}, false},
		"nbdkit, short requests": {func(t *testing.T) string {
			return nbdkit(t, "-r", "--filter=blocksize-policy", "file", file, "blocksize-maximum=65536", "blocksize-error-policy=error")
		}, false},
		"nbdkit, without a map":  {func(t *testing.T) string { return nbdkit(t, "-r", "--filter=noextents", "file", file) }, false},
		"nbdkit, simple replies": {func(t *testing.T) string { return nbdkit(t, "-r", "--no-sr", "file", file) }, false},
		"nbdkit, one at a time": {func(t *testing.T) string {
			return nbdkit(t, "-r", "--filter=noparallel", "file", file, "serialize=connections")
		}, false},
		"nbdkit, answers in any order": {func(t *testing.T) string {
			return nbdkit(t, "-r", "--filter=delay", "file", file, "delay-read=2ms")
		}, false},
		"qemu":      {func(t *testing.T) string { return qemuNBD(t, "-r", "-f", "raw", file) }, false},
		"qemu, ten": {func(t *testing.T) string { return qemuNBD(t, "-r", "-e", "10", "-f", "raw", file) }, false},
		"qemu, qcow2": {func(t *testing.T) string {
			q := filepath.Join(t.TempDir(), "d.qcow2")
			formatstest.QemuConvert(t, "raw", file, "qcow2", q)
			return qemuNBD(t, "-r", "-f", "qcow2", q)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			img := open(t, s.serve(t))
			require.True(t, img.ReadOnly())
			formatstest.CheckImage(t, img, d, s.tight)
			_, err := img.Writer()
			require.ErrorIs(t, err, syscall.EROFS)
		})
	}
}

func TestAMapTellsHolesFromData(t *testing.T) {
	socket := nbdkit(t, "-r", "data", "@0 1*65536 @2097152 1*65536", "size=4M")
	img := open(t, socket)
	var data int64
	for _, e := range formatstest.Map(t, img, 0, img.Size()) {
		if e.Kind == formats.Data {
			data += e.Len
		}
	}
	require.Less(t, data, img.Size()/2, "the server knows of holes, and says so")
}

func TestADiskThatIsWritten(t *testing.T) {
	d := formatstest.NewDisk(7, 9*mib)
	src, err := os.Open(rawFile(t, d))
	require.NoError(t, err)
	defer src.Close()
	for name, serve := range map[string]func(t *testing.T, file string) string{
		"nbdkit":              func(t *testing.T, f string) string { return nbdkit(t, "file", f) },
		"nbdkit, cannot zero": func(t *testing.T, f string) string { return nbdkit(t, "--filter=nozero", "file", f) },
		"nbdkit, short requests": func(t *testing.T, f string) string {
			return nbdkit(t, "--filter=blocksize-policy", "file", f, "blocksize-maximum=65536", "blocksize-error-policy=error")
		},
		"qemu, several connections": func(t *testing.T, f string) string { return qemuNBD(t, "-e", "20", "-f", "raw", f) },
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "target")
			require.NoError(t, os.WriteFile(file, bytes.Repeat([]byte{0xee}, int(d.Size())), 0o600))
			socket := serve(t, file)
			w, err := open(t, socket).Writer()
			require.NoError(t, err)
			require.NoError(t, copyTo(t.Context(), w, noClose{d}))
			require.NoError(t, w.Close())
			formatstest.CheckImage(t, open(t, socket), d, false)

			w, err = open(t, socket).Writer()
			require.NoError(t, err)
			_, err = w.WriteAt(make([]byte, 100), 512)
			require.ErrorIs(t, err, formats.ErrAlign)
			_, err = w.WriteAt(make([]byte, 512), d.Size())
			require.Error(t, err)
			require.Error(t, w.WriteZeroes(-512, 512))
		})
	}
}

type noClose struct{ formats.Image }

func (noClose) Close() error { return nil }

func TestABitmapOfQemu(t *testing.T) {
	q := filepath.Join(t.TempDir(), "d.qcow2")
	formatstest.Qemu(t, "create", "-q", "-f", "qcow2", q, "8M")
	formatstest.Qemu(t, "bitmap", "--add", "--enable", q, "since")
	t.Run("a server marks what it writes", func(t *testing.T) {
		w, err := open(t, qemuNBD(t, "-f", "qcow2", q)).Writer()
		require.NoError(t, err)
		_, err = w.WriteAt(bytes.Repeat([]byte{1}, 65536), 3*mib)
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context()))
	})

	const name = "qemu:dirty-bitmap:since"
	socket := qemuNBD(t, "-r", "-e", "9", "-B", "since", "-f", "qcow2", q)
	img := open(t, socket, func(o *nbd.Options) { o.Context = name })
	var marked []formats.Extent
	for e, err := range img.Marked(t.Context(), name, 0, img.Size()) {
		require.NoError(t, err)
		if e.Kind == formats.Data {
			marked = append(marked, e)
		}
	}
	require.Equal(t, []formats.Extent{{Off: 3 * mib, Len: 65536, Kind: formats.Data}}, marked)

	_, err := connect(t.Context(), socket, func(o *nbd.Options) { o.Context = "qemu:dirty-bitmap:other" })
	require.ErrorContains(t, err, `no metadata context "qemu:dirty-bitmap:other"`)
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	pool := certificate(t, dir)
	d := formatstest.NewDisk(3, 2*mib)
	socket := nbdkit(t, "-r", "--tls=require", "--tls-certificates="+dir, "file", rawFile(t, d))
	formatstest.CheckImage(t, open(t, socket, trusting(pool)), d, false)

	_, err := connect(t.Context(), socket)
	require.ErrorContains(t, err, "wants TLS first")
	_, err = connect(t.Context(), socket, trusting(pool), func(o *nbd.Options) { o.TLS.ServerName = "others.example" })
	require.ErrorContains(t, err, "others.example")

	plain := nbdkit(t, "-r", "file", rawFile(t, d))
	open(t, plain)
	_, err = connect(t.Context(), plain, trusting(pool))
	require.ErrorContains(t, err, "refuses TLS", "what has to be encrypted is never sent in the clear")
}

func TestServerErrorsKeepTheirMeaning(t *testing.T) {
	socket := nbdkit(t, "--filter=error", "memory", "4M", "error=ENOSPC", "error-pwrite-rate=100%", "error-pread-rate=0")
	w, err := open(t, socket).Writer()
	require.NoError(t, err)
	_, err = w.WriteAt(make([]byte, 4096), 0)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.ErrorContains(t, err, "nbd: write 4096 bytes at 0")

	img := open(t, nbdkit(t, "-r", "--filter=error", "memory", "4M", "error=EIO", "error-pread-rate=100%"))
	_, err = img.ReadAt(make([]byte, 4096), 8192)
	require.ErrorIs(t, err, syscall.EIO)
	this := qemuNBD(t, "-x", "this", "-e", "9", "-r", "-f", "raw", rawFile(t, formatstest.NewDisk(1, mib)))
	_, err = connect(t.Context(), this, func(o *nbd.Options) { o.Export = "that" })
	require.ErrorContains(t, err, "no such export")
}

func TestCancellingFailsWhatIsPending(t *testing.T) {
	socket := nbdkit(t, "-r", "--filter=delay", "memory", "64M", "delay-read=60")
	ctx, cancel := context.WithCancelCause(t.Context())
	img, err := connect(ctx, socket)
	require.NoError(t, err)
	defer img.Close()
	var readers sync.WaitGroup
	errs := make(chan error, 8)
	for i := range 8 {
		readers.Go(func() {
			_, err := img.ReadAt(make([]byte, mib), int64(i)*mib)
			errs <- err
		})
	}
	why := errors.New("enough")
	cancel(why)
	readers.Wait()
	for range 8 {
		require.ErrorIs(t, <-errs, why)
	}
	_, err = img.ReadAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, why)
}

func TestAServerThatGoesAwayIsAnError(t *testing.T) {
	client, server := net.Pipe()
	go func() {
		s := &fake{Conn: server}
		s.greet()
		_, _ = io.CopyN(io.Discard, server, 28)
		_ = server.Close()
	}()
	img := dialed(t, client)
	_, err := img.ReadAt(make([]byte, 4096), 0)
	require.ErrorContains(t, err, "closed the connection")
	require.NotErrorIs(t, err, io.EOF, "the end of the connection is not the end of the disk")
}

func TestAServerThatHangsIsLeft(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	greeted := make(chan struct{})
	go func() {
		defer close(greeted)
		(&fake{Conn: server}).greet()
	}()
	img, err := nbd.Open(t.Context(), nbd.Options{Network: "tcp", Address: "fake:1", Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
	require.NoError(t, err)
	<-greeted // from now on it reads nothing
	failed := make(chan error)
	go func() {
		_, err := img.ReadAt(make([]byte, 4096), 0)
		failed <- err
	}()
	require.NoError(t, img.Close())
	require.Error(t, <-failed)
}

func TestURIs(t *testing.T) {
	for in, want := range map[string]nbd.Options{
		"nbd://host":                           {Network: "tcp", Address: "host:10809"},
		"nbd://host:99/a%20b":                  {Network: "tcp", Address: "host:99", Export: "a b"},
		"nbd://[::1]/x":                        {Network: "tcp", Address: "[::1]:10809", Export: "x"},
		"nbd+unix:///x?socket=%2Frun%2Fs.sock": {Network: "unix", Address: "/run/s.sock", Export: "x"},
		"nbd+unix:///?socket=/run/s.sock":      {Network: "unix", Address: "/run/s.sock"},
	} {
		got, err := nbd.ParseURI(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	got, err := nbd.ParseURI("nbds://host/x")
	require.NoError(t, err)
	require.NotNil(t, got.TLS)
	for in, why := range map[string]string{
		"http://host": "scheme", "nbd:///x": "names no host", "nbd+unix:///x": "?socket=", "nbd+unix://host/x?socket=/s": "names no host", "nbd://%zz": "invalid",
	} {
		_, err := nbd.ParseURI(in)
		require.ErrorContains(t, err, why, in)
	}
}

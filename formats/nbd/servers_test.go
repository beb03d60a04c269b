package nbd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/formats/nbd"
	"hypersdk/formats/raw"
)

const mib = 1 << 20

// rawFile is d as a file, with its holes.
func rawFile(t *testing.T, d *formatstest.Disk) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	require.NoError(t, err)
	defer f.Close()
	w, err := raw.Format().Create(t.Context(), f, d.Size(), formats.CreateOptions{}, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, formatstest.Fill(w, d, 0, d.Size()))
	require.NoError(t, w.Commit(t.Context()))
	require.NoError(t, w.Close())
	return f.Name()
}

// run starts a server that listens on the Unix socket it answers, and stops it with the test.
func run(t *testing.T, program string, args func(socket string) []string) string {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed", program)
	}
	dir, err := os.MkdirTemp("", "nbd") //nolint:usetesting // the path of a socket has to be short
	require.NoError(t, err)
	socket := filepath.Join(dir, "s")
	var stderr bytes.Buffer
	cmd := exec.Command(program, args(socket)...)
	cmd.Stderr = &stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // qemu-nbd stores its bitmaps then
		late := time.AfterFunc(30*time.Second, func() {
			t.Errorf("%s does not end", program)
			_ = cmd.Process.Kill()
		})
		_ = cmd.Wait()
		late.Stop()
		require.NoError(t, os.RemoveAll(dir))
		if t.Failed() {
			t.Log(stderr.String())
		}
	})
	require.Eventually(t, func() bool {
		st, err := os.Stat(socket)
		return err == nil && st.Mode()&os.ModeSocket != 0
	}, time.Minute, 5*time.Millisecond, "%s did not listen: %s", program, &stderr)
	return socket
}

func nbdkit(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "nbdkit", func(s string) []string { return append([]string{"-f", "-U", s}, args...) })
}

func qemuNBD(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, "qemu-nbd", func(s string) []string { return append([]string{"-t", "-k", s}, args...) })
}

// connect opens what the server at socket exports, or says why the server refuses. It asks until it is
// answered: bind and listen are two steps of a server, and qemu-nbd loses a SIGTERM that comes between them.
func connect(ctx context.Context, socket string, change ...func(*nbd.Options)) (*nbd.Disk, error) {
	o := nbd.Options{Network: "unix", Address: socket}
	for _, f := range change {
		f(&o)
	}
	for until := time.Now().Add(10 * time.Second); ; {
		d, err := nbd.Open(ctx, o)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(until) {
			return d, err
		}
	}
}

func open(t *testing.T, socket string, change ...func(*nbd.Options)) *nbd.Disk {
	t.Helper()
	d, err := connect(t.Context(), socket, change...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

// certificate is a self-signed one in files as nbdkit wants them, and the pool that trusts it.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "disks"}, DNSNames: []string{"disks.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, b := range map[string][]byte{
		"ca-cert.pem": cert, "server-cert.pem": cert, "server-key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(cert))
	return pool
}

func trusting(pool *x509.CertPool) func(*nbd.Options) {
	return func(o *nbd.Options) { o.TLS = &tls.Config{RootCAs: pool, ServerName: "disks.example"} }
}

// copyTo copies src into a writer, as every copy is made.
func copyTo(ctx context.Context, w formats.Writer, src formats.Source) error {
	if _, err := formats.Copy(ctx, w, src, formats.CopyOptions{Workers: 4}); err != nil {
		return err
	}
	return w.Commit(ctx)
}

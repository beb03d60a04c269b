package ovf_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/ovf"
)

func isRefusal(err error) bool {
	return errors.Is(err, formats.ErrFormat) || errors.Is(err, formats.ErrCorrupt)
}

func TestReadsManifestsInEverySpelling(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	want, err := hex.DecodeString(sum)
	require.NoError(t, err)
	for _, line := range []string{
		"SHA256(a b.vmdk)= " + sum, "SHA256 (a b.vmdk) = " + sum, "SHA-256(./a b.vmdk)=" + sum, "SHA2-256(a b.vmdk)= " + strings.ToUpper(sum),
		"sha256(a b.vmdk)= " + sum + "\r", "\ufeffSHA256(a b.vmdk)= " + sum, "# made by hand\n\nSHA256( a b.vmdk )= " + sum,
	} {
		m, err := ovf.ReadManifest(strings.NewReader(line + "\n"))
		require.NoError(t, err, line)
		require.Equal(t, ovf.Manifest{{Name: "a b.vmdk", Hash: crypto.SHA256, Sum: want}}, m, line)
	}
	m, err := ovf.ReadManifest(strings.NewReader("SHA1(x (1).ovf)= " + sum[:40] + "\nSHA512(y)= " + sum + sum + "\n"))
	require.NoError(t, err)
	require.Equal(t, "x (1).ovf", m[0].Name)
	var b bytes.Buffer
	_, err = m.WriteTo(&b)
	require.NoError(t, err)
	require.Equal(t, "SHA1(x (1).ovf)= "+sum[:40]+"\nSHA512(y)= "+sum+sum+"\n", b.String())
}

func TestRefusesManifestsThatLie(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	for _, line := range []string{
		"MD5(a)= " + sum[:32], "SHA256(a)= " + sum[2:], "SHA256(a)= zz" + sum[2:], "SHA256(a) " + sum, "SHA256 a = " + sum,
		"SHA256(../a)= " + sum, "SHA256(/a)= " + sum, "SHA256()= " + sum, "SHA256(a\x1b)= " + sum, sum + "  a",
	} {
		_, err := ovf.ReadManifest(strings.NewReader(line))
		require.True(t, isRefusal(err), "%q: %v", line, err)
	}
	_, err := ovf.ReadManifest(strings.NewReader(strings.Repeat("x", 1<<20)))
	require.Error(t, err)
	_, err = ovf.Manifest{{Name: "a", Hash: crypto.MD5, Sum: make([]byte, 16)}}.WriteTo(&bytes.Buffer{})
	require.True(t, isRefusal(err))
}

// signer makes a key and a certificate of its own.
func signer(t testing.TB) *ovf.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &ovf.Signer{Key: key, Chain: []*x509.Certificate{cert}}
}

func TestSignsManifests(t *testing.T) {
	s := signer(t)
	manifest := []byte("SHA256(a.ovf)= 00\n")
	cert, err := s.Certificate("a.mf", manifest)
	require.NoError(t, err)
	chain, err := ovf.VerifyCertificate(cert, "a.mf", manifest)
	require.NoError(t, err)
	require.True(t, chain[0].Equal(s.Chain[0]))

	for name, c := range map[string]struct {
		cert     []byte
		name     string
		manifest []byte
	}{
		"another manifest": {cert, "a.mf", []byte("SHA256(a.ovf)= 01\n")},
		"another name":     {cert, "b.mf", manifest},
		"no certificate":   {cert[:bytes.IndexByte(cert, '\n')+1], "a.mf", manifest},
		"no signature":     {cert[bytes.IndexByte(cert, '\n')+1:], "a.mf", manifest},
		"nothing":          {nil, "a.mf", manifest},
		"a broken one":     {bytes.Replace(cert, []byte("MII"), []byte("MIJ"), 1), "a.mf", manifest},
	} {
		_, err := ovf.VerifyCertificate(c.cert, c.name, c.manifest)
		require.ErrorIs(t, err, formats.ErrCorrupt, name)
	}

	other := signer(t)
	_, err = ovf.Signer{Key: s.Key, Chain: other.Chain}.Certificate("a.mf", manifest)
	require.ErrorIs(t, err, formats.ErrFormat)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	_, err = ovf.Signer{Key: ec, Chain: s.Chain}.Certificate("a.mf", manifest)
	require.ErrorIs(t, err, formats.ErrFormat)
}

// TestOpenSSLAgrees verifies our signature, and has us verify its own.
func TestOpenSSLAgrees(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed: nothing to compare with (package openssl)")
	}
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	openssl := func(args ...string) []byte {
		out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
		require.NoError(t, err, "openssl %q: %s", args, out)
		return out
	}
	s := signer(t)
	manifest := []byte("SHA256(a.ovf)= 00\n")
	cert, err := s.Certificate("a.mf", manifest)
	require.NoError(t, err)
	line, rest, _ := bytes.Cut(cert, []byte("\n"))
	sig, err := hex.DecodeString(string(bytes.TrimPrefix(line, []byte("SHA256(a.mf)= "))))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path("sig"), sig, 0o600))
	require.NoError(t, os.WriteFile(path("cert.pem"), rest, 0o600))
	require.NoError(t, os.WriteFile(path("a.mf"), manifest, 0o600))
	require.NoError(t, os.WriteFile(path("pub.pem"), openssl("x509", "-in", path("cert.pem"), "-pubkey", "-noout"), 0o600))
	require.Contains(t, string(openssl("dgst", "-sha256", "-verify", path("pub.pem"), "-signature", path("sig"), path("a.mf"))), "Verified OK")

	der, err := x509.MarshalPKCS8PrivateKey(s.Key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path("key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	openssl("dgst", "-sha512", "-sign", path("key.pem"), "-out", path("sig"), path("a.mf"))
	sig, err = os.ReadFile(path("sig"))
	require.NoError(t, err)
	theirs := append([]byte("SHA512(a.mf)= "+hex.EncodeToString(sig)+"\n"), rest...)
	_, err = ovf.VerifyCertificate(theirs, "a.mf", manifest)
	require.NoError(t, err)
	sum := sha256.Sum256(manifest)
	require.Contains(t, string(openssl("dgst", "-sha256", path("a.mf"))), hex.EncodeToString(sum[:]))
}

func FuzzManifest(f *testing.F) {
	f.Add("SHA256(a)= " + strings.Repeat("ab", 32))
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ovf.ReadManifest(strings.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if _, err := m.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		again, err := ovf.ReadManifest(&b)
		if err != nil || len(again) != len(m) {
			t.Fatalf("%v: %d sums became %d", err, len(m), len(again))
		}
	})
}

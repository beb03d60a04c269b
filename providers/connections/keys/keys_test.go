package keys_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/connections/keys"
)

func TestLoadOrCreateMakesAKeyOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "keys")
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			r, err := keys.LoadOrCreate(dir)
			if err == nil {
				ids[i] = r.String()
			}
		})
	}
	wg.Wait()
	require.NotEmpty(t, ids[0])
	for _, id := range ids {
		require.Equal(t, ids[0], id, "all that came at once have the same key")
	}
	st, err := os.Stat(filepath.Join(dir, keys.FileName))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode().Perm())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "nothing but the key file stays")
}

func TestCreateReplacesNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k")
	require.NoError(t, keys.Create(file))
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	require.ErrorIs(t, keys.Create(file), fs.ErrExist)
	after, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	good := strings.Repeat("A", 43) + "="
	for name, c := range map[string]struct {
		content string
		mode    fs.FileMode
		want    string
	}{
		"everybody may read it": {"hypersdk-key-1:" + good + "\n", 0o644, "chmod 600"},
		"empty":                 {"# nothing\n\n", 0o600, "no key"},
		"another kind of file":  {"-----BEGIN CERTIFICATE-----\n", 0o600, "line 1"},
		"a key too short":       {"# x\nhypersdk-key-1:QUJD\n", 0o600, "line 2"},
		"huge":                  {strings.Repeat("# padding\n", 10_000), 0o600, "not a key file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "k")
			require.NoError(t, os.WriteFile(file, []byte(c.content), 0o600))
			require.NoError(t, os.Chmod(file, c.mode))
			_, err := keys.Load(file)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "AAAA", "an error never shows a key")
		})
	}
	_, err := keys.Load(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestSealedOpensForItsPurposeOnly(t *testing.T) {
	r := ring(t)
	s := r.Sealer("payload")
	sealed := s.Seal([]byte("secret"), []byte("name"))
	require.NotContains(t, string(sealed), "secret")
	require.Len(t, sealed, len("secret")+keys.Overhead)

	plain, err := r.Sealer("payload").Open(sealed, []byte("name"))
	require.NoError(t, err)
	require.Equal(t, "secret", string(plain))

	_, err = s.Open(sealed, []byte("another name"))
	require.ErrorIs(t, err, keys.ErrDamaged)
	_, err = r.Sealer("connection").Open(sealed, []byte("name"))
	require.ErrorIs(t, err, keys.ErrDamaged)
	require.NotEqual(t, sealed, s.Seal([]byte("secret"), []byte("name")), "a nonce is used once")
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	s := ring(t).Sealer("x")
	sealed := s.Seal([]byte("0123456789"), nil)
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		_, err := s.Open(bad, nil)
		require.Error(t, err, "bit %d", i)
	}
	for n := range sealed {
		_, err := s.Open(sealed[:n], nil)
		require.Error(t, err, "cut to %d bytes", n)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	older, newer := filepath.Join(dir, "older"), filepath.Join(dir, "newer")
	require.NoError(t, keys.Create(older))
	require.NoError(t, keys.Create(newer))
	a, err := os.ReadFile(older)
	require.NoError(t, err)
	b, err := os.ReadFile(newer)
	require.NoError(t, err)
	both := filepath.Join(dir, "both")
	require.NoError(t, os.WriteFile(both, append(b, a...), 0o600))

	oldRing, err := keys.Load(older)
	require.NoError(t, err)
	newRing, err := keys.Load(newer)
	require.NoError(t, err)
	bothRing, err := keys.Load(both)
	require.NoError(t, err)
	require.Equal(t, []string{newRing.IDs()[0], oldRing.IDs()[0]}, bothRing.IDs())

	sealed := oldRing.Sealer("x").Seal([]byte("m"), nil)
	plain, err := bothRing.Sealer("x").Open(sealed, nil)
	require.NoError(t, err, "what an older key sealed still opens")
	require.Equal(t, "m", string(plain))

	_, err = oldRing.Sealer("x").Open(bothRing.Sealer("x").Seal([]byte("m"), nil), nil)
	require.ErrorIs(t, err, keys.ErrUnknownKey, "the first key seals")
	require.ErrorContains(t, err, newRing.IDs()[0])
	require.ErrorContains(t, err, oldRing.IDs()[0])
}

func TestAPseudonymNeedsTheKeyAndThePurpose(t *testing.T) {
	r := ring(t)
	name := r.Sealer("x").Pseudonym([]byte("a"))
	require.Regexp(t, "^[0-9a-f]{32}$", name)
	require.Equal(t, name, r.Sealer("x").Pseudonym([]byte("a")))
	require.NotEqual(t, name, r.Sealer("x").Pseudonym([]byte("b")))
	require.NotEqual(t, name, r.Sealer("y").Pseudonym([]byte("a")))
	require.NotEqual(t, name, ring(t).Sealer("x").Pseudonym([]byte("a")))
}

func TestAKeyIsNeverPrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k")
	require.NoError(t, os.WriteFile(file, []byte("hypersdk-key-1:"+strings.Repeat("QUFB", 10)+"QUE=\n"), 0o600))
	r, err := keys.Load(file)
	require.NoError(t, err)
	for _, f := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		out := fmt.Sprintf(f, r)
		require.NotContains(t, out, "QUFB")
		require.NotContains(t, out, "65, 65")
		require.NotContains(t, out, "0x41")
	}
}

func FuzzOpen(f *testing.F) {
	file := filepath.Join(f.TempDir(), "k")
	require.NoError(f, os.WriteFile(file, []byte("hypersdk-key-1:"+strings.Repeat("A", 43)+"=\n"), 0o600))
	r, err := keys.Load(file)
	require.NoError(f, err)
	s := r.Sealer("fuzz")
	f.Add([]byte{}, []byte{})
	f.Add(s.Seal([]byte("plain"), []byte("aad")), []byte("aad"))
	f.Fuzz(func(t *testing.T, sealed, aad []byte) {
		if plain, err := s.Open(sealed, aad); err == nil {
			require.Len(t, sealed, len(plain)+keys.Overhead)
		}
	})
}

func ring(t *testing.T) *keys.Ring {
	t.Helper()
	r, err := keys.LoadOrCreate(t.TempDir())
	require.NoError(t, err)
	return r
}

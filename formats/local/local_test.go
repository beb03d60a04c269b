package local_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"hypersdk/formats"
	"hypersdk/formats/local"
	"hypersdk/formats/raw"
)

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := write(t, dir, "disk", "content")
	f, err := local.Open(path)
	require.NoError(t, err)
	require.EqualValues(t, 7, f.Bytes)
	require.Positive(t, f.Allocated())
	require.NoError(t, f.Identity.Unchanged())
	require.NoError(t, f.Close())

	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close()
	in, err := local.OpenIn(root, "disk", path)
	require.NoError(t, err)
	require.Equal(t, f.Identity, in.Identity, "the same file, however it is reached")
	require.NoError(t, in.Close())
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "link")))
	_, err = local.OpenIn(root, "link", filepath.Join(dir, "link"))
	require.Error(t, err)
}

// What is no file is refused at once: a pipe does not keep anybody waiting.
func TestOpenOfWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	for _, path := range []string{dir, pipe, "/dev/null"} {
		_, err := local.Open(path)
		require.ErrorIs(t, err, formats.ErrFormat, path)
	}
	_, err := local.Open(filepath.Join(dir, "nobody"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestUnchanged(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, path string)
		why    string
	}{
		{"removed", func(t *testing.T, path string) { require.NoError(t, os.Remove(path)) }, "cannot be found any more"},
		{"longer", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 100)) }, "had 7 bytes and has 100 now"},
		{"replaced", func(t *testing.T, path string) {
			require.NoError(t, os.Rename(write(t, filepath.Dir(path), "new", "content"), path))
		}, "was replaced"},
		{"written to", func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte("changed"), 0o600))
			st, err := os.Stat(path)
			require.NoError(t, err)
			require.NoError(t, os.Chtimes(path, st.ModTime(), st.ModTime().Add(1)))
		}, "was written to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := write(t, t.TempDir(), "disk", "content")
			st, err := os.Stat(path)
			require.NoError(t, err)
			id := local.Identify(path, st)
			require.NoError(t, id.Unchanged())
			c.change(t, path)
			require.ErrorContains(t, id.Unchanged(), c.why)
		})
	}
}

// Only what lies below the folder is opened, whatever names and links say.
func TestFolder(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	image := write(t, dir, "image", "")
	base := write(t, dir, "base", "base")
	secret := write(t, outside, "secret", "secret")
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "link")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	b, err := local.OpenFolder(dir, image)
	require.NoError(t, err)
	defer b.Close()
	open := b.Beside()
	for _, name := range []string{"base", base, "folder/../base"} {
		o, err := open(name)
		require.NoError(t, err, name)
		require.EqualValues(t, 4, o.Size)
		require.NoError(t, o.Close())
	}
	for _, name := range []string{secret, "link", "../" + filepath.Base(outside) + "/secret", "folder", "nobody", "/etc/passwd"} {
		_, err := open(name)
		require.Error(t, err, name)
	}
	require.Len(t, b.Opened(), 3)
	require.Equal(t, base, b.Opened()[0].Name)
}

func TestRoundUp(t *testing.T) {
	content := make([]byte, 700)
	for i := range content {
		content[i] = 7
	}
	f, err := os.Open(write(t, t.TempDir(), "disk", string(content)))
	require.NoError(t, err)
	defer f.Close()
	img, err := raw.Format().Open(t.Context(), f, 700, formats.OpenOptions{})
	require.NoError(t, err)
	up := local.RoundUp(img)
	require.EqualValues(t, 1024, up.Size())
	got := make([]byte, 1024)
	n, err := up.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, 1024, n)
	require.Equal(t, append(content, make([]byte, 324)...), got)
	var end int64
	for e, err := range up.Extents(context.Background(), 0, 1024) {
		require.NoError(t, err)
		require.Equal(t, end, e.Off)
		end = e.End()
	}
	require.EqualValues(t, 1024, end)
	require.Equal(t, up, local.RoundUp(up), "what is whole stays as it is")
}

package activities

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"
	"go.uber.org/goleak"

	"hypersdk/formats"
	"hypersdk/formats/formatstest"
	"hypersdk/providers"
)

// TestMain is the tests, or the process that one of them kills.
func TestMain(m *testing.M) {
	if text := os.Getenv(modelAttempt); text != "" {
		os.Exit(runAttempt(text))
	}
	goleak.VerifyTestMain(m)
}

// segment is what a kill may cost, at most.
const segment = 64 * mib

func TestTransferVerifyFinish(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	got, err := b.transfer()
	require.NoError(t, err)
	require.Equal(t, b.platform.disk.Size(), got.Stored)
	require.Equal(t, b.platform.disk.Size(), got.Read)
	require.Equal(t, int32(1), got.Attempts)
	require.Equal(t, []string{claimName, ".web-01-disk-1.raw.digests", ".web-01-disk-1.raw.journal", ".web-01-disk-1.raw.part"}, b.names(), "all is hidden")
	b.sameAsSource(b.path(".web-01-disk-1.raw.part"))

	v, err := b.verify(got)
	require.NoError(t, err)
	out, err := b.finish(got, v)
	require.NoError(t, err)
	require.Equal(t, []string{"manifest.json", "web-01-disk-1.raw", "web-01-disk-1.raw.digests"}, b.names())
	require.Equal(t, []string{b.path("web-01-disk-1.raw"), b.path("web-01-disk-1.raw.digests"), b.path("manifest.json")}, out.Files)
	b.sameAsSource(b.path("web-01-disk-1.raw"))

	sum, err := exec.CommandContext(t.Context(), "sha256sum", b.path("web-01-disk-1.raw")).Output()
	require.NoError(t, err)
	require.Equal(t, strings.Fields(string(sum))[0], v.SHA256)
	for _, line := range []string{`"msg":"copying"`, `"msg":"copied"`, `"msg":"verified"`, `"msg":"export is complete"`} {
		require.Contains(t, b.log(), line)
	}
}

// cut is a connection that breaks after n bytes, once.
func cut(n int64) func(context.Context, int64, int64) error {
	var seen atomic.Int64
	var done atomic.Bool
	return func(_ context.Context, _, got int64) error {
		if seen.Add(got) > n && done.CompareAndSwap(false, true) {
			return &providers.Error{Op: "fake: read", Reason: providers.Unavailable, Msg: "connection reset"}
		}
		return nil
	}
}

func TestTransferIsTakenUp(t *testing.T) {
	for _, at := range []int64{0, 40 * mib, 55 * mib} {
		b := newLargeBench(t)
		_, err := b.prepare()
		require.NoError(t, err)
		b.platform.fault = cut(at)
		_, err = b.transfer()
		app := failure(t, err)
		require.Equal(t, string(providers.Unavailable), app.Type())
		require.False(t, app.NonRetryable())
		require.Contains(t, app.Message(), "connection reset")
		first := b.platform.read

		got, err := b.transfer()
		require.NoError(t, err)
		require.LessOrEqual(t, b.platform.read-first, b.platform.disk.Size()-at+segment)
		require.LessOrEqual(t, b.platform.disk.Size()-got.ResumedFrom, b.platform.disk.Size()-at+segment)
		if at >= 40*mib {
			require.Positive(t, got.ResumedFrom)
		}
		b.sameAsSource(b.path(".web-01-disk-1.raw.part"))
		_, err = b.verify(got)
		require.NoError(t, err)
	}
}

// An attempt whose predecessor died after its last byte has nothing left to read.
func TestNothingIsChangedBeforeWhatLedToItIsDurable(t *testing.T) {
	b := newBench(t)
	b.site.deps.Durable = func(context.Context) error { return syscall.EIO }
	_, err := b.prepare()
	require.ErrorContains(t, err, "input/output error")
	require.Empty(t, b.names())
	b.site.deps.Durable = func(context.Context) error { return nil }
	_, err = b.prepare()
	require.NoError(t, err)
}

func TestADiskThatWasNotFrozenIsNotTakenForGood(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	b.platform.thawed = &providers.Error{Op: "fake: read disk", Reason: providers.NotFound, Msg: "the VM has no snapshot any more"}
	_, err = b.transfer()
	var app *temporal.ApplicationError
	require.ErrorAs(t, err, &app)
	require.True(t, app.NonRetryable())
	require.ErrorContains(t, err, "the VM has no snapshot any more")

	// A platform that could not be asked is asked again, and nothing is read twice.
	before := b.platform.read
	b.platform.thawed = &providers.Error{Op: "fake: read disk", Reason: providers.Unavailable}
	_, err = b.transfer()
	require.ErrorAs(t, err, &app)
	require.False(t, app.NonRetryable())
	b.platform.thawed = nil
	got, err := b.transfer()
	require.NoError(t, err)
	require.LessOrEqual(t, b.platform.read-before, int64(segment))
	_, err = b.verify(got)
	require.NoError(t, err)
}

func TestTransferThatWasComplete(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	first, err := b.transfer()
	require.NoError(t, err)
	read := b.platform.read
	again, err := b.transfer()
	require.NoError(t, err)
	require.Equal(t, read, b.platform.read)
	require.Equal(t, first.Digest, again.Digest)
	require.Equal(t, first.Inode, again.Inode)
}

// What an attempt can rely on is checked: a journal alone is worth nothing.
func TestTransferBeginsAnew(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, b *bench)
	}{
		{"the file was removed", func(t *testing.T, b *bench) { require.NoError(t, os.Remove(b.path(".web-01-disk-1.raw.part"))) }},
		{"the digests were removed", func(t *testing.T, b *bench) { require.NoError(t, os.Remove(b.path(".web-01-disk-1.raw.digests"))) }},
		{"the digests are damaged", func(t *testing.T, b *bench) {
			require.NoError(t, os.WriteFile(b.path(".web-01-disk-1.raw.digests"), []byte("nonsense"), 0o600))
		}},
		{"the journal was removed", func(t *testing.T, b *bench) { require.NoError(t, os.Remove(b.path(".web-01-disk-1.raw.journal"))) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newLargeBench(t)
			_, err := b.prepare()
			require.NoError(t, err)
			b.platform.fault = cut(50 * mib)
			_, err = b.transfer()
			require.Error(t, err)
			c.change(t, b)
			got, err := b.transfer()
			require.NoError(t, err)
			require.Zero(t, got.ResumedFrom)
			b.sameAsSource(b.path(".web-01-disk-1.raw.part"))
		})
	}
}

// Another snapshot is another disk: nothing of the old one may stay.
func TestTransferOfAnotherSnapshot(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	b.platform.fault = cut(50 * mib)
	_, err = b.transfer()
	require.Error(t, err)

	b.platform.disk = newNoise(8, b.platform.disk.Size())
	in := b.request()
	in.Ref.Snapshot = "s2"
	got, err := call(b, b.data.TransferDisk, in)
	require.NoError(t, err)
	require.Zero(t, got.ResumedFrom)
	b.sameAsSource(b.path(".web-01-disk-1.raw.part"))
}

func TestOneAttemptAtATime(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	p, err := b.site.openPart(b.request())
	require.NoError(t, err)
	_, err = b.transfer()
	app := failure(t, err)
	require.Equal(t, string(providers.Precondition), app.Type())
	require.Equal(t, b.site.Paces.Precondition, app.NextRetryDelay())
	require.Contains(t, app.Message(), "is still being written by another attempt")
	require.NoError(t, p.Close())
	_, err = b.transfer()
	require.NoError(t, err)
}

func TestDiskFull(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	b.wrap = func(f formats.File) formats.File {
		return &formatstest.Faulty{File: f, Fault: formatstest.NoSpace(40 * mib)}
	}
	_, err = b.transfer()
	app := failure(t, err)
	require.Equal(t, string(providers.Exhausted), app.Type())
	require.False(t, app.NonRetryable())
	require.Equal(t, b.site.Paces.Exhausted, app.NextRetryDelay())
	require.Contains(t, app.Message(), "no space left in "+b.path("")[:len(b.path(""))-1])
	require.Regexp(t, `about \d+\.\d MiB more is needed for web-01-disk-1.raw`, app.Message())
	require.Contains(t, app.Message(), "host one")

	b.wrap = nil
	got, err := b.transfer()
	require.NoError(t, err)
	require.Positive(t, got.ResumedFrom)
	b.sameAsSource(b.path(".web-01-disk-1.raw.part"))
}

func TestTargetFolderIsRemoved(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	var once atomic.Bool
	b.platform.fault = func(_ context.Context, off, _ int64) error {
		if off > 10*mib && once.CompareAndSwap(false, true) {
			require.NoError(t, os.RemoveAll(b.out))
		}
		return nil
	}
	_, err = b.transfer()
	app := failure(t, err)
	require.True(t, app.NonRetryable())
	require.Equal(t, string(providers.NotFound), app.Type())
	require.Contains(t, app.Message(), "was removed or replaced while the disk was being written")
	require.Less(t, b.platform.read, b.platform.disk.Size(), "it is noticed on the way")
	require.NoDirExists(t, b.out, "and not made again")

	_, err = b.transfer()
	require.True(t, failure(t, err).NonRetryable(), "a later attempt does not make it either")
	require.NoDirExists(t, b.out)
}

// The folder was claimed by the job on another host while this one was away.
func TestAnotherHostTookOver(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	other := newBench(t, func(c *Config) { c.Host = "h2" })
	other.out, other.platform = b.out, b.platform
	var once atomic.Bool
	b.platform.fault = func(_ context.Context, off, _ int64) error {
		if off > 10*mib && once.CompareAndSwap(false, true) {
			p, err := other.prepare()
			require.NoError(t, err)
			require.Equal(t, "h1", p.TookOver)
		}
		return nil
	}
	_, err = b.transfer()
	require.Contains(t, failure(t, err).Message(), "belongs to the job on host h2 now")
}

func TestSourceFails(t *testing.T) {
	for reason, again := range map[providers.Reason]bool{
		providers.NotFound: false, providers.Auth: false, providers.Corrupt: false,
		providers.Precondition: true, providers.Throttled: true, providers.Unavailable: true,
	} {
		t.Run(string(reason), func(t *testing.T) {
			b := newBench(t)
			_, err := b.prepare()
			require.NoError(t, err)
			b.platform.openErr = &providers.Error{Op: "fake: open disk", Object: "2000", Reason: reason, Msg: "so it is"}
			_, err = b.transfer()
			app := failure(t, err)
			require.Equal(t, string(reason), app.Type())
			require.Equal(t, again, !app.NonRetryable())
			require.Equal(t, "fake: open disk 2000: so it is", app.Message())
		})
	}
}

func TestDiskChangedItsSize(t *testing.T) {
	b := newBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	in := b.request()
	b.platform.disk = newNoise(7, in.Size+mib)
	_, err = call(b, b.data.TransferDisk, in)
	require.True(t, failure(t, err).NonRetryable())
	require.Contains(t, failure(t, err).Message(), "in its snapshot")
}

func TestEmptyDisk(t *testing.T) {
	b := newBench(t)
	b.platform.disk = newNoise(1, 0)
	_, err := b.prepare()
	require.NoError(t, err)
	got, err := b.transfer()
	require.NoError(t, err)
	v, err := b.verify(got)
	require.NoError(t, err)
	empty := sha256.Sum256(nil)
	require.Equal(t, hex.EncodeToString(empty[:]), v.SHA256)
}

// What is said to have been read is what the platform served, whatever the attempts.
func TestReadOfAllAttempts(t *testing.T) {
	b := newLargeBench(t)
	_, err := b.prepare()
	require.NoError(t, err)
	b.platform.fault = cut(30 * mib)
	_, err = b.transfer()
	require.Error(t, err)
	noted := b.site.readBefore(b.request())
	require.Positive(t, noted)
	got, err := b.transfer()
	require.NoError(t, err)
	require.InDelta(t, b.platform.read, got.Read, 16*mib, "but for what was under way when the connection broke")
	require.Greater(t, got.Read, b.platform.disk.Size()-got.ResumedFrom)
}

func TestReasonOf(t *testing.T) {
	require.Equal(t, providers.Corrupt, reasonOf(errors.Join(errors.New("x"), formats.ErrCorrupt)))
}

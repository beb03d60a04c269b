package vsphere

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"hypersdk/providers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// truth is the disk of these tests.
var truth = func() []byte {
	p := make([]byte, 256<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}()

// serveImage is an image of the disk that h serves.
func serveImage(t *testing.T, h http.HandlerFunc, stall time.Duration) *image {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	c := Default()
	if stall != 0 {
		c.StallTimeout = Duration(stall)
	}
	pool, err := newTransport(c, endpoint{url: u})
	require.NoError(t, err)
	t.Cleanup(pool.CloseIdleConnections)
	p := &Provider{
		login: &login{server: endpoint{url: u}, refused: errors.New("nobody logs in here")},
		http:  &http.Client{Transport: pool, CheckRedirect: noRedirect},
		slots: make(chan struct{}, 4),
	}
	im := newImage(t.Context(), p, "vm-1 disk 2000", flat{url: server.URL, size: int64(len(truth))}, func(context.Context) error { return nil })
	t.Cleanup(func() { im.Close() })
	return im
}

// serveTruth answers ranges as a datastore does.
func serveTruth(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("ETag", `"one"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(truth))
}

// answer is a handler that answers a range of the truth with something changed in it.
func answer(change func(h http.Header, body []byte) (int, []byte)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var from, to int
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(truth)))
		code, body := change(w.Header(), truth[from:to+1])
		w.WriteHeader(code)
		_, _ = w.Write(body)
	}
}

func TestOneReadIsOneRequest(t *testing.T) {
	var requests atomic.Int64
	im := serveImage(t, func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		serveTruth(w, r)
	}, 0)
	got := make([]byte, len(truth))
	n, err := im.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, len(truth), n)
	require.True(t, bytes.Equal(truth, got))
	require.EqualValues(t, 1, requests.Load())
}

func TestAnswersThatAreNotTheRange(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    providers.Reason
		says    string
	}{
		"the whole file": {func(w http.ResponseWriter, r *http.Request) {
			r.Header.Del("Range")
			serveTruth(w, r)
		}, providers.Unsupported, "ignores ranges"},
		"another range": {answer(func(h http.Header, b []byte) (int, []byte) {
			h.Set("Content-Range", fmt.Sprintf("bytes 1-%d/%d", len(b), len(truth)))
			return 206, b
		}), providers.Unavailable, "asked for"},
		"no range at all": {answer(func(h http.Header, b []byte) (int, []byte) {
			h.Del("Content-Range")
			return 206, b
		}), providers.Unavailable, "asked for"},
		"another size": {answer(func(h http.Header, b []byte) (int, []byte) {
			h.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(b)-1, len(truth)+1))
			return 206, b
		}), providers.Corrupt, "its file has 262145 bytes, the disk 262144"},
		"a file that is too short": {answer(func(h http.Header, b []byte) (int, []byte) { return 416, nil }), providers.Corrupt, "shorter"},
		"more than the range":      {answer(func(h http.Header, b []byte) (int, []byte) { return 206, append(bytes.Clone(b), 'x') }), providers.Unavailable, "contradicts"},
		"compressed": {answer(func(h http.Header, b []byte) (int, []byte) {
			h.Set("Content-Encoding", "br")
			return 206, b
		}), providers.Unavailable, "contradicts"},
		"gone":            {http.NotFound, providers.NotFound, "404"},
		"too much asked":  {answer(func(h http.Header, b []byte) (int, []byte) { h.Set("Retry-After", "9"); return 429, nil }), providers.Throttled, "429"},
		"busy":            {answer(func(h http.Header, b []byte) (int, []byte) { h.Set("Retry-After", "9"); return 503, nil }), providers.Throttled, "503"},
		"an error inside": {answer(func(h http.Header, b []byte) (int, []byte) { return 500, nil }), providers.Unavailable, "500"},
		"somewhere else":  {http.RedirectHandler("http://127.0.0.1:1/", http.StatusFound).ServeHTTP, providers.Unavailable, "302"},
		"no session":      {answer(func(h http.Header, b []byte) (int, []byte) { return 401, nil }), providers.Unavailable, "nobody logs in here"},
		"always cut":      {answer(func(h http.Header, b []byte) (int, []byte) { panic(http.ErrAbortHandler) }), providers.Unavailable, "unexpected EOF"},
		"ends at once": {answer(func(h http.Header, b []byte) (int, []byte) {
			h.Set("Connection", "close")
			h.Set("Transfer-Encoding", "identity")
			return 206, nil
		}), providers.Unavailable, ""},
		"a name not known": {answer(func(h http.Header, b []byte) (int, []byte) { return 410, nil }), providers.NotFound, "410"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			im := serveImage(t, c.handler, 0)
			_, err := im.ReadAt(make([]byte, 1000), 0)
			require.Equal(t, c.want, providers.ReasonOf(err), "%v", err)
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, "vm-1 disk 2000")
			require.NotErrorIs(t, err, io.EOF, "a fault is never the end of the disk")
			if c.want == providers.Throttled {
				require.Equal(t, 9*time.Second, providers.RetryAfter(err))
			}
		})
	}
}

func TestReadsTakeUpWhereAConnectionWasCut(t *testing.T) {
	for _, at := range []int{0, 1, 511, 4096, 65535, 65536, 100_000, len(truth) - 1} {
		var requests atomic.Int64
		im := serveImage(t, func(w http.ResponseWriter, r *http.Request) {
			if requests.Add(1) > 1 {
				serveTruth(w, r)
				return
			}
			w.Header().Set("ETag", `"one"`)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(truth)-1, len(truth)))
			w.Header().Set("Content-Length", fmt.Sprint(len(truth)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(truth[:at])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, 0)
		got := make([]byte, len(truth))
		_, err := im.ReadAt(got, 0)
		require.NoError(t, err, "cut at %d", at)
		require.True(t, bytes.Equal(truth, got), "cut at %d", at)
		require.EqualValues(t, 2, requests.Load(), "cut at %d", at)
	}
}

func TestASilentConnectionIsTakenUp(t *testing.T) {
	var requests atomic.Int64
	im := serveImage(t, func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1) == 1 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(truth)-1, len(truth)))
			w.Header().Set("ETag", `"one"`)
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(truth[:1000])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // until the client has had enough
			return
		}
		serveTruth(w, r)
	}, 100*time.Millisecond)
	got := make([]byte, len(truth))
	_, err := im.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(truth, got))
	require.EqualValues(t, 2, requests.Load())
}

func TestAServerThatNeverAnswersIsNoticed(t *testing.T) {
	im := serveImage(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, 20*time.Millisecond)
	_, err := im.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, providers.Unavailable)
	require.ErrorContains(t, err, "timeout")
}

func TestAFileThatChangesIsNotTrustedAnyMore(t *testing.T) {
	for name, header := range map[string]string{"by its tag": "ETag", "by its date": "Last-Modified"} {
		t.Run(name, func(t *testing.T) {
			var version atomic.Int64
			im := serveImage(t, answer(func(h http.Header, b []byte) (int, []byte) {
				h.Set(header, fmt.Sprintf(`"%d"`, version.Load()))
				return 206, b
			}), 0)
			var checks atomic.Int64
			thawed := error(nil)
			im.check = func(context.Context) error { checks.Add(1); return thawed }

			_, err := im.ReadAt(make([]byte, 10), 0)
			require.NoError(t, err)
			require.Zero(t, checks.Load())

			version.Store(1)
			thawed = &providers.Error{Op: "check", Reason: providers.Unavailable, Msg: "the server is away"}
			_, err = im.ReadAt(make([]byte, 10), 0)
			require.ErrorIs(t, err, providers.Unavailable, "who cannot ask does not judge")

			thawed = nil
			_, err = im.ReadAt(make([]byte, 10), 0)
			require.ErrorIs(t, err, providers.Corrupt)
			require.ErrorContains(t, err, "written to since it was opened")

			version.Store(0)
			_, err = im.ReadAt(make([]byte, 10), 0)
			require.ErrorIs(t, err, providers.Corrupt, "not even when it looks as before")
			require.EqualValues(t, 2, checks.Load())
		})
	}
}

func TestALongCopyLooksNowAndThenWhetherTheDiskIsFrozen(t *testing.T) {
	im := serveImage(t, serveTruth, 0)
	var checks atomic.Int64
	thawed := error(&providers.Error{Op: "check", Reason: providers.Throttled})
	im.check = func(context.Context) error { checks.Add(1); return thawed }
	read := func() error { _, err := im.ReadAt(make([]byte, 10), 0); return err }
	later := func() { im.checked = im.checked.Add(-2 * checkEvery) }

	require.NoError(t, read())
	require.Zero(t, checks.Load(), "it was just opened")
	later()
	require.NoError(t, read(), "who cannot ask does not judge")
	require.NoError(t, read())
	require.EqualValues(t, 1, checks.Load())
	later()
	thawed = &providers.Error{Op: "check", Reason: providers.NotFound, Msg: "the snapshot is gone"}
	require.ErrorIs(t, read(), providers.NotFound)
	require.ErrorIs(t, read(), providers.NotFound)
	require.EqualValues(t, 2, checks.Load())
}

func TestADiskIsConfirmedAfterTheLastRead(t *testing.T) {
	im := serveImage(t, serveTruth, 0)
	answer := error(&providers.Error{Op: "check", Reason: providers.Unavailable})
	im.check = func(context.Context) error { return answer }
	_, err := im.ReadAt(make([]byte, 10), 0)
	require.NoError(t, err)
	require.ErrorIs(t, im.Confirm(t.Context()), providers.Unavailable, "who cannot ask does not confirm")
	answer = nil
	require.NoError(t, im.Confirm(t.Context()))
	answer = &providers.Error{Op: "check", Reason: providers.NotFound, Msg: "the snapshot is gone"}
	require.ErrorIs(t, im.Confirm(t.Context()), providers.NotFound)
	answer = nil
	require.ErrorIs(t, im.Confirm(t.Context()), providers.NotFound, "what was doubted once is not trusted again")
	_, err = im.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, providers.NotFound)
}

func TestAnImageEndsWithItsContext(t *testing.T) {
	entered := make(chan struct{}, 1)
	im := serveImage(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
	}, 0)
	go func() {
		<-entered
		im.Close()
	}()
	_, err := im.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, providers.Canceled)
	require.ErrorIs(t, err, fs.ErrClosed)
	_, err = im.ReadAt(make([]byte, 10), 0)
	require.ErrorIs(t, err, fs.ErrClosed)
}

func TestNoMoreReadsAtOnceThanConnections(t *testing.T) {
	var now, most atomic.Int64
	im := serveImage(t, func(w http.ResponseWriter, r *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		serveTruth(w, r)
	}, 0)
	done := make(chan error)
	for i := range 32 {
		go func() {
			p := make([]byte, 4096)
			_, err := im.ReadAt(p, int64(i)*4096)
			if err == nil && !bytes.Equal(p, truth[i*4096:][:4096]) {
				err = errors.New("other bytes")
			}
			done <- err
		}()
	}
	for range 32 {
		require.NoError(t, <-done)
	}
	require.LessOrEqual(t, most.Load(), int64(4))
}

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"hypersdk/formats"
	"hypersdk/providers"
)

const (
	// maxResumes is how often one ReadAt takes up a connection that was cut before it gives up. Longer
	// troubles are for whoever runs the copy: he can wait without holding anything.
	maxResumes  = 5
	firstResume = 100 * time.Millisecond
)

// image is a disk in a flat file on a datastore. One ReadAt is one range request, whose bytes go from
// the connection into the caller's buffer.
type image struct {
	p      *Provider
	object string // for errors: "vm-42 disk 2000"
	flat
	guard
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu   sync.Mutex
	mark string // what the server says of the file's version
}

func newImage(ctx context.Context, p *Provider, object string, f flat, check func(context.Context) error) *image {
	im := &image{p: p, object: object, flat: f, guard: guard{check: check, checked: time.Now()}}
	im.ctx, im.cancel = context.WithCancelCause(ctx)
	return im
}

// probe reads the first byte, which shows that ranges work, that we may read, and that the file is as
// long as the disk.
func (im *image) probe() error {
	if im.size <= 0 {
		return im.fail(providers.Unsupported, "the platform does not tell the size of the disk")
	}
	_, err := im.ReadAt(make([]byte, 1), 0)
	return err
}

// Size is the size of the virtual disk.
func (im *image) Size() int64 { return im.size }

// Close fails the reads that are pending.
func (im *image) Close() error {
	im.cancel(fs.ErrClosed)
	return nil
}

// Extents says that all of it is data: the file does not tell where it has holes.
func (im *image) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		switch {
		case off < 0 || n < 0 || off > im.size-n:
			yield(formats.Extent{}, im.fail(providers.Invalid, fmt.Sprintf("extents of %d bytes at %d lie outside of its %d", n, off, im.size)))
		case ctx.Err() != nil:
			yield(formats.Extent{}, ctx.Err())
		case n > 0:
			yield(formats.Extent{Off: off, Len: n, Kind: formats.Data}, nil)
		}
	}
}

// ReadAt reads one range. A connection that is cut is taken up where it ended, a few times.
func (im *image) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, im.fail(providers.Invalid, fmt.Sprintf("offset %d is negative", off))
	}
	var end error
	if rest := max(im.size-off, 0); int64(len(b)) > rest {
		b, end = b[:rest], io.EOF
	}
	n := 0
	for resumes, pause := 0, firstResume; n < len(b); resumes, pause = resumes+1, 2*pause {
		k, err := im.fetch(b[n:], off+int64(n))
		if n += k; err == nil {
			continue // fetch is complete or fails
		}
		if im.ctx.Err() != nil {
			return n, im.ended()
		}
		if !passing(err) || resumes == maxResumes {
			return n, fail("read disk", fmt.Sprintf("%s at %d", im.object, off+int64(n)), cut(err))
		}
		if sleep(im.ctx, pause/2+rand.N(pause)) != nil { //nolint:gosec // jitter is no secret
			return n, im.ended()
		}
	}
	return n, end
}

// passing says whether a connection failed under a read, so that the read can be taken up at once.
func passing(err error) bool {
	var status *statusError
	var known *providers.Error
	return !errors.As(err, &status) && !errors.As(err, &known) && !untrusted(err)
}

// cut keeps the end of a connection from being taken for the end of the disk.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ended is the error of a read that the end of the image's life has interrupted.
func (im *image) ended() error {
	return &providers.Error{Op: "vsphere: read disk", Object: im.object, Reason: providers.Canceled, Err: context.Cause(im.ctx)}
}

func (im *image) fail(r providers.Reason, msg string) error {
	return &providers.Error{Op: "vsphere: read disk", Object: im.object, Reason: r, Msg: msg}
}

// fetch fills b from off with one request, and says how far it came.
func (im *image) fetch(b []byte, off int64) (int, error) {
	if err := im.trusted(im.ctx); err != nil {
		return 0, err
	}
	select {
	case im.p.slots <- struct{}{}:
		defer func() { <-im.p.slots }()
	case <-im.ctx.Done():
		return 0, im.ctx.Err()
	}
	res, err := im.request(off, int64(len(b)))
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if err := im.examine(res, off, int64(len(b))); err != nil {
		return 0, err
	}
	return io.ReadFull(res.Body, b)
}

// request asks for a range. Where it is refused because the session ended, it is asked for once more
// in a new one.
func (im *image) request(off, n int64) (*http.Response, error) {
	for again := true; ; again = false {
		was := im.p.login.logins()
		req, err := http.NewRequestWithContext(im.ctx, http.MethodGet, im.url, nil)
		if err != nil {
			return nil, im.fail(providers.Invalid, "its file has a name that cannot be asked for")
		}
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
		req.Header.Set("User-Agent", "hypersdk")
		res, err := im.p.http.Do(req)
		if err != nil {
			return nil, err
		}
		if res.StatusCode == http.StatusPartialContent {
			return res, nil
		}
		err = im.refused(res)
		if code := res.StatusCode; again && (code == http.StatusUnauthorized || code == http.StatusForbidden) {
			if e := im.p.login.renew(im.ctx, was); e != nil {
				return nil, fail("log in", im.object, e)
			}
			if im.p.login.logins() != was {
				continue
			}
		}
		return nil, err
	}
}

// refused is an answer that is not a range, as an error.
func (im *image) refused(res *http.Response) error {
	status := newStatusError(res)
	switch res.StatusCode {
	case http.StatusOK:
		return im.fail(providers.Unsupported, "the server ignores ranges and sends the whole file")
	case http.StatusRequestedRangeNotSatisfiable:
		return im.changed("its file is shorter than the disk")
	case http.StatusNotFound:
		if err := im.check(im.ctx); err != nil {
			return err // it knows better why the file is gone
		}
	}
	return status
}

// examine makes sure that the answer is the range that was asked for, of the file that was opened.
func (im *image) examine(res *http.Response, off, n int64) error {
	want := fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, im.size)
	got := strings.TrimSpace(res.Header.Get("Content-Range"))
	if got != want {
		var from, to, total int64
		if _, err := fmt.Sscanf(got, "bytes %d-%d/%d", &from, &to, &total); err == nil && total != im.size {
			return im.changed(fmt.Sprintf("its file has %d bytes, the disk %d", total, im.size))
		}
		return im.fail(providers.Unavailable, fmt.Sprintf("asked for %q, the server answered %q", want, got))
	}
	if (res.ContentLength >= 0 && res.ContentLength != n) || res.Header.Get("Content-Encoding") != "" {
		return im.fail(providers.Unavailable, "the server's answer contradicts its own range")
	}
	mark := res.Header.Get("ETag") + " " + res.Header.Get("Last-Modified")
	im.mu.Lock()
	if im.mark == "" {
		im.mark = mark
	}
	same := im.mark == mark
	im.mu.Unlock()
	if !same {
		return im.changed("its file was written to since it was opened")
	}
	return nil
}

// changed is for a file that is not what it was. A frozen file does not change, so that what was read
// of it before and after cannot be put together: either it is no longer frozen, which the check can
// tell, or nobody knows, and then the image is corrupt.
func (im *image) changed(msg string) error {
	err := im.check(im.ctx)
	if err == nil {
		err = im.fail(providers.Corrupt, msg)
	}
	if final(err) {
		return im.condemn(err)
	}
	return err
}

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hypersdk/formats"
	"hypersdk/formats/nbd"
	"hypersdk/providers"
)

const (
	// longestRead is the longest request: through vCenter a host refuses buffers beyond it.
	longestRead = 2 << 20
	// lastWords is how long a failed read waits for what nbdkit has to say about it.
	lastWords = 500 * time.Millisecond
	// goodbye is how long nbdkit may take to close a disk, which lets the host free what it holds for it;
	// hurry is how long it may take once nobody waits for the disk any more.
	goodbye = 10 * time.Second
	hurry   = 1500 * time.Millisecond
)

// vddkImage is a disk that an nbdkit of its own serves.
type vddkImage struct {
	object string // for errors: "vm-42 disk 2000"
	size   int64
	guard
	free  func()            // lets another disk be read
	hide  *strings.Replacer // takes secrets out of what nbdkit says
	names []string          // in what it says, that are not its own words

	server *nbdkit
	disk   *nbd.Disk
	ctx    context.Context
	cancel context.CancelCauseFunc
	unhook func() bool
	closed atomic.Bool
	ending sync.Once
}

// open starts nbdkit and connects to it. After an error nothing is left.
func (im *vddkImage) open(ctx context.Context, v *vddk, args []string, file string) error {
	im.names = []string{file, v.server.user, v.server.url.Hostname(), v.LibDir}
	im.hide = strings.NewReplacer()
	if v.server.password != "" {
		im.hide = strings.NewReplacer(v.server.password, "[redacted]")
	}
	im.ctx, im.cancel = context.WithCancelCause(ctx)
	const op = "open disk with VDDK"
	var err error
	if im.server, err = startNBDKit(v.NBDKit, args, v.server.password); err != nil {
		im.cancel(err)
		im.free()
		reason := providers.Unavailable
		if errors.Is(err, errNotInstalled) {
			reason = providers.Unsupported
		}
		return im.fail(op, reason, "nbdkit cannot be started", err)
	}
	im.unhook = context.AfterFunc(im.ctx, func() { im.end(hurry) })
	slow := im.fail(op, providers.Unavailable, fmt.Sprintf("it took longer than %s (vddk.ready)", time.Duration(v.Ready)), nil)
	late := time.AfterFunc(time.Duration(v.Ready), func() { im.cancel(slow) })
	im.disk, err = im.server.serve(im.ctx)
	inTime := late.Stop()
	if err == nil && im.disk.Size() != im.size {
		err = im.fail(op, providers.Precondition, fmt.Sprintf("nbdkit serves %d bytes, the disk has %d", im.disk.Size(), im.size), nil)
	}
	switch {
	case !inTime:
		err = slow
	case err != nil || im.ctx.Err() != nil:
		err = im.explain(op, im.object, err)
	default:
		return nil
	}
	im.release(hurry)
	return err
}

// end ends nbdkit and waits for it.
func (im *vddkImage) end(grace time.Duration) {
	im.ending.Do(func() {
		im.server.stop(grace)
		im.free()
	})
}

// release ends all that belongs to the image.
func (im *vddkImage) release(grace time.Duration) {
	im.closed.Store(true)
	if im.disk != nil {
		_ = im.disk.Close() // which asks nbdkit to close the disk; where the connection is gone it knows
	}
	im.unhook()
	im.cancel(fs.ErrClosed)
	im.end(grace)
}

// Size is the size of the virtual disk.
func (im *vddkImage) Size() int64 { return im.size }

// Close fails the reads that are pending and ends nbdkit.
func (im *vddkImage) Close() error {
	im.release(goodbye)
	return nil
}

// ReadAt reads from the disk.
func (im *vddkImage) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 {
		return 0, im.fail("read disk", providers.Invalid, fmt.Sprintf("offset %d is negative", off), nil)
	}
	var end error
	if rest := max(im.size-off, 0); int64(len(b)) > rest {
		b, end = b[:rest], io.EOF
	}
	if err := im.trusted(im.ctx); err != nil {
		return 0, err
	}
	for n := 0; n < len(b); {
		k, err := im.disk.ReadAt(b[n:min(n+longestRead, len(b))], off+int64(n))
		if n += k; err != nil {
			return n, im.explain("read disk", fmt.Sprintf("%s at %d", im.object, off+int64(n)), err)
		}
	}
	return len(b), end
}

// Extents is the map of the disk, where VDDK has one.
func (im *vddkImage) Extents(ctx context.Context, off, n int64) iter.Seq2[formats.Extent, error] {
	return func(yield func(formats.Extent, error) bool) {
		if off < 0 || n < 0 || off > im.size-n {
			yield(formats.Extent{}, im.fail("read disk", providers.Invalid, fmt.Sprintf("extents of %d bytes at %d lie outside of its %d", n, off, im.size), nil))
			return
		}
		for e, err := range im.disk.Extents(ctx, off, n) {
			if err != nil && ctx.Err() == nil {
				err = im.explain("map disk", im.object, err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (im *vddkImage) fail(op string, r providers.Reason, msg string, err error) error {
	return &providers.Error{Op: "vsphere: " + op, Object: im.object, Reason: r, Msg: msg, Err: err}
}

// explain finds out why nbdkit did not do what it was asked to: its own words tell more than a
// connection that it closed.
func (im *vddkImage) explain(op, object string, err error) error {
	switch {
	case im.ctx.Err() != nil:
		return &providers.Error{Op: "vsphere: " + op, Object: object, Reason: providers.Canceled, Err: context.Cause(im.ctx)}
	case im.closed.Load():
		return &providers.Error{Op: "vsphere: " + op, Object: object, Reason: providers.Canceled, Err: fs.ErrClosed}
	}
	var known *providers.Error
	if errors.As(err, &known) {
		return err
	}
	how := im.server.ended(lastWords)
	words := complaint(im.hide.Replace(im.server.words()))
	out := &providers.Error{Op: "vsphere: " + op, Object: object, Reason: vddkReason(words, im.names...), Err: err}
	if out.Reason == providers.Throttled {
		out.Retry = full
	}
	switch {
	case words != "":
		out.Msg, out.Err = "nbdkit says: "+words, nil
	case how != "":
		out.Msg = "nbdkit ended (" + how + ")"
	}
	return out
}

// complaint is what is wrong among the words of nbdkit: its errors, the last of them, in one line.
func complaint(said string) string {
	const most = 600
	var errs []string
	for line := range strings.Lines(said) {
		_, msg, ok := strings.Cut(line, "error: ")
		if msg = strings.TrimSpace(msg); ok && msg != "" && (len(errs) == 0 || errs[len(errs)-1] != msg) {
			errs = append(errs, msg)
		}
	}
	if len(errs) == 0 { // what comes from the loader, or from a crash
		errs = strings.FieldsFunc(said, func(r rune) bool { return r == '\n' || r == '\r' })
	}
	out := strings.Join(errs[max(len(errs)-3, 0):], "; ")
	if len(out) > most {
		out = "…" + strings.ToValidUTF8(out[len(out)-most:], "")
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(out, "?"))
}

// vddkReasons are words of VDDK, nbdkit and vCenter, and what they mean. The first that is found counts.
var vddkReasons = []struct {
	reason providers.Reason
	words  []string
}{
	{providers.Auth, []string{"user name or password", "username or password", "cannot complete login", "login failed", "authentication fail", "invalidlogin"}},
	{providers.Denied, []string{"access rights", "insufficient permission", "permission to perform this operation was denied", "nopermission"}},
	{providers.Invalid, []string{"thumbprint", "certificate", "parameters was invalid", "unknown parameter"}},
	{providers.NotFound, []string{"was not found", "cannot be found", "does not exist", "managedobjectnotfound"}},
	{providers.Throttled, []string{"failed to allocate the requested", "memory allocation failed", "not enough memory", "too many connections"}},
	{providers.Precondition, []string{"already in use", "failed to lock", "file is locked"}},
	{providers.Unsupported, []string{"not supported", "licens", "transport mode", "cannot open plugin", "shared object file"}},
}

// vddkReason sorts what nbdkit says; names in it are no words of its own.
func vddkReason(said string, names ...string) providers.Reason {
	for _, n := range names {
		if n != "" {
			said = strings.ReplaceAll(said, n, "")
		}
	}
	said = strings.ToLower(said)
	for _, r := range vddkReasons {
		for _, w := range r.words {
			if strings.Contains(said, w) {
				return r.reason
			}
		}
	}
	return providers.Unavailable
}

package vsphere

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats"
	"hypersdk/formats/vmdk"
	"hypersdk/providers"
)

const (
	// patience is how many times longer than elsewhere a lease's connection may be silent: while the host
	// looks for the next block that is not all zeros it has nothing to send.
	patience = 5
	// gulp is the least that is read from a connection at once: below it, what is done for each read
	// costs more than the bytes.
	gulp = 128 << 10
	// maxTail is how many bytes may come behind the end of a disk.
	maxTail = 1 << 20
	// sentFormat is what disks are sent in, and sentType how HTTP calls it.
	sentFormat = "vmdk"
	sentType   = "application/x-vnd.vmware-streamVmdk"
	// manifestTries is how often the manifest is asked for when a disk has come whole.
	manifestTries = 3
)

// take finds out which disks the lease offers and where they are.
func (l *lease) take(info *types.HttpNfcLeaseInfo, devices []types.BaseVirtualDevice) error {
	places := map[string]*types.VirtualDisk{}
	list := object.VirtualDeviceList(devices)
	for _, dev := range devices {
		if d, ok := dev.(*types.VirtualDisk); ok {
			places[place(list, d)] = d
		}
	}
	for _, u := range info.DeviceUrl {
		if u.Disk != nil && !*u.Disk {
			continue // the VM's NVRAM, the image in a CD drive
		}
		// "/vm-42/ParaVirtualSCSIController0:1"
		at := u.Key[strings.LastIndex(u.Key, "/")+1:]
		dev := places[at]
		if dev == nil {
			return &providers.Error{Op: "vsphere: export lease", Object: l.object, Reason: providers.Unsupported,
				Msg: fmt.Sprintf("the lease offers a disk at %q, where the VM has none", at)}
		}
		delete(places, at)
		d := &leasedDisk{key: u.Key, LeasedDisk: providers.LeasedDisk{ID: diskID(dev), Size: capacity(dev), Stored: u.FileSize, Format: sentFormat}}
		var err error
		if d.url, d.client, err = l.reach(u); err != nil {
			return err
		}
		l.disks = append(l.disks, d)
		if u.FileSize > 0 {
			l.total += u.FileSize
		} else {
			l.total += d.Size
		}
	}
	return nil
}

// place is where a disk is plugged in, as the keys of a lease say it: "ParaVirtualSCSIController0:1".
func place(list object.VirtualDeviceList, d *types.VirtualDisk) string {
	c := list.FindByKey(d.ControllerKey)
	b, ok := c.(types.BaseVirtualController)
	if !ok || d.UnitNumber == nil {
		return ""
	}
	return fmt.Sprintf("%s%d:%d", reflect.Indirect(reflect.ValueOf(c)).Type().Name(), b.GetVirtualController().BusNumber, *d.UnitNumber)
}

// reach is the address of a disk, and a client that trusts whoever is there: the server itself, or the
// host that it names together with the thumbprint of its certificate.
func (l *lease) reach(u types.HttpNfcLeaseDeviceUrl) (string, *http.Client, error) {
	server := l.p.login.server.url
	no := func(msg string) (string, *http.Client, error) {
		return "", nil, &providers.Error{Op: "vsphere: lease", Object: l.object, Reason: providers.Unsupported, Msg: msg}
	}
	at, err := url.Parse(u.Url)
	if err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != "http" {
		return no("the lease names an address that is none of HTTP")
	}
	if at.Scheme == "http" && server.Scheme == "https" {
		return no("the lease names an address without TLS, although the server is reached with it")
	}
	if at.Hostname() == "*" { // an ESXi host does not know by what name it is reached
		at.Host = strings.Replace(at.Host, "*", bracketed(server.Hostname()), 1)
	}
	at.User = nil
	if c := l.clients[at.Host]; c != nil {
		return at.String(), c, nil
	}
	conf, e := l.p.config, endpoint{url: at}
	if e.host() != l.p.login.server.host() && u.SslThumbprint != "" {
		conf.Thumbprint, conf.KnownHosts = u.SslThumbprint, ""
	}
	conf.StallTimeout *= patience
	pool, err := newTransport(conf, e)
	if err != nil {
		return no("the lease names a host whose certificate cannot be checked: " + err.Error())
	}
	l.clients[at.Host] = &http.Client{Transport: pool, Jar: l.p.login.cookies, CheckRedirect: noRedirect}
	return at.String(), l.clients[at.Host], nil
}

func bracketed(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// sums is what came of a disk.
type sums struct {
	n            int64
	sha1, sha256 hash.Hash
}

// diskStream is one reading of a leased disk.
type diskStream struct {
	formats.Stream
	l      *lease
	d      *leasedDisk
	object string
	body   *leaseBody
	unlink func() bool
	cancel context.CancelCauseFunc
	ended  error
}

// leaseBody is the bytes of a disk on their way from the connection.
type leaseBody struct {
	sums
	r     io.ReadCloser
	l     *lease
	tap   io.Writer
	whole bool  // the connection has come to its end
	err   error // why there is no more, if that is not why
}

func openStream(ctx context.Context, l *lease, d *leasedDisk, object string, tap io.Writer) (formats.Stream, error) {
	const op = "open leased disk"
	ctx, cancel := context.WithCancelCause(ctx)
	s := &diskStream{l: l, d: d, object: object, cancel: cancel}
	s.unlink = context.AfterFunc(l.ctx, func() { cancel(context.Cause(l.ctx)) })
	d.mu.Lock()
	d.owed = nil
	d.mu.Unlock()
	res, err := s.request(ctx) //nolint:bodyclose // the stream closes it
	if err != nil {
		err = s.explain(ctx, op, err)
		s.release()
		return nil, err
	}
	s.body = &leaseBody{sums: sums{sha1: sha1.New(), sha256: sha256.New()}, r: res.Body, l: l, tap: tap} //nolint:gosec // manifests speak SHA-1
	if s.Stream, err = vmdk.Stream(ctx, s.body); err != nil {
		err = s.explain(ctx, op, err)
	} else if s.Size() != d.Size {
		err = &providers.Error{Op: "vsphere: " + op, Object: object, Reason: providers.Precondition,
			Msg: fmt.Sprintf("the stream is of a disk of %d bytes, the VM has one of %d", s.Size(), d.Size)}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// request asks for the disk. The session's cookie goes along where the server itself has the disk.
func (s *diskStream) request(ctx context.Context) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.d.url, nil)
	if err != nil {
		return nil, errors.New("its address cannot be asked for") // which is a secret
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", sentType)
	req.Header.Set("Accept-Encoding", "identity")
	res, err := s.d.client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Encoding") == "" {
		return res, nil
	}
	status := newStatusError(res)
	if statusReason(status.code) == providers.NotFound {
		return nil, errors.New("the address of the disk is not known any more")
	}
	return nil, status
}

// Read reads a good deal at once, and shows it to whoever wants to see it.
func (b *leaseBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n := 0
	var err error
	for want := min(len(p), gulp); n < want && err == nil; {
		var k int
		k, err = b.r.Read(p[n:])
		n += k
	}
	if n > 0 {
		b.n += int64(n)
		b.sha1.Write(p[:n])
		b.sha256.Write(p[:n])
		b.l.came.Add(int64(n))
		if b.tap != nil {
			if _, failed := b.tap.Write(p[:n]); failed != nil {
				b.err = failed
				return 0, failed
			}
		}
	}
	switch {
	case err == io.EOF: //nolint:errorlint // what wraps it is no proper end
		b.whole, b.err = true, io.EOF
	case err != nil:
		b.err = &cutError{n: b.n, err: strip(err)}
	}
	if n > 0 {
		return n, nil // the end comes with the next call
	}
	return 0, b.err
}

// cutError is a connection that came to an end before the disk did. It hides what it is made of: the
// end of a connection is not that of a disk.
type cutError struct {
	n   int64
	err error
}

func (e *cutError) Error() string {
	return fmt.Sprintf("the connection was cut after %d bytes: %v", e.n, e.err)
}

// Next answers the next grain; io.EOF once the disk has come whole and is what the manifest says.
func (s *diskStream) Next(ctx context.Context) (formats.Chunk, error) {
	if s.ended != nil {
		return formats.Chunk{}, s.ended
	}
	err := s.l.ctx.Err()
	if err == nil {
		var ch formats.Chunk
		if ch, err = s.Stream.Next(ctx); err == nil {
			return ch, nil
		}
	}
	if errors.Is(err, io.EOF) {
		if err = s.finish(ctx); err == nil {
			s.ended = io.EOF
			return formats.Chunk{}, io.EOF
		}
	}
	s.ended = s.explain(ctx, "read leased disk", err)
	return formats.Chunk{}, s.ended
}

// finish takes in what comes behind the end of the disk, and compares all that came with the manifest.
func (s *diskStream) finish(ctx context.Context) error {
	if n, err := io.CopyN(io.Discard, s.body, maxTail); n == maxTail {
		return fmt.Errorf("bytes go on and on behind the end of the disk: %w", formats.ErrCorrupt)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	for try := 1; ; try++ {
		known, err := s.l.compare(ctx, s.d, &s.body.sums)
		if err == nil && !known {
			s.d.mu.Lock()
			s.d.owed = &s.body.sums
			s.d.mu.Unlock()
		}
		if err == nil || !passes(err) || try == manifestTries {
			return err
		}
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// compare holds what came of a disk against what the server says that it sent. known is false where
// the server does not say.
func (l *lease) compare(ctx context.Context, d *leasedDisk, got *sums) (known bool, err error) {
	res, err := methods.HttpNfcLeaseGetManifest(ctx, l.p.soap, &types.HttpNfcLeaseGetManifest{This: l.ref})
	if err != nil {
		return false, fail("read the manifest of", l.object, err)
	}
	for _, e := range res.Returnval {
		if e.Key != d.key {
			continue
		}
		if what := got.differ(e); what != "" {
			return true, &providers.Error{Op: "vsphere: read leased disk", Object: l.object + " disk " + string(d.ID), Reason: providers.Corrupt,
				Msg: "what came is not what the server's manifest says that it sent: " + what}
		}
		return true, nil
	}
	return false, nil
}

// differ says how what came differs from an entry of the manifest; "" where it does not.
func (s *sums) differ(e types.HttpNfcLeaseManifestEntry) string {
	if e.Size > 0 && e.Size != s.n {
		return fmt.Sprintf("%d bytes instead of %d", s.n, e.Size)
	}
	for _, one := range []struct {
		name, want string
		h          hash.Hash
	}{
		{"SHA-1", e.Sha1, s.sha1},
		{"SHA-1", checksum(e, "sha1"), s.sha1},
		{"SHA-256", checksum(e, "sha256"), s.sha256},
	} {
		if got := hex.EncodeToString(one.h.Sum(nil)); one.want != "" && !strings.EqualFold(one.want, got) {
			return fmt.Sprintf("%s %s instead of %s", one.name, got, strings.ToLower(one.want))
		}
	}
	return ""
}

func checksum(e types.HttpNfcLeaseManifestEntry, kind string) string {
	if strings.EqualFold(e.ChecksumType, kind) {
		return e.Checksum
	}
	return ""
}

// explain says why a reading ended that should not have.
func (s *diskStream) explain(ctx context.Context, op string, err error) error {
	var cut *cutError
	if errors.As(err, &cut) && ctx.Err() == nil {
		s.l.look() // the server cuts connections when the lease ends
	}
	if lost := s.l.Err(); lost != nil && providers.ReasonOf(lost) == providers.Unavailable {
		return lost
	}
	e := &providers.Error{Op: "vsphere: " + op, Object: s.object, Err: err}
	switch {
	case ctx.Err() != nil || s.l.ctx.Err() != nil:
		e.Reason = providers.Canceled
		if e.Err = context.Cause(ctx); e.Err == nil {
			e.Err = context.Cause(s.l.ctx)
		}
	case errors.As(err, &cut):
		e.Reason = providers.Unavailable
	case s.body != nil && s.body.err != nil && !s.body.whole:
		return s.body.err // the tap's own
	case errors.Is(err, formats.ErrCorrupt) && s.body != nil && s.body.whole && !s.sent():
		// The server closed the connection as if it had sent all.
		e.Reason, e.Msg, e.Err = providers.Unavailable, fmt.Sprintf("the server stopped after %d bytes, in the middle of the disk", s.body.n), nil
	case errors.Is(err, formats.ErrCorrupt):
		e.Reason = providers.Corrupt
	case errors.Is(err, formats.ErrFormat):
		e.Reason = providers.Unsupported
	default:
		return fail(op, s.object, err)
	}
	return e
}

// sent says whether the manifest confirms what came: then it is no cut that makes it unreadable.
func (s *diskStream) sent() bool {
	ctx, cancel := context.WithTimeout(s.l.ctx, tidyTimeout)
	defer cancel()
	known, err := s.l.compare(ctx, s.d, &s.body.sums)
	return known && err == nil
}

// Close ends the reading.
func (s *diskStream) Close() error {
	s.release()
	return s.body.r.Close()
}

func (s *diskStream) release() {
	s.unlink()
	s.cancel(errClosedLease)
}

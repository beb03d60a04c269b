// Package nbd reads and writes a disk that a server exports over the Network Block Device protocol:
// nbdkit, qemu, and whatever else speaks it.
//
// A [Disk] is a formats.Image, and through [Disk.Writer] a formats.Writer. The handshake is the fixed
// newstyle one, TLS included; replies are structured where the server can, so that holes cost nothing
// and maps of the disk are known; requests are pipelined, over several connections where the server
// says that it allows that.
//
// The protocol is doc/proto.md of the NetworkBlockDevice project; sections are named where it matters.
// Nothing that a server says is believed: what contradicts the protocol ends the connection.
package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// ErrProtocol: the server said what the protocol does not allow.
var ErrProtocol = errors.New("the server does not keep to the NBD protocol")

const (
	defaultConnections = 4
	// allocation is the metadata context of holes and zeros ("Metadata querying").
	allocation = "base:allocation"
)

// Options say which export is meant and how it is reached.
type Options struct {
	Network string // as net.Dial takes it: "tcp", "unix"
	Address string
	Export  string // "": the server's default one
	// TLS, where not nil, is what the connection has to be encrypted with; it is never plain then.
	TLS *tls.Config
	// Context is a metadata context that [Disk.Marked] tells of: "qemu:dirty-bitmap:NAME".
	Context string
	// Connections is how many are made where the server allows several; 0: 4.
	Connections int
	// Dial replaces net.Dialer.DialContext.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Disk is an export. It may be used by many goroutines at once.
type Disk struct {
	export export
	conns  []*conn
	next   atomic.Uint32
	stop   func() bool
	close  func() error
}

// Open connects. ctx bounds the life of the disk: cancelling it fails what is pending.
func Open(ctx context.Context, o Options) (*Disk, error) {
	first, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	d := &Disk{export: first.export, conns: []*conn{first}}
	d.close = sync.OnceValue(d.hangUp)
	d.stop = context.AfterFunc(ctx, func() { d.abort(context.Cause(ctx)) })
	want := o.Connections
	if want <= 0 {
		want = defaultConnections
	}
	for len(d.conns) < want && d.export.has(flagMultiConn) {
		c, err := connect(ctx, o)
		if err == nil && !c.export.same(d.export) {
			err = fmt.Errorf("%w: two connections see different exports", ErrProtocol)
			c.abort(err)
		}
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		d.conns = append(d.conns, c)
	}
	if err := ctx.Err(); err != nil { // a connection may have been made after the rest was aborted
		return nil, errors.Join(context.Cause(ctx), d.Close())
	}
	return d, nil
}

// Size is the size of the export in bytes.
func (d *Disk) Size() int64 { return d.export.size }

// ReadOnly says whether the server refuses writes.
func (d *Disk) ReadOnly() bool { return d.export.has(flagReadOnly) }

// Close ends the connections. What is pending fails.
func (d *Disk) Close() error {
	d.stop()
	return d.close()
}

func (d *Disk) hangUp() error {
	var errs []error
	for _, c := range d.conns {
		errs = append(errs, c.disconnect())
	}
	return errors.Join(errs...)
}

func (d *Disk) abort(why error) {
	for _, c := range d.conns {
		c.abort(why)
	}
}

// pick takes the connections in turn.
func (d *Disk) pick() *conn { return d.conns[int(d.next.Add(1))%len(d.conns)] }

// connect makes one connection that is ready for requests.
func connect(ctx context.Context, o Options) (_ *conn, err error) {
	dial := o.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	s, err := dial(ctx, o.Network, o.Address)
	if err != nil {
		return nil, fmt.Errorf("nbd: %w", err)
	}
	raw := s
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	h := &handshake{Conn: s}
	e, err := h.negotiate(ctx, o)
	if err != nil {
		_ = s.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("nbd: connect to %s: %w", o.Address, err)
	}
	return newConn(h.Conn, e), nil
}

package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"hypersdk/formats"
)

// Requests and replies ("Transmission phase").
const (
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdWriteZeroes = 6
	cmdStatus      = 7

	chunkDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkFailed      = 1 << 15
	chunkError       = chunkFailed + 1
	chunkErrorOffset = chunkFailed + 2
)

const (
	// maxPieces is in how many pieces, out of order, the answer to one read may come.
	maxPieces = 1 << 16
	// maxStatus bounds one answer about the map of a disk: a million extents.
	maxStatus = 4 + 8<<20
	// inFlight is how many requests of one connection wait for their answer at once.
	inFlight = 64
	// farewell is how long a server may take to hear that it is left.
	farewell = time.Second
)

// request is one request on its way.
type request struct {
	cmd  uint16
	off  int64
	n    int64
	data []byte // to be written, or to be read into: n bytes

	pieces []piece // of a read: what of data has come
	status []byte  // of the wanted context: pairs of length and flags
	of     uint32  // the wanted context
	err    error
	done   chan struct{}
}

type piece struct{ off, end int64 }

// conn is one connection after its handshake.
type conn struct {
	export
	sock  net.Conn
	slots chan struct{}
	gone  chan struct{} // closed when nobody receives any more

	write sync.Mutex // of the socket

	mu      sync.Mutex
	pending map[uint64]*request
	last    uint64 // cookie
	broken  error  // why nothing can be asked any more
}

func newConn(s net.Conn, e export) *conn {
	c := &conn{export: e, sock: s, slots: make(chan struct{}, inFlight), gone: make(chan struct{}), pending: map[uint64]*request{}}
	go c.receive()
	return c
}

// start sends a request; it is over when its done is closed.
func (c *conn) start(r *request) {
	r.done = make(chan struct{})
	c.slots <- struct{}{}
	c.mu.Lock()
	if c.broken != nil {
		r.err = c.broken
		c.mu.Unlock()
		c.finish(r)
		return
	}
	c.last++
	cookie := c.last
	c.pending[cookie] = r
	c.mu.Unlock()

	head := binary.BigEndian.AppendUint32(make([]byte, 0, 28), magicRequest)
	head = binary.BigEndian.AppendUint16(head, 0)
	head = binary.BigEndian.AppendUint16(head, r.cmd)
	head = binary.BigEndian.AppendUint64(head, cookie)
	head = binary.BigEndian.AppendUint64(head, uint64(r.off))
	head = binary.BigEndian.AppendUint32(head, uint32(r.n))
	parts := net.Buffers{head}
	if r.cmd == cmdWrite {
		parts = append(parts, r.data)
	}
	c.write.Lock()
	_, err := parts.WriteTo(c.sock)
	c.write.Unlock()
	if err != nil {
		c.abort(err) // the receiver ends this request with all others
	}
}

func (c *conn) finish(r *request) {
	close(r.done)
	<-c.slots
}

// abort ends the connection; what is pending, and whatever is asked later, fails with why.
func (c *conn) abort(why error) {
	c.mu.Lock()
	if c.broken == nil {
		c.broken = why
	}
	c.mu.Unlock()
	_ = c.sock.Close()
}

// disconnect says good-bye and waits until nothing is received any more.
func (c *conn) disconnect() error {
	c.mu.Lock()
	whole := c.broken == nil
	if whole {
		c.broken = net.ErrClosed
	}
	c.mu.Unlock()
	if whole {
		bye := binary.BigEndian.AppendUint32(nil, magicRequest)
		bye = append(bye, make([]byte, 24)...)
		bye[7] = cmdDisconnect
		_ = c.sock.SetWriteDeadline(time.Now().Add(farewell)) // of a request that nobody reads, too
		c.write.Lock()
		_, _ = c.sock.Write(bye) // a server that has gone knows
		c.write.Unlock()
	}
	err := c.sock.Close()
	<-c.gone
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

// receive takes replies until the connection ends. No buffer of a request is touched after its end.
func (c *conn) receive() {
	defer close(c.gone)
	in := bufio.NewReaderSize(c.sock, 64<<10)
	var err error
	for err == nil {
		err = c.reply(in)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	c.abort(err)
	c.mu.Lock()
	left, why := c.pending, c.broken
	c.pending = map[uint64]*request{}
	c.mu.Unlock()
	for _, r := range left {
		r.err = why
		c.finish(r)
	}
}

func (c *conn) reply(in *bufio.Reader) error {
	var b [20]byte
	if _, err := io.ReadFull(in, b[:4]); err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(b[:]); magic {
	case magicSimple:
		return c.simple(in, b[:12])
	case magicStructured:
		if !c.structured {
			return fmt.Errorf("%w: a structured reply that nobody asked for", ErrProtocol)
		}
		return c.chunk(in, b[:16])
	default:
		return fmt.Errorf("%w: %#x begins no reply", ErrProtocol, magic)
	}
}

// simple takes a simple reply ("Simple reply message"): of a read, the data follows.
func (c *conn) simple(in io.Reader, head []byte) error {
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	cookie := binary.BigEndian.Uint64(head[4:])
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	if c.structured && (r.cmd == cmdRead || r.cmd == cmdStatus) {
		return fmt.Errorf("%w: a simple reply where a structured one was agreed on", ErrProtocol)
	}
	if code := binary.BigEndian.Uint32(head); code != 0 {
		r.fail(code, "")
	} else if r.cmd == cmdRead {
		if _, err := io.ReadFull(in, r.data); err != nil {
			return err
		}
		r.pieces = []piece{{0, r.n}}
	}
	return c.end(cookie, r)
}

// chunk takes one chunk of a structured reply ("Structured reply chunk message").
func (c *conn) chunk(in *bufio.Reader, head []byte) error {
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	flags, kind := binary.BigEndian.Uint16(head), binary.BigEndian.Uint16(head[2:])
	cookie, n := binary.BigEndian.Uint64(head[4:]), int64(binary.BigEndian.Uint32(head[12:]))
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case kind == chunkNone && n == 0 && flags&chunkDone != 0:
	case kind == chunkData && r.cmd == cmdRead && n > 8:
		err = r.take(in, n-8)
	case kind == chunkHole && r.cmd == cmdRead && n == 12:
		err = r.hole(in)
	case kind == chunkStatus && r.cmd == cmdStatus && n >= 12 && n <= maxStatus && n%8 == 4:
		err = r.map_(in, n)
	case kind&chunkFailed != 0 && n <= maxReply:
		err = r.failure(in, kind, n)
	default:
		err = fmt.Errorf("%w: a chunk of kind %#x and %d bytes", ErrProtocol, kind, n)
	}
	if err != nil || flags&chunkDone == 0 {
		return err
	}
	return c.end(cookie, r)
}

func (c *conn) find(cookie uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.pending[cookie]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("%w: a reply to a request that was not made", ErrProtocol)
}

// end finishes a request whose last reply has come.
func (c *conn) end(cookie uint64, r *request) error {
	if err := r.whole(); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.pending, cookie)
	c.mu.Unlock()
	c.finish(r)
	return nil
}

// note takes down that a piece of a read has come.
func (r *request) note(off, n int64) error {
	if off < r.off || n <= 0 || n > r.n || off-r.off > r.n-n {
		return fmt.Errorf("%w: %d bytes at %d in answer to a read of %d at %d", ErrProtocol, n, off, r.n, r.off)
	}
	off -= r.off
	if k := len(r.pieces); k > 0 && r.pieces[k-1].end == off {
		r.pieces[k-1].end += n
		return nil
	}
	if len(r.pieces) == maxPieces {
		return fmt.Errorf("%w: a read is answered in more than %d pieces", ErrProtocol, maxPieces)
	}
	r.pieces = append(r.pieces, piece{off, off + n})
	return nil
}

func (r *request) take(in io.Reader, n int64) error {
	var b [8]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return err
	}
	off := int64(binary.BigEndian.Uint64(b[:]))
	if err := r.note(off, n); err != nil {
		return err
	}
	_, err := io.ReadFull(in, r.data[off-r.off:][:n])
	return err
}

func (r *request) hole(in io.Reader) error {
	var b [12]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return err
	}
	off, n := int64(binary.BigEndian.Uint64(b[:])), int64(binary.BigEndian.Uint32(b[8:]))
	if err := r.note(off, n); err != nil {
		return err
	}
	clear(r.data[off-r.off:][:n])
	return nil
}

// map_ takes one context's extents; those of other contexts are passed over.
func (r *request) map_(in io.Reader, n int64) error {
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(b) == r.of {
		r.status = b[4:]
	}
	return nil
}

// failure takes an error ("NBD_REPLY_TYPE_ERROR"); one that is not known is read past.
func (r *request) failure(in io.Reader, kind uint16, n int64) error {
	b := make([]byte, n)
	if _, err := io.ReadFull(in, b); err != nil {
		return err
	}
	if len(b) < 6 || int(binary.BigEndian.Uint16(b[4:])) > len(b)-6 {
		return fmt.Errorf("%w: an error of %d bytes", ErrProtocol, n)
	}
	text := ""
	if kind == chunkError || kind == chunkErrorOffset {
		text = printable(b[6:][:binary.BigEndian.Uint16(b[4:])])
	}
	r.fail(binary.BigEndian.Uint32(b), text)
	return nil
}

// errnos are the errors that the protocol knows ("Error values"), which are Linux's.
var errnos = map[uint32]syscall.Errno{
	1: syscall.EPERM, 5: syscall.EIO, 12: syscall.ENOMEM, 22: syscall.EINVAL, 28: syscall.ENOSPC,
	75: syscall.EOVERFLOW, 95: syscall.ENOTSUP, 108: syscall.ESHUTDOWN,
}

// fail notes what the server says; the first error counts.
func (r *request) fail(code uint32, text string) {
	if r.err != nil {
		return
	}
	e, ok := errnos[code]
	if !ok {
		e = syscall.EINVAL // what the protocol says of unknown ones
	}
	if text != "" {
		text = " (" + text + ")"
	}
	r.err = fmt.Errorf("the server answers: %w%s", e, text)
}

// whole checks that an answer without an error is complete.
func (r *request) whole() error {
	switch {
	case r.err != nil:
	case r.cmd == cmdRead && !covers(r.pieces, r.n):
		return fmt.Errorf("%w: a read of %d bytes at %d is not answered in full, or twice in part", ErrProtocol, r.n, r.off)
	case r.cmd == cmdStatus && len(r.status) == 0:
		return fmt.Errorf("%w: no map in answer to a request for one", ErrProtocol)
	}
	return nil
}

// wait is the end of a request.
func (r *request) wait() error {
	<-r.done
	return r.err
}

var _ formats.Image = (*Disk)(nil)

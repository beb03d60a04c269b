package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"unicode"
)

// Magic numbers and options of the handshake ("Fixed newstyle negotiation", "Option types").
const (
	magicHello  = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454F5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9

	helloFixed    = 1 << 0
	helloNoZeroes = 1 << 1

	optStartTLS   = 5
	optGo         = 7
	optStructured = 8
	optSetContext = 10

	repAck     = 1
	repInfo    = 3
	repContext = 4
	repFailed  = 1 << 31

	infoExport    = 0
	infoBlockSize = 3
)

const (
	maxString = 4096 // bytes of a name ("Values")
	maxReply  = 64 << 10
	// maxReplies is how many a server may send to one option before it acknowledges it.
	maxReplies = 64
)

// refusals are the errors that answer an option.
var refusals = map[uint32]string{
	repFailed + 1: "it does not know the option",
	repFailed + 2: "it does not allow it",
	repFailed + 3: "it finds the request invalid",
	repFailed + 4: "it was built without it",
	repFailed + 5: "it wants TLS first",
	repFailed + 6: "there is no such export",
	repFailed + 7: "it is shutting down",
	repFailed + 8: "it wants the block size to be asked for",
	repFailed + 9: "the request is too long",
}

// refusal is an option that the server does not grant.
type refusal struct {
	option, reply uint32
	text          string
}

func (r *refusal) Error() string {
	what := map[uint32]string{optStartTLS: "TLS", optGo: "the export", optStructured: "structured replies", optSetContext: "a metadata context"}[r.option]
	why := refusals[r.reply]
	if why == "" {
		why = fmt.Sprintf("it answers %#x", r.reply)
	}
	if r.text != "" {
		why += " (" + r.text + ")"
	}
	return fmt.Sprintf("the server refuses %s: %s", what, why)
}

// handshake is a connection before its first request.
type handshake struct{ net.Conn }

func (h *handshake) negotiate(ctx context.Context, o Options) (export, error) {
	e := export{min: 1, max: usualMax, contexts: map[string]uint32{}}
	if len(o.Export) > maxString || len(o.Context) > maxString {
		return e, fmt.Errorf("names of more than %d bytes are not allowed", maxString)
	}
	if err := h.hello(); err != nil {
		return e, err
	}
	if o.TLS != nil {
		if err := h.startTLS(ctx, o); err != nil {
			return e, err
		}
	}
	err := h.option(optStructured, nil, nil)
	var no *refusal
	if err != nil && !errors.As(err, &no) {
		return e, err
	}
	if e.structured = err == nil; e.structured {
		if err := h.setContexts(&e, o); err != nil {
			return e, err
		}
	}
	if _, ok := e.contexts[o.Context]; o.Context != "" && !ok {
		return e, fmt.Errorf("the server has no metadata context %q for the export", o.Context)
	}
	if err := h.enter(&e, o.Export); err != nil {
		return e, err
	}
	return e, e.whole()
}

func (h *handshake) hello() error {
	var b [18]byte
	if _, err := io.ReadFull(h, b[:]); err != nil {
		return fmt.Errorf("the server's greeting: %w", err)
	}
	flags := binary.BigEndian.Uint16(b[16:])
	if binary.BigEndian.Uint64(b[:]) != magicHello || binary.BigEndian.Uint64(b[8:]) != magicOption {
		return fmt.Errorf("%w: this is not how an NBD server of the newstyle handshake greets", ErrProtocol)
	}
	if flags&helloFixed == 0 {
		return fmt.Errorf("the server's handshake is too old: only the fixed newstyle one is supported")
	}
	return binary.Write(h, binary.BigEndian, uint32(flags&(helloFixed|helloNoZeroes)))
}

func (h *handshake) startTLS(ctx context.Context, o Options) error {
	if err := h.option(optStartTLS, nil, nil); err != nil {
		return err
	}
	c := o.TLS.Clone()
	if c.ServerName == "" && !c.InsecureSkipVerify {
		host, _, err := net.SplitHostPort(o.Address)
		if err != nil {
			return fmt.Errorf("TLS over %s needs the server's name", o.Network)
		}
		c.ServerName = host
	}
	t := tls.Client(h.Conn, c)
	if err := t.HandshakeContext(ctx); err != nil {
		return err
	}
	h.Conn = t
	return nil
}

// setContexts asks for the map of the disk, and for what else is wanted. A server that has none of
// them answers an empty list.
func (h *handshake) setContexts(e *export, o Options) error {
	names := []string{allocation}
	if o.Context != "" && o.Context != allocation {
		names = append(names, o.Context)
	}
	data := appendString(nil, o.Export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(names)))
	for _, n := range names {
		data = appendString(data, n)
	}
	err := h.option(optSetContext, data, func(kind uint32, b []byte) error {
		if kind != repContext || len(b) < 4 {
			return fmt.Errorf("%w: reply %#x of %d bytes to a request for metadata contexts", ErrProtocol, kind, len(b))
		}
		for _, n := range names {
			if string(b[4:]) == n {
				e.contexts[n] = binary.BigEndian.Uint32(b)
			}
		}
		return nil
	})
	var no *refusal
	if errors.As(err, &no) {
		return nil // the disk is read without its map
	}
	return err
}

// enter asks for the export; with its acknowledgement the handshake is over.
func (h *handshake) enter(e *export, name string) error {
	known := false
	data := appendString(nil, name)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	err := h.option(optGo, data, func(kind uint32, b []byte) error {
		if kind != repInfo || len(b) < 2 {
			return fmt.Errorf("%w: reply %#x of %d bytes to a request for the export", ErrProtocol, kind, len(b))
		}
		info, b := binary.BigEndian.Uint16(b), b[2:]
		switch {
		case info == infoExport && len(b) == 10:
			known, e.flags = true, binary.BigEndian.Uint16(b[8:])
			return e.setSize(binary.BigEndian.Uint64(b))
		case info == infoBlockSize && len(b) == 12:
			return e.limit(binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:]))
		case info == infoExport || info == infoBlockSize:
			return fmt.Errorf("%w: information %d of %d bytes", ErrProtocol, info, len(b))
		}
		return nil // a name, a description, or what is not invented yet
	})
	if err == nil && !known {
		err = fmt.Errorf("%w: the export's size was not told", ErrProtocol)
	}
	return err
}

// option asks for one option and waits for its acknowledgement; what comes before is given to took.
func (h *handshake) option(opt uint32, data []byte, took func(kind uint32, b []byte) error) error {
	req := binary.BigEndian.AppendUint64(nil, magicOption)
	req = binary.BigEndian.AppendUint32(req, opt)
	req = append(binary.BigEndian.AppendUint32(req, uint32(len(data))), data...)
	if _, err := h.Write(req); err != nil {
		return err
	}
	for range maxReplies {
		kind, b, err := h.reply(opt)
		switch {
		case err != nil:
			return err
		case kind == repAck:
			return nil
		case kind&repFailed != 0:
			return &refusal{opt, kind, printable(b)}
		case took == nil:
			return fmt.Errorf("%w: reply %#x to option %d", ErrProtocol, kind, opt)
		}
		if err := took(kind, b); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d replies to option %d", ErrProtocol, maxReplies, opt)
}

func (h *handshake) reply(opt uint32) (kind uint32, b []byte, err error) {
	var head [20]byte
	if _, err := io.ReadFull(h, head[:]); err != nil {
		return 0, nil, fmt.Errorf("the answer to option %d: %w", opt, err)
	}
	n := binary.BigEndian.Uint32(head[16:])
	switch {
	case binary.BigEndian.Uint64(head[:]) != magicReply:
		return 0, nil, fmt.Errorf("%w: the answer to option %d is not one", ErrProtocol, opt)
	case binary.BigEndian.Uint32(head[8:]) != opt:
		return 0, nil, fmt.Errorf("%w: an answer to option %d where %d was asked for", ErrProtocol, binary.BigEndian.Uint32(head[8:]), opt)
	case n > maxReply:
		return 0, nil, fmt.Errorf("%w: an answer of %d bytes to option %d", ErrProtocol, n, opt)
	}
	b = make([]byte, n)
	_, err = io.ReadFull(h, b)
	return binary.BigEndian.Uint32(head[12:]), b, err
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// printable is what a server says, fit for an error.
func printable(b []byte) string {
	if len(b) > 200 {
		b = b[:200]
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, strings.TrimSpace(strings.ToValidUTF8(string(b), ".")))
}

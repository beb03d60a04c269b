package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/formats/nbd"
)

// fake is a server that says what a test wants it to.
type fake struct {
	net.Conn
	size uint64
	info []byte // instead of the usual answer to GO
}

func be(v ...any) []byte {
	var b bytes.Buffer
	for _, x := range v {
		if p, ok := x.([]byte); ok {
			b.Write(p)
			continue
		}
		if err := binary.Write(&b, binary.BigEndian, x); err != nil {
			panic(err)
		}
	}
	return b.Bytes()
}

func reply(opt, kind uint32, data []byte) []byte {
	return be(uint64(0x0003e889045565a9), opt, kind, uint32(len(data)), data)
}

func hello() []byte { return be(uint64(0x4e42444d41474943), uint64(0x49484156454F5054), uint16(3)) }

// greet answers a whole handshake: structured replies, base:allocation with id 5, 1 MiB read-only.
func (f *fake) greet() {
	_, _ = f.Write(hello())
	var flags [4]byte
	_, _ = io.ReadFull(f, flags[:])
	for {
		var head [16]byte
		if _, err := io.ReadFull(f, head[:]); err != nil {
			return
		}
		opt := binary.BigEndian.Uint32(head[8:])
		_, _ = io.CopyN(io.Discard, f, int64(binary.BigEndian.Uint32(head[12:])))
		switch opt {
		case 8:
			_, _ = f.Write(reply(8, 1, nil))
		case 10:
			_, _ = f.Write(append(reply(10, 4, be(uint32(5), []byte("base:allocation"))), reply(10, 1, nil)...))
		case 7:
			size := f.size
			if size == 0 {
				size = mib
			}
			info := f.info
			if info == nil {
				info = reply(7, 3, be(uint16(0), size, uint16(1|2)))
			}
			_, _ = f.Write(append(info, reply(7, 1, nil)...))
			return
		}
	}
}

func dialed(t *testing.T, c net.Conn) *nbd.Disk {
	t.Helper()
	d, err := nbd.Open(t.Context(), nbd.Options{Network: "tcp", Address: "fake:1", Dial: func(context.Context, string, string) (net.Conn, error) { return c, nil }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, d.Close()) })
	return d
}

func TestAServerThatLiesInItsHandshake(t *testing.T) {
	for name, c := range map[string]struct {
		say []byte
		f   *fake
		why string
	}{
		"is no NBD server":            {say: []byte("HTTP/1.1 400 Bad Request\r\n"), why: "how an NBD server"},
		"speaks oldstyle":             {say: be(uint64(0x4e42444d41474943), uint64(0x49484156454F5054), uint16(0)), why: "too old"},
		"answers another option":      {say: append(hello(), reply(99, 1, nil)...), why: "an answer to option 99"},
		"answers too much":            {say: append(hello(), be(uint64(0x0003e889045565a9), uint32(8), uint32(1), uint32(1<<31))...), why: "an answer of 2147483648 bytes"},
		"never acknowledges":          {say: append(hello(), append(reply(8, 1, nil), bytes.Repeat(reply(10, 4, be(uint32(1), []byte("x"))), 70)...)...), why: "more than 64 replies"},
		"has no size":                 {f: &fake{info: []byte{}}, why: "size was not told"},
		"has a negative size":         {f: &fake{size: 1 << 63}, why: "an export of"},
		"has blocks of 3":             {f: &fake{info: append(reply(7, 3, be(uint16(0), uint64(mib), uint16(1))), reply(7, 3, be(uint16(3), uint32(3), uint32(4096), uint32(1<<20)))...)}, why: "minimum block size of 3"},
		"has a most below its least":  {f: &fake{info: append(reply(7, 3, be(uint16(0), uint64(mib), uint16(1))), reply(7, 3, be(uint16(3), uint32(4096), uint32(4096), uint32(512)))...)}, why: "maximum block size of 512"},
		"has half a block at its end": {f: &fake{info: append(reply(7, 3, be(uint16(0), uint64(1000), uint16(1))), reply(7, 3, be(uint16(3), uint32(512), uint32(4096), uint32(1<<20)))...)}, why: "1000 bytes in blocks of 512"},
		"hides escapes in its words":  {say: append(hello(), append(reply(8, 1, nil), append(reply(10, 1, nil), reply(7, 1<<31+2, []byte("no\x1b[31m"))...)...)...), why: "does not allow it (no.[31m)"},
	} {
		t.Run(name, func(t *testing.T) {
			client, server := net.Pipe()
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer server.Close()
				if c.f != nil {
					c.f.Conn = server
					c.f.greet()
					return
				}
				go func() { _, _ = io.Copy(io.Discard, server) }()
				_, _ = server.Write(c.say)
			}()
			_, err := nbd.Open(t.Context(), nbd.Options{Network: "tcp", Address: "fake:1", Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
			require.ErrorContains(t, err, c.why)
			<-done
		})
	}
}

// chunk is a chunk of a structured reply.
func chunk(flags, kind uint16, cookie uint64, data []byte) []byte {
	return be(uint32(0x668e33ef), flags, kind, cookie, uint32(len(data)), data)
}

// answering is a disk whose server answers its first request with what say makes of the cookie.
func answering(t *testing.T, say func(cookie uint64) []byte) *nbd.Disk {
	t.Helper()
	client, server := net.Pipe()
	go func() {
		f := &fake{Conn: server}
		f.greet()
		var head [28]byte
		if _, err := io.ReadFull(server, head[:]); err == nil {
			_, _ = server.Write(say(binary.BigEndian.Uint64(head[8:])))
		}
		_, _ = io.Copy(io.Discard, server)
		_ = server.Close()
	}()
	return dialed(t, client)
}

func TestAServerThatLiesInItsAnswers(t *testing.T) {
	half := make([]byte, 2048)
	for name, c := range map[string]struct {
		say func(cookie uint64) []byte
		why string
	}{
		"is no reply":           {func(uint64) []byte { return be(uint32(1), make([]byte, 16)) }, "begins no reply"},
		"is of another request": {func(c uint64) []byte { return chunk(1, 0, c+1, nil) }, "request that was not made"},
		"is simple":             {func(c uint64) []byte { return be(uint32(0x67446698), uint32(0), c, make([]byte, 4096)) }, "a simple reply"},
		"is half":               {func(c uint64) []byte { return chunk(1, 1, c, be(uint64(0), half)) }, "not answered in full"},
		"comes twice": {func(c uint64) []byte {
			return append(chunk(0, 1, c, be(uint64(0), half)), chunk(1, 1, c, be(uint64(0), half))...)
		}, "twice in part"},
		"lies before":            {func(c uint64) []byte { return chunk(1, 1, c, be(^uint64(0), half)) }, "in answer to a read"},
		"lies behind":            {func(c uint64) []byte { return chunk(1, 1, c, be(uint64(4000), half)) }, "in answer to a read"},
		"is too long a hole":     {func(c uint64) []byte { return chunk(1, 2, c, be(uint64(0), uint32(8192))) }, "in answer to a read"},
		"is an empty hole":       {func(c uint64) []byte { return chunk(1, 2, c, be(uint64(0), uint32(0))) }, "in answer to a read"},
		"is a map":               {func(c uint64) []byte { return chunk(1, 5, c, be(uint32(5), uint32(1), uint32(0))) }, "a chunk of kind 0x5"},
		"is an error too long":   {func(c uint64) []byte { return be(uint32(0x668e33ef), uint16(1), uint16(1<<15+1), c, uint32(1<<30)) }, "a chunk of kind 0x8001"},
		"is an error that lies":  {func(c uint64) []byte { return chunk(1, 1<<15+1, c, be(uint32(5), uint16(100), []byte("x"))) }, "an error of 7 bytes"},
		"is done without an end": {func(c uint64) []byte { return chunk(1, 0, c, nil) }, "not answered in full"},
	} {
		t.Run(name, func(t *testing.T) {
			img := answering(t, c.say)
			_, err := img.ReadAt(make([]byte, 4096), 0)
			require.ErrorIs(t, err, nbd.ErrProtocol)
			require.ErrorContains(t, err, c.why)
		})
	}
}

func TestPiecesInAnyOrderAreOneAnswer(t *testing.T) {
	img := answering(t, func(c uint64) []byte {
		return bytes.Join([][]byte{
			chunk(0, 1, c, be(uint64(3072), bytes.Repeat([]byte{3}, 1024))),
			chunk(0, 2, c, be(uint64(1024), uint32(2048))),
			chunk(0, 1, c, be(uint64(0), bytes.Repeat([]byte{1}, 1024))),
			chunk(1, 0, c, nil),
		}, nil)
	})
	p := bytes.Repeat([]byte{9}, 4096)
	_, err := img.ReadAt(p, 0)
	require.NoError(t, err)
	require.Equal(t, bytes.Join([][]byte{bytes.Repeat([]byte{1}, 1024), make([]byte, 2048), bytes.Repeat([]byte{3}, 1024)}, nil), p)
}

func TestAServerThatLiesInItsMaps(t *testing.T) {
	for name, c := range map[string]struct {
		say func(cookie uint64) []byte
		why string
	}{
		"is empty":      {func(c uint64) []byte { return chunk(1, 0, c, nil) }, "no map in answer"},
		"goes nowhere":  {func(c uint64) []byte { return chunk(1, 5, c, be(uint32(5), uint32(0), uint32(0))) }, "an extent of no bytes"},
		"is of another": {func(c uint64) []byte { return chunk(1, 5, c, be(uint32(6), uint32(4096), uint32(0))) }, "no map in answer"},
		"is torn":       {func(c uint64) []byte { return chunk(1, 5, c, be(uint32(5), uint32(4096), uint32(0), uint32(1))) }, "a chunk of kind 0x5"},
		"is enormous":   {func(c uint64) []byte { return be(uint32(0x668e33ef), uint16(1), uint16(5), c, uint32(1<<31+4)) }, "a chunk of kind 0x5"},
	} {
		t.Run(name, func(t *testing.T) {
			img := answering(t, c.say)
			var last error
			for _, err := range img.Extents(t.Context(), 0, img.Size()) {
				last = err
			}
			require.ErrorIs(t, last, nbd.ErrProtocol)
			require.ErrorContains(t, last, c.why)
		})
	}
}

// FuzzServer says anything to a client that reads a disk.
func FuzzServer(f *testing.F) {
	f.Add(hello())
	f.Add(append(hello(), reply(8, 1, nil)...))
	whole := bytes.Join([][]byte{
		hello(), reply(8, 1, nil), reply(10, 4, be(uint32(5), []byte("base:allocation"))), reply(10, 1, nil),
		reply(7, 3, be(uint16(0), uint64(mib), uint16(1))), reply(7, 1, nil),
	}, nil)
	f.Add(append(bytes.Clone(whole), chunk(1, 1, 1, be(uint64(0), make([]byte, 4096)))...))
	f.Add(append(bytes.Clone(whole), chunk(1, 2, 1, be(uint64(0), uint32(4096)))...))
	f.Add(append(bytes.Clone(whole), chunk(1, 1<<15+1, 1, be(uint32(5), uint16(2), []byte("no")))...))
	f.Add(append(bytes.Clone(whole), append(chunk(1, 1, 1, be(uint64(0), make([]byte, 4096))), chunk(1, 5, 2, be(uint32(5), uint32(mib), uint32(3)))...)...))
	f.Fuzz(func(t *testing.T, say []byte) {
		client, server := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, server) }()
		go func() { _, _ = server.Write(say); _ = server.Close() }()
		defer server.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		d, err := nbd.Open(ctx, nbd.Options{Network: "tcp", Address: "fake:1", Connections: 1, Dial: func(context.Context, string, string) (net.Conn, error) { return client, nil }})
		if err != nil {
			return
		}
		defer d.Close()
		_, _ = d.ReadAt(make([]byte, 4096), 0)
		at := int64(0)
		for e, err := range d.Extents(ctx, 0, min(d.Size(), mib)) {
			if err != nil {
				break
			}
			require.Equal(t, at, e.Off)
			require.Positive(t, e.Len)
			at = e.End()
		}
		require.NoError(t, ctx.Err(), "no server keeps the client busy for ever")
	})
}

package formatstest

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
)

// errPipe is the error of a pipe whose reader has gone.
var errPipe = errors.New("broken pipe")

// pipe takes limit bytes; it has no other ability than Write.
type pipe struct {
	bytes.Buffer
	limit int
}

func (p *pipe) Write(b []byte) (int, error) {
	if p.Len()+len(b) > p.limit {
		return 0, errPipe
	}
	return p.Buffer.Write(b)
}

// encode writes a disk front to back into a pipe and reads it again; and into a pipe that breaks.
func (h Harness) encode(t *testing.T, size int64) {
	d := NewDisk(uint64(size)+1, size)
	write := func(limit int) (*pipe, error) {
		p := &pipe{limit: limit}
		w, err := h.Format.Encode(t.Context(), struct{ io.Writer }{p}, size, h.Options)
		if err != nil {
			return p, err
		}
		defer w.Close()
		if err := Fill(w, d, 0, size); err != nil {
			return p, err
		}
		return p, w.Commit(t.Context())
	}
	p, err := write(1 << 30)
	require.NoError(t, err)
	f := MemFileOf(p.Bytes())
	CheckImage(t, h.OpenDisk(t, f), d, false)
	again, err := write(1 << 30)
	require.NoError(t, err)
	require.True(t, bytes.Equal(p.Bytes(), again.Bytes()), "same writes, same bytes")
	for _, limit := range []int{0, p.Len() / 2, p.Len() - 1} {
		_, err := write(limit)
		require.ErrorIs(t, err, errPipe, "a pipe that breaks after %d of %d bytes", limit, p.Len())
	}
}

// stream reads what the format itself writes front to back: whole, cut short, and from a reader that
// gives one byte at a time.
func (h Harness) stream(t *testing.T) {
	d := NewDisk(111, h.examSize())
	var whole []byte
	switch {
	case h.Format.Encode != nil:
		p := &pipe{limit: 1 << 30}
		w, err := h.Format.Encode(t.Context(), p, d.Size(), h.Options)
		require.NoError(t, err)
		defer w.Close()
		require.NoError(t, Fill(w, d, 0, d.Size()))
		require.NoError(t, w.Commit(t.Context()))
		whole = p.Bytes()
	default:
		f := NewMemFile()
		h.createIn(t, f, d)
		whole = make([]byte, f.Size())
		_, err := f.ReadAt(whole, 0)
		require.NoError(t, noEOF(err))
	}
	CheckStream(t, h.Format, whole, d)
}

// CheckStream examines a format's Stream on the bytes of a file that holds d.
func CheckStream(t testing.TB, format formats.Format, file []byte, d *Disk) {
	t.Helper()
	got, err := drain(t, format, bytes.NewReader(file))
	require.NoError(t, err)
	want := make([]byte, d.Size())
	_, err = d.ReadAt(want, 0)
	require.NoError(t, noEOF(err))
	require.Len(t, got, len(want), "size of the disk")
	requireBytes(t, want, got, 0)

	got, err = drain(t, format, io.MultiReader(bytes.NewReader(file[:1]), oneByte{bytes.NewReader(file[1:])}))
	require.NoError(t, err)
	requireBytes(t, want, got, 0)

	for _, n := range strewn(int64(len(file))) {
		got, err := drain(t, format, bytes.NewReader(file[:n]))
		if err == nil {
			requireBytes(t, want, got, 0) // what was cut off was padding
		}
		_, err = drain(t, format, io.MultiReader(bytes.NewReader(file[:n]), broken{}))
		if err != nil {
			require.ErrorIs(t, err, ErrInjected, "a reader that breaks at %d", n)
		}
	}
}

// oneByte reads in the smallest steps, but for large reads some more.
type oneByte struct{ io.Reader }

func (r oneByte) Read(b []byte) (int, error) {
	return r.Reader.Read(b[:min(len(b), 1+len(b)/3)])
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, ErrInjected }

// drain assembles the disk that a stream delivers.
func drain(t testing.TB, format formats.Format, r io.Reader) ([]byte, error) {
	t.Helper()
	s, err := format.Stream(t.Context(), r)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	disk := make([]byte, s.Size())
	for {
		c, err := s.Next(t.Context())
		if errors.Is(err, io.EOF) && !errors.Is(err, formats.ErrCorrupt) {
			return disk, nil
		}
		if err != nil {
			return disk, err
		}
		require.GreaterOrEqual(t, c.Off, int64(0))
		require.Positive(t, c.Len)
		require.LessOrEqual(t, c.Off+c.Len, s.Size())
		switch {
		case c.Data != nil:
			require.Len(t, c.Data, int(c.Len))
			copy(disk[c.Off:], c.Data)
		default:
			copy(disk[c.Off:], Unpack(t, c.Packed, c.Len))
		}
	}
}

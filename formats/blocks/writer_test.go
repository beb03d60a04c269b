package blocks_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
	"hypersdk/formats/formatstest"
)

const (
	toySize  = 10*4096 - 512
	toyTable = 4096
	toyData  = 8192
)

var toyMark = []byte("an image")

// grow is a format of ten blocks of 4 KiB, each with a byte before it, that begins with "an image".
func grow(ctx context.Context, f formats.File, from formats.Checkpoint) (formats.Writer, error) {
	return blocks.Grow(ctx, f, blocks.Layout{
		Name: "toy", Size: toySize, Block: 4096, Head: 512,
		Table: toyTable, Entries: 10, Width: 4, Order: binary.LittleEndian, Index: func(b int64) int64 { return b },
		Free: 0xffffffff, First: 100, Step: 7,
		Data: toyData, Stride: 5000, Before: []byte{0xbb},
		Commit: func(_ formats.File, stored, end int64, s blocks.Seed) ([]blocks.Mark, error) {
			return []blocks.Mark{{Off: end, Bytes: []byte{byte(stored)}}, {Off: 0, Bytes: toyMark}}, nil
		},
	}, from)
}

// fix is a disk as it is, behind 512 bytes that begin with "an image".
func fix(ctx context.Context, f formats.File, from formats.Checkpoint) (formats.Writer, error) {
	return blocks.Fix(ctx, f, blocks.Plain{
		Name: "toy", Size: toySize, Head: 512, Data: 512, End: 512 + toySize,
		Commit: func(formats.File, blocks.Seed) ([]blocks.Mark, error) {
			return []blocks.Mark{{Off: 0, Bytes: toyMark}}, nil
		},
	}, from)
}

var writers = map[string]func(context.Context, formats.File, formats.Checkpoint) (formats.Writer, error){"growing": grow, "fixed": fix}

func read(t *testing.T, f formats.File, off int64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, err := f.ReadAt(b, off)
	require.NoError(t, err)
	return b
}

func TestBlocksAreStoredInTheOrderOfTheirFirstWrites(t *testing.T) {
	f := formatstest.NewMemFile()
	w, err := grow(t.Context(), f, formats.Checkpoint{})
	require.NoError(t, err)
	_, err = w.WriteAt(bytes.Repeat([]byte{5}, 1024), 4096*5+512)
	require.NoError(t, err)
	_, err = w.WriteAt(bytes.Repeat([]byte{2}, 8192), 4096*2-512) // blocks 1, 2 and 3
	require.NoError(t, err)
	require.NoError(t, w.WriteZeroes(0, 4096*6))
	require.NoError(t, w.WriteZeroes(4096*6, toySize-4096*6))
	_, err = w.WriteAt(make([]byte, 4096), 4096*8) // zeros take no block
	require.NoError(t, err)
	_, err = w.WriteAt(bytes.Repeat([]byte{9}, 3584), 4096*9) // the tail
	require.NoError(t, err)
	require.NoError(t, w.Commit(t.Context()))

	le := binary.LittleEndian
	var table [10]uint32
	for i := range table {
		table[i] = le.Uint32(read(t, f, toyTable+4*int64(i), 4))
	}
	const no = 0xffffffff
	require.Equal(t, [10]uint32{no, 107, 114, 121, no, 100, no, no, no, 128}, table)
	require.EqualValues(t, toyData+5*5000+1, f.Size())
	require.Equal(t, []byte{5}, read(t, f, f.Size()-1, 1), "blocks stored")
	for i := range int64(5) {
		require.Equal(t, []byte{0xbb}, read(t, f, toyData+i*5000, 1))
	}
	require.Equal(t, make([]byte, 4096), read(t, f, toyData+1, 4096), "block 5, overwritten with zeros")
	require.Equal(t, bytes.Repeat([]byte{9}, 3584), read(t, f, toyData+4*5000+1, 3584))
	require.Equal(t, toyMark, read(t, f, 0, len(toyMark)))
}

func TestWriterThatIsDoneTakesNothingMore(t *testing.T) {
	for name, create := range writers {
		for how, end := range map[string]func(formats.Writer) error{
			"committed": func(w formats.Writer) error { return w.Commit(t.Context()) },
			"closed":    func(w formats.Writer) error { return w.Close() },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				w, err := create(t.Context(), formatstest.NewMemFile(), formats.Checkpoint{})
				require.NoError(t, err)
				require.NoError(t, end(w))
				_, err = w.WriteAt(make([]byte, 512), 0)
				require.Error(t, err)
				require.Error(t, w.WriteZeroes(0, 512))
				_, err = w.Checkpoint(512)
				require.Error(t, err)
				require.Error(t, w.Commit(t.Context()))
				require.NoError(t, w.Close())
			})
		}
	}
}

// A write or a sync that failed is missing from the disk, whatever succeeds later.
func TestWriterThatFailedIsNeverCommitted(t *testing.T) {
	fault := errors.New("fault")
	for name, create := range writers {
		for _, op := range []formatstest.Op{formatstest.Write, formatstest.Sync} {
			t.Run(name, func(t *testing.T) {
				broken := false
				f := &formatstest.Faulty{File: formatstest.NewMemFile(), Fault: func(o formatstest.Op, _, _ int64) error {
					if broken && o == op {
						return fault
					}
					return nil
				}}
				w, err := create(t.Context(), f, formats.Checkpoint{})
				require.NoError(t, err)
				broken = true
				_, err = w.WriteAt(bytes.Repeat([]byte{1}, 512), 0)
				if op == formatstest.Sync {
					err = w.Sync(t.Context())
				}
				require.ErrorIs(t, err, fault)
				broken = false
				require.ErrorIs(t, w.Commit(t.Context()), fault)
				require.NotEqual(t, toyMark, read(t, f, 0, len(toyMark)))
			})
		}
	}
}

func TestCancelledWriterIsNeverCommitted(t *testing.T) {
	for name, create := range writers {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			w, err := create(ctx, formatstest.NewMemFile(), formats.Checkpoint{})
			require.NoError(t, err)
			cancel()
			_, err = w.WriteAt(make([]byte, 512), 0)
			require.ErrorIs(t, err, context.Canceled)
			require.ErrorIs(t, w.Commit(t.Context()), context.Canceled)
			w, err = create(t.Context(), formatstest.NewMemFile(), formats.Checkpoint{})
			require.NoError(t, err)
			require.ErrorIs(t, w.Commit(ctx), context.Canceled)
			require.ErrorIs(t, w.Sync(ctx), context.Canceled)
		})
	}
}

func TestCheckpointsOfOtherImagesAreRefused(t *testing.T) {
	for name, create := range writers {
		f := formatstest.NewMemFile()
		w, err := create(t.Context(), f, formats.Checkpoint{})
		require.NoError(t, err)
		_, err = w.WriteAt(bytes.Repeat([]byte{1}, 8192), 0)
		require.NoError(t, err)
		good, err := w.Checkpoint(8192)
		require.NoError(t, err)
		for what, cp := range map[string]formats.Checkpoint{
			"nothing":            {Off: 512},
			"nonsense":           {Off: 512, Token: "toy"},
			"another format":     {Off: 512, Token: "t" + good.Token},
			"more than there is": {Off: 512, Token: good.Token + "99"},
			"a negative number":  {Off: 512, Token: "toy 40448 4096 -1"},
			"behind the disk":    {Off: toySize + 1, Token: good.Token},
			"a negative offset":  {Off: -512, Token: good.Token},
		} {
			t.Run(name+": "+what, func(t *testing.T) {
				_, err := create(t.Context(), f, cp)
				require.ErrorIs(t, err, formats.ErrCorrupt)
			})
		}
		t.Run(name+": of a file that is gone", func(t *testing.T) {
			_, err := create(t.Context(), formatstest.NewMemFile(), good)
			require.ErrorIs(t, err, formats.ErrCorrupt)
			require.ErrorContains(t, err, "does not hold what its checkpoint says")
		})
		_, err = create(t.Context(), f, good)
		require.NoError(t, err)
	}
	t.Run("growing: of a file whose table is another", func(t *testing.T) {
		f := formatstest.NewMemFile()
		w, err := grow(t.Context(), f, formats.Checkpoint{})
		require.NoError(t, err)
		_, err = w.WriteAt(bytes.Repeat([]byte{1}, 8192), 0)
		require.NoError(t, err)
		cp, err := w.Checkpoint(8192)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, toyTable)
		require.NoError(t, err)
		_, err = grow(t.Context(), f, cp)
		require.ErrorContains(t, err, "the table has 1 of the 2 blocks of its checkpoint")
	})
}

// Whoever goes on with an image that was already committed takes back that it is one.
func TestResumeOfACommittedImage(t *testing.T) {
	for name, create := range writers {
		t.Run(name, func(t *testing.T) {
			f := formatstest.NewMemFile()
			w, err := create(t.Context(), f, formats.Checkpoint{})
			require.NoError(t, err)
			_, err = w.WriteAt(bytes.Repeat([]byte{1}, 8192), 0)
			require.NoError(t, err)
			cp, err := w.Checkpoint(4096)
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			whole := f.Clone()

			w, err = create(t.Context(), f, cp)
			require.NoError(t, err)
			require.NotEqual(t, toyMark, read(t, f, 0, len(toyMark)))
			_, err = w.WriteAt(bytes.Repeat([]byte{1}, 4096), 4096)
			require.NoError(t, err)
			require.NoError(t, w.Commit(t.Context()))
			formatstest.RequireEqual(t, whole, f)
		})
	}
}

// Zeros that were never anything else take no room; zeros over data do.
func TestZerosTakeNoRoom(t *testing.T) {
	f := formatstest.NewMemFile()
	w, err := blocks.Fix(t.Context(), f, blocks.Plain{Name: "toy", Size: 1 << 40, End: 1 << 40, Commit: func(formats.File, blocks.Seed) ([]blocks.Mark, error) {
		return nil, nil
	}}, formats.Checkpoint{})
	require.NoError(t, err)
	require.NoError(t, w.WriteZeroes(0, 1<<40))
	require.Zero(t, f.Stored())
	_, err = w.WriteAt(bytes.Repeat([]byte{1}, 4096), 1<<39)
	require.NoError(t, err)
	require.NoError(t, w.WriteZeroes(0, 1<<40))
	require.Equal(t, make([]byte, 4096), read(t, f, 1<<39, 4096))
	require.LessOrEqual(t, f.Stored(), int64(1<<20))
}

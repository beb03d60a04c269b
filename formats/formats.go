// Package formats is the vocabulary of disks: what a virtual disk is when it is read, when it is
// written, and how one is copied into the other.
//
// A disk is an [Image] whatever it is made of: a qcow2 file, a snapshot on a host far away, the
// blocks that changed since Tuesday. So there is one copy loop ([Copy]), one verifier ([Verify]) and
// one meter for all of them. A format (package formats/qcow2, formats/vmdk, …) describes itself in a
// [Format]; package formats/all lists them.
//
// Offsets and lengths are bytes of the virtual disk, unless a comment says that they are bytes of
// the file that stores it.
package formats

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
)

// Kind says what a stretch of a disk is.
type Kind uint8

const (
	// Absent is not part of this image: a copy leaves the target as it is there. Reading it is an
	// error, never zeros: a delta that answered zeros would erase what it does not hold.
	Absent Kind = iota
	// Zero reads as zeros and need not be read.
	Zero
	// Data must be read.
	Data
)

func (k Kind) String() string {
	switch k {
	case Absent:
		return "absent"
	case Zero:
		return "zero"
	case Data:
		return "data"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Extent is a stretch of a disk of one kind.
type Extent struct {
	Off, Len int64
	Kind     Kind
}

// End is the offset of the first byte behind the extent.
func (e Extent) End() int64 { return e.Off + e.Len }

// Source is what can be copied: an [Image] or a [Stream].
type Source interface {
	io.Closer
	// Size is the size of the virtual disk in bytes.
	Size() int64
}

// Image is a readable virtual disk. ReadAt may be called from several goroutines at once; as
// io.ReaderAt asks, it answers io.EOF at the end and never fewer bytes than asked without an error.
// The context given when it was opened bounds its life: cancelling it fails pending reads.
type Image interface {
	Source
	io.ReaderAt
	// Extents yields extents that tile [off, off+n) exactly and ascend; neighbours may be of one
	// kind. It stops at the first error. Where the source cannot tell, it says Data.
	Extents(ctx context.Context, off, n int64) iter.Seq2[Extent, error]
}

// Stream is a disk that can be read once, front to back as it is stored: an export lease, a pipe.
// Chunks come in the order of the source, which need not be that of the disk. What never comes is
// Zero; of a block that comes twice the last one counts. Next answers io.EOF when the source said
// that it is whole; a source that ends without saying so is an error wrapping [ErrCorrupt].
type Stream interface {
	Source
	Next(ctx context.Context) (Chunk, error)
}

// Chunk is a stretch of a stream. Its buffers are the caller's until its next call of Next.
type Chunk struct {
	Off, Len int64
	Data     []byte // Len bytes, or nil while only Packed is known
	Packed   Packed // zero where the source does not store this stretch packed
}

// Codec names how the bytes of a packed block are compressed.
type Codec uint8

const (
	NoCodec Codec = iota
	Deflate       // raw deflate (RFC 1951), without zlib's head and tail
	Zstd          // one or more zstd frames (RFC 8878)
)

// Packed is one block as it is stored. Where both sides speak its codec it is moved as it is and
// only inflated to be checked; elsewhere it is unpacked.
type Packed struct {
	Codec  Codec
	Bytes  []byte
	Sum    uint32 // Adler-32 (RFC 1950) of the unpacked bytes, if HasSum
	HasSum bool
}

// PackedReader is an optional ability of an Image that stores blocks packed.
type PackedReader interface {
	// ReadPacked reads the block that begins at off as it is stored, into buf where it fits, and says
	// how many bytes of the disk it covers. n is 0 where no packed block begins at off.
	ReadPacked(ctx context.Context, off int64, buf []byte) (p Packed, n int64, err error)
}

// Writer is a disk being written. Writes begin and end on multiples of BlockSize (but for the end of
// the disk) and are refused otherwise: a finer write into a delta would erase its neighbours. Unless
// it is also [Unordered], one goroutine writes at a time. What is written twice: the last one counts.
//
// A writer ends in one of three ways. Commit makes the disk complete. Close without Commit releases
// it and leaves what the last durable Checkpoint covers, so `defer w.Close()` is always right. What is
// left behind is removed by whoever owns the file, or by [Discarder] where the writer does.
type Writer interface {
	io.WriterAt
	io.Closer
	WriteZeroes(off, n int64) error
	BlockSize() int64
	// Checkpoint notes that the disk is written up to off, and everything that a writer opened with
	// it needs to go on. It is cheap, and durable only once a Sync that began after it has returned.
	Checkpoint(off int64) (Checkpoint, error)
	// Sync makes durable what was written before it was called. It may run beside later writes.
	Sync(ctx context.Context) error
	// Commit writes what is still missing and makes all durable.
	Commit(ctx context.Context) error
}

// Checkpoint is how far a writer has come. The zero Checkpoint is the beginning.
type Checkpoint struct {
	Off   int64  `json:"off"`
	Token string `json:"token,omitempty"` // the writer's own; opaque to everyone else
}

// Unordered is an optional ability of a Writer: blocks may come in any order, from that many
// goroutines at once (1: from one). The bytes stored may not depend on the order.
type Unordered interface{ Parallelism() int }

// PackedWriter is an optional ability of a Writer that stores blocks packed. A block is BlockSize
// bytes, or what is left at the end of the disk.
type PackedWriter interface {
	// Accepts says whether a packed block of n bytes can be stored as it is. Its codec and whether its
	// sum is known decide, not its bytes.
	Accepts(p Packed, n int64) bool
	// Pack compresses a block into buf (grown where it must), and answers false where it would not
	// become smaller. It has no side effect and may be called from many goroutines: the copy loop
	// packs on every core and writes in order, so that the same source gives the same file.
	Pack(buf, block []byte) (Packed, bool)
	// WritePacked stores a packed block that covers n bytes at off.
	WritePacked(off, n int64, p Packed) error
}

// Discarder is an optional ability of a Writer that keeps its own leftovers for a resume (a part of
// an upload, a volume half written): it removes them.
type Discarder interface {
	Discard(ctx context.Context) error
}

// File is what a format is laid out in.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
}

// Format is one disk format. A function that is nil is a direction that the format does not have.
type Format struct {
	Name  string // as users write it: "qcow2"
	Alias []string
	Ext   string // of a file in it, with the dot
	// Probe says whether a file that begins with head (512 bytes or all that there is) and ends with
	// tail (likewise) is of this format. Nil: never by probing, only by name.
	Probe func(head, tail []byte) bool
	// Open reads a disk stored in r, which holds size bytes. r stays the caller's to close.
	Open func(ctx context.Context, r io.ReaderAt, size int64, o OpenOptions) (Image, error)
	// Stream reads a disk front to back, without seeking.
	Stream func(ctx context.Context, r io.Reader) (Stream, error)
	// Create lays a disk of size bytes out in f, from the beginning or from a checkpoint of an earlier
	// writer with the same size and options. f stays the caller's to close.
	Create func(ctx context.Context, f File, size int64, o CreateOptions, from Checkpoint) (Writer, error)
	// Update opens the disk laid out in f, a file of size bytes that Create has completed or that is like
	// one, to be overwritten in place: what is not written stays as it is. Images that others depend on, or
	// whose blocks cannot be replaced one by one, are refused. Commit leaves a whole image. Until then a
	// crash leaves one that Open reads and Check finds no corruption in, at most leaks; each of its blocks
	// holds what it last held before the crash or at the last Sync. Checkpoints have no token: whoever goes
	// on opens the disk anew. f stays the caller's to close.
	Update func(ctx context.Context, f File, size int64) (Writer, error)
	// Encode writes a disk front to back into w. Its writer takes blocks in ascending order and has
	// no checkpoints.
	Encode func(ctx context.Context, w io.Writer, size int64, o CreateOptions) (Writer, error)
	// Info says how the disk stored in r is stored. Nothing beside it is opened.
	Info func(ctx context.Context, r io.ReaderAt, size int64, o OpenOptions) (Info, error)
	// Check reads all that describes the disk stored in r, and none of its data, and reports where it
	// contradicts itself. The error is for what keeps it from looking. Extents are opened beside it,
	// parents are not.
	Check func(ctx context.Context, r io.ReaderAt, size int64, o OpenOptions) (Report, error)
}

// OpenOptions say how a stored disk is read. The zero value reads one self-contained file.
type OpenOptions struct {
	// Beside opens another file that the image names (an extent, a parent, a backing file), by the
	// name as it is stored. Nil: an image that needs one is refused. It is the caller who decides
	// which folder such names may reach.
	Beside func(name string) (Opened, error)
	// Layer reads only what this file holds itself: what its parent would answer is Absent.
	Layer bool
	// Snapshot reads the disk as of an internal snapshot, by name or id.
	Snapshot string
}

// Opened is a file opened beside an image.
type Opened struct {
	io.ReaderAt
	io.Closer
	Size int64
	// Name is what Beside calls this file for the files that it names in turn; loops are found by it.
	Name string
	// Beside opens names relative to this file.
	Beside func(name string) (Opened, error)
}

// CreateOptions say how a disk is stored. The zero value is right for each format.
type CreateOptions struct {
	Subformat   string // "streamOptimized", "fixed", …; "": the format's usual one
	Compression string // "zlib", "zstd"; "": stored plain
	Level       int    // of the compression; 0: the codec's balance of size and speed
	ClusterSize int64  // 0: the format's usual one
	Backing     string // file name of the parent that an overlay refers to, as it is to be stored
	BackingFmt  string
	Prealloc    string // "off", "metadata" (tables, qcow2), "full" (space, raw); "": off
	Adapter     string // "ide", "lsilogic", … where the format records one
}

// Errors of this package and of every format. Test with errors.Is; the message says where and what.
var (
	// ErrFormat: not an image of this format, or of a variant that is not supported.
	ErrFormat = errors.New("not supported")
	// ErrCorrupt: the image contradicts itself, ends early, or is not what its digest says.
	ErrCorrupt = errors.New("corrupt")
	// ErrAbsent: a read of what the image does not hold.
	ErrAbsent = errors.New("absent from this image")
	// ErrAlign: a write that does not begin and end on blocks.
	ErrAlign = errors.New("not aligned to the block size")
)

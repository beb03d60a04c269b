package blocks

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"strconv"
	"strings"
	"sync"

	"hypersdk/formats"
)

// Sector is what writes begin and end on: the finest that VHD, VHDX and VDI know.
const Sector = 512

// Mark is bytes that make a file an image. They are written last.
type Mark struct {
	Off   int64 // in the file
	Bytes []byte
}

// Seed is what the identifiers of a new image are made of. The same writes with the same options
// give the same Seed, so that a conversion gives the same file each time; disks that differ in
// their first MiB (partition tables and their identifiers) or in where data lies give others.
type Seed [sha256.Size]byte

// ID derives the identifier that has this name: a UUID of version 8 (RFC 9562).
func (s Seed) ID(name string) ID {
	sum := sha256.Sum256(append([]byte(name+"\x00"), s[:]...))
	id := ID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

// identity is how much of a disk goes into its Seed.
const identity = 1 << 20

// writer is what both writers share: a file, its life, and its end.
type writer struct {
	name string // of format and subformat: "vhd dynamic"
	key  string // what a checkpoint must have been taken with
	f    formats.File
	ctx  context.Context
	size int64 // of the disk

	life sync.Mutex
	dead error // why nothing more may be written: it is done, or a write is missing
}

var errDone = errors.New("it is committed or closed")

func (w *writer) BlockSize() int64 { return Sector }

func (w *writer) Close() error {
	_ = w.fail(errDone)
	return nil
}

// fail notes the first error: a disk that lacks a write is never committed, and what a failed sync
// has lost a later one does not notice.
func (w *writer) fail(err error) error {
	w.life.Lock()
	defer w.life.Unlock()
	if w.dead == nil && err != nil {
		w.dead = err
	}
	return err
}

// alive fails where nothing more may be done.
func (w *writer) alive(what string) error {
	w.life.Lock()
	defer w.life.Unlock()
	err := w.dead
	if err == nil {
		err = context.Cause(w.ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", w.name, what, err)
	}
	return nil
}

func (w *writer) Sync(ctx context.Context) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return w.fail(fmt.Errorf("%s: sync: %w", w.name, err))
	}
	return nil
}

// admit checks a write of n bytes at off.
func (w *writer) admit(off, n int64) error {
	if err := w.alive("write"); err != nil {
		return err
	}
	if off < 0 || n < 0 || off > w.size || n > w.size-off {
		return fmt.Errorf("%s: write of %d bytes at %d of a disk of %d", w.name, n, off, w.size)
	}
	if off%Sector != 0 || n%Sector != 0 && off+n != w.size {
		return fmt.Errorf("%s: write of %d bytes at %d: %w", w.name, n, off, formats.ErrAlign)
	}
	return nil
}

func (w *writer) put(p []byte, off int64) error {
	if _, err := w.f.WriteAt(p, off); err != nil {
		return fmt.Errorf("%s: %d bytes at %d of the file: %w", w.name, len(p), off, err)
	}
	return nil
}

func (w *writer) truncate(n int64) error {
	if err := w.f.Truncate(n); err != nil {
		return fmt.Errorf("%s: length %d: %w", w.name, n, err)
	}
	return nil
}

// zeroBuf is written where zeros must be stored.
var zeroBuf [64 << 10]byte

// zero stores n zeros at off of the file.
func (w *writer) zero(off, n int64) error {
	for n > 0 {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		b := zeroBuf[:min(n, int64(len(zeroBuf)))]
		if err := w.put(b, off); err != nil {
			return err
		}
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

// has fails where the file does not reach behind byte off.
func (w *writer) has(off int64) error {
	var b [1]byte
	if n, err := w.f.ReadAt(b[:], off); n != 1 {
		if err == nil || errors.Is(err, io.EOF) {
			err = formats.ErrCorrupt
		}
		return fmt.Errorf("%s: the file does not hold what its checkpoint says (byte %d): %w", w.name, off, err)
	}
	return nil
}

// checkpoint makes a token of the writer's key and one number; number reads it back.
func (w *writer) checkpoint(off, n int64) (formats.Checkpoint, error) {
	if err := w.alive("checkpoint"); err != nil {
		return formats.Checkpoint{}, err
	}
	return formats.Checkpoint{Off: off, Token: w.key + " " + strconv.FormatInt(n, 10)}, nil
}

func (w *writer) number(c formats.Checkpoint, most int64) (int64, error) {
	s, ok := strings.CutPrefix(c.Token, w.key+" ")
	n, err := strconv.ParseInt(s, 10, 64)
	if !ok || err != nil || n < 0 || n > most || c.Off < 0 || c.Off > w.size {
		return 0, fmt.Errorf("%s: checkpoint %q at %d is not of this image: %w", w.name, c.Token, c.Off, formats.ErrCorrupt)
	}
	return n, nil
}

// seed begins a Seed with what the image is.
func (w *writer) seed() hash.Hash {
	h := sha256.New()
	h.Write([]byte(w.key))
	return h
}

// finish makes what was written durable, then the marks one after the other.
func (w *writer) finish(ctx context.Context, marks []Mark) error {
	if err := w.Sync(ctx); err != nil {
		return err
	}
	for _, m := range marks {
		if err := w.put(m.Bytes, m.Off); err != nil {
			return err
		}
	}
	if err := w.Sync(ctx); err != nil {
		return err
	}
	return w.Close()
}

// digest hashes n bytes of a file.
func digest(ctx context.Context, h io.Writer, f io.ReaderAt, off, n int64) error {
	buf := make([]byte, min(n, 256<<10))
	for file := (File{ReaderAt: f, Size: math.MaxInt64}); n > 0; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		b := buf[:min(n, int64(len(buf)))]
		if err := file.ReadFull(b, off); err != nil {
			return err
		}
		_, _ = h.Write(b) // a hash never fails
		off, n = off+int64(len(b)), n-int64(len(b))
	}
	return nil
}

func zeros(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBuf))
		if string(b[:n]) != string(zeroBuf[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

package vmdk

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/blocks"
)

// resumable is an encoder into a file. It goes on from a checkpoint by reading back what it wrote: the
// tables backwards, each of which leads to the one before it, and the grains behind the last one.
type resumable struct {
	*encoder
	f   formats.File
	key string // what a checkpoint must have been taken with
}

func newResumable(ctx context.Context, f formats.File, size int64, o formats.CreateOptions, from formats.Checkpoint) (*resumable, error) {
	e, err := newEncoder(ctx, fileOutput{f}, size, o)
	if err != nil {
		return nil, err
	}
	r := &resumable{encoder: e, f: f, key: fmt.Sprintf("%s %d %d %q", StreamOptimized, size, o.Level, o.Adapter)}
	if from != (formats.Checkpoint{}) {
		if err := r.restore(from); err != nil {
			return nil, fmt.Errorf("vmdk: checkpoint at %d: %w", from.Off, err)
		}
	}
	if err := f.Truncate(e.start); err != nil {
		return nil, fmt.Errorf("vmdk: length %d: %w", e.start, err)
	}
	return r, nil
}

// Checkpoint hands all to the file and notes how long the stream is and where its last table is.
func (r *resumable) Checkpoint(off int64) (formats.Checkpoint, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != nil {
		return formats.Checkpoint{}, fmt.Errorf("vmdk: checkpoint: %w", r.state)
	}
	if off < r.next || off > r.size || off%grainSize != 0 && off != r.size {
		return formats.Checkpoint{}, fmt.Errorf("vmdk: checkpoint at %d of a disk written up to %d", off, r.next)
	}
	if err := r.flush(); err != nil {
		return formats.Checkpoint{}, err
	}
	return formats.Checkpoint{Off: off, Token: fmt.Sprintf("%s at %d %d", r.key, r.start/sector, r.last)}, nil
}

// restore makes the encoder what it was at a checkpoint.
func (r *resumable) restore(from formats.Checkpoint) error {
	token, ours := strings.CutPrefix(from.Token, r.key+" at ")
	a, b, two := strings.Cut(token, " ")
	end, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(b, 10, 64)
	if !ours || !two || err1 != nil || err2 != nil || end < 0 || last < 0 || end > math.MaxUint32 || last != 0 && last+tableSectors > end {
		return fmt.Errorf("%q is not of this image: %w", from.Token, formats.ErrCorrupt)
	}
	if from.Off < 0 || from.Off > r.size || from.Off%grainSize != 0 && from.Off != r.size {
		return fmt.Errorf("not a whole number of grains: %w", formats.ErrCorrupt)
	}
	r.next, r.start, r.last = from.Off, end*sector, uint32(last)
	if end == 0 {
		return nil
	}
	in := blocks.File{ReaderAt: r.f, Size: end * sector}
	if err := r.tablesBefore(in, last); err != nil {
		return err
	}
	at := int64(streamStart)
	if last != 0 {
		at = last + tableSectors
	}
	return r.grainsFrom(in, at, end)
}

// tablesBefore notes the table at sector last and all before it.
func (r *resumable) tablesBefore(in blocks.File, last int64) error {
	b := make([]byte, tableSectors*sector)
	for at := last; at != 0; {
		if err := in.ReadFull(b, at*sector); err != nil {
			return err
		}
		first := int64(math.MaxInt64)
		for i := 0; i < len(b); i += 4 {
			if v := int64(binary.LittleEndian.Uint32(b[i:])); v != 0 {
				first = min(first, v)
			}
		}
		if first < streamStart || first >= at {
			return fmt.Errorf("the table at sector %d of the file names no grain before it: %w", at, formats.ErrCorrupt)
		}
		grain, _, err := r.grainAt(in, first)
		if err != nil {
			return err
		}
		r.gd[grain/tableEntries] = uint32(at)
		if first == streamStart {
			return nil
		}
		at = first - tableSectors
		if at <= streamStart {
			return fmt.Errorf("no table fits before sector %d of the file: %w", first, formats.ErrCorrupt)
		}
	}
	return nil
}

// grainsFrom notes the grains in the sectors [at, end), which no table names yet.
func (r *resumable) grainsFrom(in blocks.File, at, end int64) error {
	for at < end {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		grain, n, err := r.grainAt(in, at)
		if err != nil {
			return err
		}
		group := grain / tableEntries
		if r.used && group != r.group || group < r.group {
			return fmt.Errorf("grain %d at sector %d of the file is not of the part being written: %w", grain, at, formats.ErrCorrupt)
		}
		r.group, r.used = group, true
		r.table[grain%tableEntries] = uint32(at)
		at += n
	}
	if at != end {
		return fmt.Errorf("the grains end at sector %d of the file, not at %d: %w", at, end, formats.ErrCorrupt)
	}
	if !r.used {
		for i, at := range r.gd {
			if at != 0 {
				r.group = int64(i)
			}
		}
	}
	return nil
}

// grainAt reads the marker at a sector of the file: the number of its grain, and how many sectors it
// takes.
func (r *resumable) grainAt(in blocks.File, at int64) (grain, n int64, err error) {
	var b [16]byte
	if err := in.ReadFull(b[:], at*sector); err != nil {
		return 0, 0, err
	}
	m := parseMarker(b[:])
	grain = int64(m.value / grainSectors)
	if m.size == 0 || m.value%grainSectors != 0 || m.value >= uint64(up(r.next, sector))/sector {
		return 0, 0, fmt.Errorf("sector %d of the file is not the grain that its checkpoint says: %w", at, formats.ErrCorrupt)
	}
	return grain, up(grainHead+int64(m.size), sector) / sector, nil
}

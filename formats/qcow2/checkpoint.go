package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"hypersdk/formats"
)

// voided is what the first cluster of the file begins with when its checkpoints are void.
const voided = "qcow2: checkpoints void"

// token is what a checkpoint remembers besides its offset. With it, what a crash has left of later
// writes is told from what was there: everything from cluster next on, every entry of the tables that
// maps the disk from the checkpoint on, and the bytes behind pack in its cluster.
type token struct {
	bits  uint
	codec formats.Codec
	next  int64
	pack  int64
	users uint16 // refcount of the cluster that pack lies in
}

const tokenForm = "qcow2/1 bits=%d codec=%d next=%d pack=%d users=%d"

func (t token) String() string {
	return fmt.Sprintf(tokenForm, t.bits, t.codec, t.next, t.pack, t.users)
}

func parseToken(s string) (token, error) {
	var t token
	_, err := fmt.Sscanf(s, tokenForm, &t.bits, &t.codec, &t.next, &t.pack, &t.users)
	if err != nil || t.String() != s {
		return t, unsupported("checkpoint %q", s)
	}
	return t, nil
}

// Checkpoint writes the tables that changed.
func (w *writer) Checkpoint(off int64) (formats.Checkpoint, error) {
	if err := w.failure(); err != nil {
		return formats.Checkpoint{}, fmt.Errorf("qcow2: checkpoint: %w", err)
	}
	if off < 0 || off > w.size {
		return formats.Checkpoint{}, fmt.Errorf("qcow2: checkpoint at %d of %d", off, w.size)
	}
	if off < w.size {
		off -= off % w.cluster()
	}
	if w.void || off < w.high || off <= w.mark.Off {
		return w.mark, nil
	}
	cp, err := w.checkpoint(off)
	if err != nil {
		return formats.Checkpoint{}, w.fail(err)
	}
	w.mark = cp
	return cp, nil
}

func (w *writer) checkpoint(off int64) (formats.Checkpoint, error) {
	if err := w.flushTables(); err != nil {
		return formats.Checkpoint{}, err
	}
	if err := w.extend(); err != nil {
		return formats.Checkpoint{}, err
	}
	t := token{bits: w.clusterBits, codec: w.codec, next: w.next, pack: w.pack}
	if w.prealloc {
		// What is allocated ahead is allocated again.
		last, _, err := w.plainAt((off-1)&^(w.cluster()-1), 0, true)
		if err != nil {
			return formats.Checkpoint{}, err
		}
		t.next = last>>w.clusterBits + 1
	}
	if w.pack%w.cluster() != 0 {
		var err error
		if t.users, err = w.refcount(w.pack >> w.clusterBits); err != nil {
			return formats.Checkpoint{}, err
		}
	}
	return formats.Checkpoint{Off: off, Token: t.String()}, nil
}

// voidCheckpoints notes in the file, durably, that blocks below a checkpoint are about to change.
func (w *writer) voidCheckpoints() error {
	if w.void {
		return nil
	}
	if err := w.write([]byte(voided), 0); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("qcow2: %w", err)
	}
	w.void, w.mark = true, formats.Checkpoint{}
	return nil
}

// resume brings the file back to where it was at a checkpoint.
func (w *writer) resume(from formats.Checkpoint) error {
	t, err := parseToken(from.Token)
	if err != nil {
		return err
	}
	if t.bits != w.clusterBits || t.codec != w.codec {
		return unsupported("a checkpoint of an image with other options")
	}
	if from.Off <= 0 || from.Off > w.size || from.Off%w.cluster() != 0 && from.Off != w.size ||
		t.next < w.start || t.pack < 0 || t.pack > t.next<<w.clusterBits {
		return unsupported("checkpoint at %d, %q, of a disk of %d bytes", from.Off, from.Token, w.size)
	}
	w.next, w.pack, w.end = t.next, t.pack, t.next<<w.clusterBits
	w.high, w.mark = from.Off, from
	if err := w.cut(); err != nil {
		return err
	}
	if err := w.dropMaps(from.Off); err != nil {
		return err
	}
	return w.dropCounts(t.users)
}

// cut drops all bytes behind the checkpoint, and the header if there is one already.
func (w *writer) cut() error {
	var last [1]byte
	if _, err := w.f.ReadAt(last[:], w.end-1); err != nil {
		return fmt.Errorf("qcow2: the file is shorter than %d bytes, as it was at the checkpoint: %w", w.end, unexpected(err))
	}
	if err := w.f.Truncate(w.end); err != nil {
		return fmt.Errorf("qcow2: cut the file at %d: %w", w.end, err)
	}
	head := make([]byte, w.cluster())
	if n, err := w.f.ReadAt(head, 0); n < len(head) {
		return fmt.Errorf("qcow2: read the first cluster: %w", unexpected(err))
	}
	if bytes.HasPrefix(head, []byte(voided)) {
		return corrupt("blocks below the checkpoint were written again after it: the disk has to be written from the beginning")
	}
	if err := w.write(make([]byte, w.cluster()), 0); err != nil {
		return err
	}
	if rest := -w.pack & (w.cluster() - 1); rest > 0 {
		return w.write(make([]byte, rest), w.pack)
	}
	return nil
}

// dropMaps drops what maps the disk from off on.
func (w *writer) dropMaps(off int64) error {
	var b []byte
	for i := range w.l1 {
		if i%l1Part == 0 {
			b = make([]byte, min(l1Part, len(w.l1)-i)*8)
			if n, err := w.f.ReadAt(b, w.cluster()+int64(i)*8); n < len(b) {
				return fmt.Errorf("qcow2: read the L1 table: %w", unexpected(err))
			}
		}
		var err error
		if w.l1[i], err = w.keptL1(int64(i), binary.BigEndian.Uint64(b[i%l1Part*8:]), off); err != nil {
			return err
		}
	}
	w.l1Lo, w.l1Hi = 0, w.l1Entries
	if off == w.size || off%w.cover() == 0 {
		return nil
	}
	t, first, err := w.l2(off, false)
	if err != nil || t == nil {
		return err
	}
	for i := first; i < w.l2Entries(); i++ {
		t.setEntry(i, 0)
	}
	return nil
}

// keptL1 is what becomes of an L1 entry when the disk from off on is dropped.
func (w *writer) keptL1(i int64, e uint64, off int64) (uint64, error) {
	if e == 0 || i*w.cover() >= off {
		return 0, nil
	}
	host := int64(e & offsetMask)
	if host%w.cluster() == 0 && host >= w.start<<w.clusterBits && host < w.end {
		return e, nil
	}
	// The table that maps the checkpoint itself may have come after it, no other.
	if (i+1)*w.cover() <= off {
		return 0, corrupt("L1 entry %d is %#x in a file of %d", i, e, w.end)
	}
	return 0, nil
}

// dropCounts drops what counts clusters behind the checkpoint.
func (w *writer) dropCounts(users uint16) error {
	region := (w.next - 1) / w.perBlock
	for r := region; r == region || r < w.first; r++ {
		t, err := w.refs.get(w.slot(r) << w.clusterBits)
		if err != nil {
			return err
		}
		clear(t.data[min(max(w.next-r*w.perBlock, 0), w.perBlock)*2:])
		t.dirty = true
	}
	if w.pack%w.cluster() == 0 {
		return nil
	}
	open := w.pack >> w.clusterBits
	had, err := w.refcount(open)
	if err != nil {
		return err
	}
	return w.count(open, int(users)-int(had))
}

package cbt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hypersdk/formats"
	"hypersdk/formats/qcow2"
)

// wholeToken begins the last checkpoint in the journal of a part: the file is complete and durable, and
// what follows describes it.
const wholeToken = "whole "

// part is a file of a disk that is being written under a hidden name, with its journal and its index.
type part struct {
	c       *Chain
	file    string // names that they will have
	index   string // "": none is written
	id      string // see formats.OpenJournal
	size    int64
	options formats.CreateOptions

	image, sums, log *file
	journal          *formats.Journal
	digests          *formats.Digests
	from             formats.Checkpoint
}

// open opens the part. Where it is complete already, it answers true and what finish was told.
func (p *part) open(whole *Disk) (bool, error) {
	var err error
	if p.image, err = p.c.d.edit(partName(p.file)); err != nil {
		return false, err
	}
	if p.log, err = p.c.d.edit(journalName(p.file)); err != nil {
		return false, err
	}
	if p.journal, p.from, err = formats.OpenJournal(p.log, p.id); err != nil {
		return false, err
	}
	said, ok := strings.CutPrefix(p.from.Token, wholeToken)
	if !ok {
		return false, nil
	}
	stored, err := p.image.size()
	if err != nil {
		return false, err
	}
	var d Disk
	if err := json.Unmarshal([]byte(said), &d); err == nil && d.Stored == stored && d.File == p.file {
		*whole = d
		ready := true
		if p.index != "" {
			if ready, err = p.c.d.exists(partName(p.index)); err != nil {
				return false, err
			}
		}
		if ready {
			return true, nil
		}
	}
	return false, p.restart()
}

// restart forgets what the journal says.
func (p *part) restart() error {
	p.from = formats.Checkpoint{}
	return p.journal.Record(p.from)
}

// openIndex opens the index of the part, or begins one and lets fill note what is known already.
func (p *part) openIndex(fill func(*formats.Digests) error) (err error) {
	if p.sums, err = p.c.d.edit(partName(p.index)); err != nil {
		return err
	}
	if p.from != (formats.Checkpoint{}) {
		p.digests, err = formats.OpenDigests(p.sums)
		if err == nil && p.digests.Size() == p.size {
			return nil
		}
		if err != nil && !errors.Is(err, formats.ErrCorrupt) && !errors.Is(err, formats.ErrFormat) {
			return err
		}
		if err := p.restart(); err != nil {
			return err
		}
	}
	if p.digests, err = formats.CreateDigests(p.sums, p.size); err != nil {
		return err
	}
	return fill(p.digests)
}

// create opens the writer at the checkpoint, or anew where the file is not what the journal says.
func (p *part) create(ctx context.Context) (formats.Writer, error) {
	w, err := qcow2.Create(ctx, p.image, p.size, p.options, p.from)
	if p.from == (formats.Checkpoint{}) || !errors.Is(err, formats.ErrCorrupt) && !errors.Is(err, formats.ErrFormat) {
		return w, err
	}
	if err := p.restart(); err != nil {
		return nil, err
	}
	return qcow2.Create(ctx, p.image, p.size, p.options, p.from)
}

// copy writes src into the part and commits it.
func (p *part) copy(ctx context.Context, src formats.Source, opt formats.CopyOptions) (formats.Result, error) {
	if _, ok := src.(formats.Image); !ok && p.from != (formats.Checkpoint{}) {
		if err := p.restart(); err != nil { // a stream begins at its beginning
			return formats.Result{}, err
		}
	}
	w, err := p.create(ctx)
	if err != nil {
		return formats.Result{}, err
	}
	defer w.Close()
	told := opt.Durable
	opt.From, opt.Digests, opt.Trust = p.from, p.digests, false
	opt.Durable = func(cp formats.Checkpoint) error {
		if err := p.journal.Record(cp); err != nil || told == nil {
			return err
		}
		return told(cp)
	}
	res, err := formats.Copy(ctx, w, src, opt)
	if err != nil {
		return res, err
	}
	return res, w.Commit(ctx)
}

// finish notes that the part is complete.
func (p *part) finish(d Disk) error {
	said, err := json.Marshal(d)
	if err != nil {
		return err
	}
	// Should it not fit, the next attempt copies again.
	cp := formats.Checkpoint{Off: p.size, Token: wholeToken + string(said)}
	if len(said) > 3<<10 {
		return nil
	}
	if err := p.journal.Record(cp); err != nil {
		return fmt.Errorf("note that %s is complete: %w", p.file, err)
	}
	return nil
}

// close closes the files of the part.
func (p *part) close() {
	for _, f := range []*file{p.image, p.sums, p.log} {
		if f != nil {
			_ = f.Close()
		}
	}
}

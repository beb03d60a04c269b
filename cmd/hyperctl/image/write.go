package image

import (
	"context"
	"errors"
	"fmt"

	"hypersdk/formats"
)

// write writes the target into its part and gives it its name.
func (v *conversion) write(ctx context.Context, s *source) (res converted, err error) {
	res = converted{File: v.dst, Format: v.target.Name, VirtualSize: s.Size()}
	if v.target.Create == nil {
		return res, usageError("%s cannot be written", v.target.Name)
	}
	var id any
	if s.stored != nil {
		id = v.id(s)
	}
	digested := v.digested()
	p, err := openPart(v.disk(), id, s.Size(), digested, v.unsafe)
	if err != nil {
		return res, err
	}
	defer p.Close()
	w, err := v.begin(ctx, p, s.Size(), digested)
	if err != nil {
		return res, err
	}
	defer w.Close()
	res.ResumedAt = p.from.Off
	got, err := v.copy(ctx, w, s, p)
	res.Read, res.Written = got.Read, got.Written
	if err != nil {
		return res, err
	}
	// From here to the end it takes a moment, and there is nothing to be gained by stopping.
	ctx = context.WithoutCancel(ctx)
	if err := w.Commit(ctx); err != nil {
		return res, err
	}
	if digested {
		if res.Digest, err = v.digestLate(ctx, p, got); err != nil {
			return res, err
		}
	}
	return res, v.finish(p, s.Size())
}

// digested says whether a content digest is made. Only programs are told it, and blocks that are not
// looked at have none.
func (v *conversion) digested() bool { return v.json && !v.trust && v.create.Backing == "" }

// begin opens the writer, and says from where.
func (v *conversion) begin(ctx context.Context, p *part, size int64, digested bool) (formats.Writer, error) {
	ctx = context.WithoutCancel(ctx)
	if p.stale {
		v.say("starting anew: what is there of it is of another conversion, or not enough")
	}
	w, err := v.target.Create(ctx, p.target, size, v.create, p.from)
	if err != nil && p.from.Off > 0 && errors.Is(err, formats.ErrCorrupt) {
		v.say("starting anew: %v", err)
		if err := p.anew(size, digested); err != nil {
			return nil, err
		}
		w, err = v.target.Create(ctx, p.target, size, v.create, p.from)
	}
	switch {
	case err != nil && p.from.Off == 0:
		return nil, errors.Join(err, p.discard())
	case err != nil:
		return nil, err
	case p.from.Off > 0:
		v.say("going on at %s", bytesText(p.from.Off))
	}
	return w, nil
}

// copy copies until all is there or somebody interrupts; then what was written is kept.
func (v *conversion) copy(ctx context.Context, w formats.Writer, s *source, p *part) (formats.Result, error) {
	return v.goOn(ctx, p, s.Size(), s.stored != nil, func(ctx context.Context, opt formats.CopyOptions) (formats.Result, error) {
		return formats.Copy(ctx, w, s.Source, opt)
	})
}

// goOn has do write what is not there yet of a disk of size bytes. Where that can be gone on with, an
// interruption keeps what was written.
func (v *conversion) goOn(ctx context.Context, p *part, size int64, resumable bool, do func(context.Context, formats.CopyOptions) (formats.Result, error)) (formats.Result, error) {
	bar := v.newProgress(size, p.from.Off)
	opt := v.copyOptions(bar)
	opt.From, opt.Digests, opt.Distance = p.from, p.digests, checkpoints
	within := ctx
	if resumable {
		stop := make(chan struct{})
		release := context.AfterFunc(ctx, func() { close(stop) })
		defer release()
		opt.Stop, opt.Durable = stop, p.journal.Record
		within = context.WithoutCancel(ctx)
	}
	res, err := do(within, opt)
	bar.finish(err == nil)
	switch {
	case errors.Is(err, formats.ErrStopped):
		v.say("interrupted at %s; the same command goes on from there", bytesText(res.Done))
		return res, &ExitError{exitInterrupted, errors.New("interrupted")}
	case err != nil && !resumable:
		err = errors.Join(err, p.discard()) // a pipe cannot be gone on with
	case err != nil && errors.Is(err, formats.ErrCorrupt):
		err = errors.Join(fmt.Errorf("%s: %w", v.src, err), p.discard()) // it will not become better
	}
	return res, err
}

// digestLate is the content digest. Of blocks that a stream delivered out of their order, the target
// is read.
func (v *conversion) digestLate(ctx context.Context, p *part, got formats.Result) (string, error) {
	if len(got.Late) == 0 {
		return got.Digest.String(), nil
	}
	st, err := p.file.Stat()
	if err != nil {
		return "", err
	}
	img, err := v.reader().Open(ctx, p.file, st.Size(), formats.OpenOptions{})
	if err != nil {
		return "", err
	}
	defer img.Close()
	if err := formats.Redigest(ctx, img, p.digests, got.Late); err != nil {
		return "", err
	}
	d, err := p.digests.Root()
	return d.String(), err
}

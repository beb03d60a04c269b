package vsphere

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"hypersdk/providers"
)

const (
	// uploads is how many files of a package go up at once.
	uploads = 4
	// uploadTries is how often a file is begun that the network cut off, while its lease lives.
	uploadTries = 3
)

// holdLease waits for a lease that has begun and keeps it alive until it is ended. It is kept under name
// for the program that comes after this one. total is how many bytes will go up, as far as that is known.
func (p *Provider) holdLease(ctx context.Context, ref types.ManagedObjectReference, object, name string, total int64) (*lease, *types.HttpNfcLeaseInfo, error) {
	l := &lease{p: p, ref: ref, object: object, total: total, clients: map[string]*http.Client{}}
	l.ctx, l.cancel = context.WithCancelCause(ctx)
	p.login.keepLease(ref.Value, name)
	info, err := l.ready()
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	if l.timeout = time.Duration(info.LeaseTimeout) * time.Second; l.timeout <= 0 {
		l.timeout = assumedTimeout
	}
	l.keeper.Go(l.keep)
	return l, info, nil
}

// complete ends an import lease: what it made stays. Where the server cannot be brought to that the lease
// is aborted.
func (l *lease) complete() error {
	if err := l.Err(); err != nil {
		return err
	}
	return l.end(func(ctx context.Context) error {
		for try := 1; ; try++ {
			_, err := methods.HttpNfcLeaseComplete(ctx, l.p.soap, &types.HttpNfcLeaseComplete{This: l.ref})
			if err == nil || try > 1 && notThere(err) { // it had worked, only its answer was lost
				return nil
			}
			if try == uploadTries || !passes(err) || sleep(ctx, time.Second) != nil {
				_ = l.p.abortLease(ctx, l.ref.Value) // else it ends when nobody reports progress
				return err
			}
		}
	})
}

// parcel is a file of a package and where it goes.
type parcel struct {
	providers.PackageFile
	create bool   // as a new file, rather than into a disk
	key    string // by which the manifest names it
	url    string
	client *http.Client
}

// upload sends every file that the server asked for, a few at once.
func (a *arrival) upload(l *lease, urls []types.HttpNfcLeaseDeviceUrl) error {
	parcels, err := a.parcels(l, urls)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(l.ctx)
	g.SetLimit(uploads)
	for _, one := range parcels {
		g.Go(func() error { return l.send(ctx, one) })
	}
	err = g.Wait()
	if lost := l.Err(); lost != nil {
		return lost // what the uploads say is only the echo
	}
	return err
}

// parcels matches the files that the server asked for with those of the package and the places of the lease.
func (a *arrival) parcels(l *lease, urls []types.HttpNfcLeaseDeviceUrl) ([]parcel, error) {
	files := map[string]providers.PackageFile{}
	for _, f := range a.pkg.Files {
		files[f.Name] = f
	}
	byKey := map[string]types.HttpNfcLeaseDeviceUrl{}
	for _, u := range urls {
		byKey[u.ImportKey] = u
	}
	var out []parcel
	for _, item := range a.item {
		f, ok := files[item.Path]
		if !ok {
			return nil, &providers.Error{Op: "vsphere: import", Object: a.to.Name, Reason: providers.Invalid,
				Msg: fmt.Sprintf("the server asks for %q, which the package does not have", item.Path)}
		}
		u, ok := byKey[item.DeviceId]
		if !ok {
			return nil, &providers.Error{Op: "vsphere: import", Object: a.to.Name, Reason: providers.Unavailable,
				Msg: fmt.Sprintf("the lease has no place for %q", item.Path)}
		}
		one := parcel{PackageFile: f, create: item.Create, key: u.Key}
		var err error
		if one.url, one.client, err = l.reach(u); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// send uploads one file, again from its beginning where the network failed and the lease holds.
func (l *lease) send(ctx context.Context, one parcel) error {
	for try := 1; ; try++ {
		err := l.sendOnce(ctx, one)
		if err == nil || try == uploadTries || ctx.Err() != nil || l.Err() != nil || !passes(err) {
			return err
		}
		l.p.login.log.Info("an upload was cut off and is begun again", "provider", Kind, "op", "import", "vm", l.object, "file", one.Name, "error", strip(err))
		if err := sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

func (l *lease) sendOnce(ctx context.Context, one parcel) error {
	object := l.object + " file " + one.Name
	attempt, stop := context.WithCancel(ctx)
	defer stop()
	r, err := one.Open(attempt)
	if err != nil {
		return err // the caller's own
	}
	body := &uploadBody{r: r, l: l, closed: make(chan struct{})}
	body.sums = sums{sha1: sha1.New(), sha256: sha256.New()} //nolint:gosec // manifests speak SHA-1
	err = l.post(attempt, one, body)
	stop()
	<-body.closed // until then somebody may still read
	if ctx.Err() == nil && body.err != nil && !errors.Is(body.err, context.Canceled) {
		return body.err // why the source broke off, not that the request did
	}
	if err == nil && !body.whole {
		err = &providers.Error{Op: "vsphere: upload", Object: object, Reason: providers.Unavailable, Msg: fmt.Sprintf("the server stopped listening after %d bytes", body.n)}
	}
	if err != nil {
		return fail("upload", object, err)
	}
	l.came.Add(one.Size - min(one.Size, body.n))
	return l.received(ctx, one, object, &body.sums)
}

// post makes the request: a disk is posted into the one that the VM has, anything else is put beside it.
func (l *lease) post(ctx context.Context, one parcel, body *uploadBody) error {
	method, kind := http.MethodPost, sentType
	if one.create {
		method, kind = http.MethodPut, "application/octet-stream"
	}
	req, err := http.NewRequestWithContext(ctx, method, one.url, body)
	if err != nil {
		return errors.Join(errors.New("its address cannot be asked for"), body.Close()) // it is a secret
	}
	if one.Size > 0 {
		req.ContentLength = one.Size
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Overwrite", "t")
	res, err := one.client.Do(req)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusCreated && res.StatusCode != http.StatusNoContent {
		return newStatusError(res)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(res.Body, maxTail))
	res.Body.Close()
	return err
}

// received compares what the server says that it received with what was sent; servers that do not say are
// believed.
func (l *lease) received(ctx context.Context, one parcel, object string, sent *sums) error {
	res, err := methods.HttpNfcLeaseGetManifest(ctx, l.p.soap, &types.HttpNfcLeaseGetManifest{This: l.ref})
	if err != nil {
		return fail("read the manifest of", object, err)
	}
	for _, e := range res.Returnval {
		if e.Key != one.key {
			continue
		}
		if what := sent.differ(e); what != "" {
			return &providers.Error{Op: "vsphere: upload", Object: object, Reason: providers.Unavailable,
				Msg: "what the server received is not what was sent: " + what}
		}
	}
	return nil
}

// uploadBody is a file on its way up.
type uploadBody struct {
	sums
	r     io.ReadCloser
	l     *lease
	whole bool
	err   error // why the source broke off

	once   sync.Once
	closed chan struct{}
}

func (b *uploadBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	_, _ = b.sha1.Write(p[:n]) // neither fails
	_, _ = b.sha256.Write(p[:n])
	b.n += int64(n)
	b.l.came.Add(int64(n))
	switch {
	case errors.Is(err, io.EOF):
		b.whole = true
	case err != nil:
		b.err = err
	}
	return n, err
}

func (b *uploadBody) Close() (err error) {
	b.once.Do(func() {
		err = b.r.Close()
		close(b.closed)
	})
	return err
}

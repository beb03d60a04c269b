package vspheretest

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// incoming is what an import lease has that an export lease has not: its VM does not exist before, is
// locked while it lasts, and goes with it unless the lease is completed.
type incoming struct {
	create   func() (*machine, *types.LocalizedMethodFault)
	name     string // of the VM, as import keys begin with
	complete bool
	// files are what is uploaded beside the disks (the image of a CD), where each belongs.
	files map[string]incomingFile
}

type incomingFile struct {
	key  string
	path string // on this host
}

// importVApp makes a VM of an import spec and a lease to upload its files.
func importVApp(s *Server, c *call) (any, *types.LocalizedMethodFault) {
	req := c.body.(*types.ImportVApp)
	spec, ok := req.Spec.(*types.VirtualMachineImportSpec)
	if !ok {
		return nil, fault(&types.InvalidArgument{InvalidProperty: "spec"}, "Only a spec of one VM can be imported.")
	}
	pool, ok := s.reg.Get(c.this).(*simulator.ResourcePool)
	if !ok {
		return nil, gone(c.this)
	}
	dc := s.datacenterOf(pool.Owner)
	if dc == nil {
		return nil, gone(c.this)
	}
	in := req.Folder
	if in == nil {
		in = &dc.vmFolder
	}
	folder, ok := s.reg.Get(*in).(*simulator.Folder)
	if !ok {
		return nil, gone(*in)
	}
	l := s.newLease(c, nil, nil)
	l.incoming = &incoming{name: spec.ConfigSpec.Name, files: map[string]incomingFile{}, create: func() (*machine, *types.LocalizedMethodFault) {
		return s.createIncoming(folder, types.CreateVM_Task{This: folder.Self, Config: spec.ConfigSpec, Pool: pool.Self, Host: req.Host})
	}}
	return &types.ImportVAppResponse{Returnval: l.open()}, nil
}

// datacenterOf is the datacenter that a compute resource lies in.
func (s *Server) datacenterOf(owner types.ManagedObjectReference) *datacenter {
	for _, dc := range s.datacenters {
		for _, c := range dc.clusters {
			if pool, ok := s.reg.Get(c.pool).(*simulator.ResourcePool); ok && pool.Owner == owner {
				return dc
			}
		}
	}
	return nil
}

// createIncoming makes the VM of an import, with disks of zeros.
func (s *Server) createIncoming(folder *simulator.Folder, req types.CreateVM_Task) (*machine, *types.LocalizedMethodFault) {
	s.tree.Lock()
	defer s.tree.Unlock()
	task := folder.CreateVMTask(s.sim(), &req).(*methods.CreateVM_TaskBody)
	if task.Fault_ != nil {
		return nil, fault(&types.SystemErrorFault{}, "%s", task.Fault_.String)
	}
	info, err := s.observer.await(s.ctx, task.Res.Returnval)
	if info.Error != nil {
		return nil, info.Error
	}
	if err != nil {
		return nil, fault(&types.SystemErrorFault{Reason: err.Error()}, "%v", err)
	}
	m, err := s.machineOf(info.Result.(types.ManagedObjectReference))
	if err != nil {
		return nil, fault(&types.SystemErrorFault{Reason: err.Error()}, "%v", err)
	}
	return m, nil
}

// arrive makes the VM of an import and says what is to be uploaded.
func (l *lease) arrive() *types.LocalizedMethodFault {
	m, fail := l.incoming.create()
	if fail != nil {
		return fail
	}
	m.mu.Lock()
	m.exported = l
	for i, d := range m.disks {
		l.disks[d.layers[0].name] = &leaseDisk{image: &Image{vm: m, disk: d}, key: fmt.Sprintf("/%s/disk:%d", m.ref.Value, i)}
	}
	m.mu.Unlock()
	l.server.mu.Lock()
	l.mu.Lock()
	l.vm = m
	l.mu.Unlock()
	l.server.mu.Unlock()
	vm := l.server.reg.Get(m.ref).(*simulator.VirtualMachine)
	n := 0
	l.server.sim().WithLock(vm, func() {
		for _, d := range vm.Config.Hardware.Device {
			cd, ok := d.(*types.VirtualCdrom)
			if !ok {
				continue
			}
			iso, ok := cd.Backing.(*types.VirtualCdromIsoBackingInfo)
			var file object.DatastorePath
			if ok && file.FromString(iso.FileName) {
				l.incoming.files[filepath.Base(file.Path)] = incomingFile{
					key: fmt.Sprintf("/%s/cdrom:%d", m.ref.Value, n), path: filepath.Join(m.ds.dir, filepath.FromSlash(file.Path)),
				}
			}
			n++
		}
	})
	return nil
}

// leave takes the VM of an import away that was not completed.
func (l *lease) leave() {
	l.mu.Lock()
	m := l.vm
	keep := l.incoming == nil || l.incoming.complete || m == nil
	l.mu.Unlock()
	if keep {
		return
	}
	s := l.server
	obj, ok := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return // by another hand
	}
	if err := s.destroy(m, obj); err != nil && s.ctx.Err() == nil {
		s.opt.Log.Error("remove the VM of an import that was not completed", "vm", m.spec.Name, "err", err)
	}
}

// serveUpload takes a file of an import. What breaks off is not in the manifest.
func (s *Server) serveUpload(w http.ResponseWriter, r *http.Request, l *lease, name string) {
	if r.Method != http.MethodPut && r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST, PUT")
		http.Error(w, "Method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if l.ready() != nil {
		http.NotFound(w, r)
		return
	}
	d, file := l.disks[name], l.incoming.files[name]
	if d == nil && file.path == "" {
		http.NotFound(w, r)
		return
	}
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	defer s.track(&reading{vm: l.vm, lease: l, ctrl: http.NewResponseController(w), stop: stop})()
	meter := &meter{ResponseWriter: w}
	path := l.vm.path(name)
	s.record.begin(path)
	in := &damagedReader{r: r.Body, ctx: ctx}
	defer func() {
		s.record.end(Request{Time: time.Now(), Method: r.Method, File: path, Status: meter.status, Received: in.got})
	}()
	if in.damage = s.faults.onRead(l.vm.home+"/"+name, 0, math.MaxInt64/2); in.damage != nil {
		if !wait(ctx, in.damage.delay) {
			panic(http.ErrAbortHandler)
		}
		if in.damage.fail != nil {
			in.damage.fail.answer(meter)
			return
		}
	}
	sums := &sums{sha1: sha1.New(), sha256: sha256.New()}
	body := io.TeeReader(in, sums)
	entry := types.HttpNfcLeaseManifestEntry{Key: file.key}
	var err error
	if d != nil {
		entry.Key, entry.Disk, entry.Capacity = d.key, true, d.image.Size()
		err = d.receive(body)
	} else {
		err = receiveFile(file.path, body)
	}
	if err != nil {
		http.Error(meter, fmt.Sprintf("upload of %s: %v", name, err), http.StatusInternalServerError)
		return
	}
	entry.Sha1, entry.Size = hex.EncodeToString(sums.sha1.Sum(nil)), sums.n
	entry.Checksum, entry.ChecksumType = hex.EncodeToString(sums.sha256.Sum(nil)), "sha256"
	l.mu.Lock()
	l.manifest[name] = entry
	l.mu.Unlock()
	meter.WriteHeader(http.StatusOK)
}

// receive makes an upload the content of a disk, in place of all that it held.
func (d *leaseDisk) receive(r io.Reader) error {
	base, vm := d.image.disk.layers[0], d.image.vm
	f, err := os.OpenFile(base.path(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(0), f.Truncate(base.size)); err != nil {
		return err
	}
	err = readStream(f, r)
	vm.mu.Lock()
	base.writes++
	vm.mu.Unlock()
	return err
}

func receiveFile(path string, r io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// damagedReader is an upload with damage on its way.
type damagedReader struct {
	r      io.Reader
	damage *damage // nil: none
	ctx    context.Context
	got    int64
}

func (d *damagedReader) Read(p []byte) (int, error) {
	if d.damage == nil {
		n, err := d.r.Read(p)
		d.got += int64(n)
		return n, err
	}
	p = p[:min(len(p), 16<<10)]
	for _, at := range append(d.damage.cutAt, d.damage.cutAfter...) {
		if at <= d.got {
			if d.damage.stall {
				<-d.ctx.Done()
			}
			panic(http.ErrAbortHandler)
		}
		p = p[:min(int64(len(p)), at-d.got)]
	}
	n, err := d.r.Read(p)
	for _, at := range d.damage.flipAt {
		if i := at - d.got; i >= 0 && i < int64(n) {
			p[i] ^= 0xff
		}
	}
	for _, l := range d.damage.limits {
		if n > 0 && !l.wait(d.ctx, n) {
			return 0, context.Cause(d.ctx)
		}
	}
	d.got += int64(n)
	return n, err
}

package vspheretest

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// serveNFC is the disks of leases: /nfc/<lease>/<file>. The address is all that is asked for.
func (s *Server) serveNFC(w http.ResponseWriter, r *http.Request) {
	id, name := r.PathValue("lease"), r.PathValue("file")
	s.mu.Lock()
	l := s.leases[id]
	s.mu.Unlock()
	if l == nil {
		http.NotFound(w, r)
		return
	}
	if l.incoming != nil {
		s.serveUpload(w, r, l, name)
		return
	}
	d := l.disks[name]
	if d == nil || l.ready() != nil {
		http.NotFound(w, r)
		return
	}
	// There is no length, and no part of it: it is made while it is sent.
	w.Header().Set("Content-Type", "application/x-vnd.vmware-streamVmdk")
	switch r.Method {
	case http.MethodHead:
	case http.MethodGet:
		s.serveStream(w, r, l, name, d)
	default:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "Method not allowed", http.StatusMethodNotAllowed)
	}
}

// serveStream sends a disk from its beginning.
func (s *Server) serveStream(w http.ResponseWriter, r *http.Request, l *lease, name string, d *leaseDisk) {
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	defer s.track(&reading{vm: l.vm, lease: l, ctrl: http.NewResponseController(w), stop: stop})()
	file := l.vm.path(name)
	meter := &meter{ResponseWriter: w}
	s.record.begin(file)
	defer func() {
		s.record.end(Request{
			Time: time.Now(), Method: r.Method, File: file, Range: r.Header.Get("Range"), Status: meter.status, Sent: meter.sent,
		})
	}()
	var out http.ResponseWriter = meter
	if damage := s.faults.onRead(l.vm.home+"/"+name, 0, math.MaxInt64/2); damage != nil {
		if !wait(ctx, damage.delay) {
			panic(http.ErrAbortHandler)
		}
		if damage.fail != nil {
			damage.fail.answer(meter)
			return
		}
		out = &damagedWriter{ResponseWriter: meter, damage: damage, ctx: ctx}
	}
	out.WriteHeader(http.StatusOK)
	sums := &sums{sha1: sha1.New(), sha256: sha256.New()}
	populated, err := s.stream(out, sums, name, d.image)
	if err != nil {
		panic(http.ErrAbortHandler) // the connection, or the disk, has gone
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.manifest[name] = types.HttpNfcLeaseManifestEntry{
		Key: d.key, Sha1: hex.EncodeToString(sums.sha1.Sum(nil)), Checksum: hex.EncodeToString(sums.sha256.Sum(nil)), ChecksumType: "sha256",
		Size: sums.n, Disk: true, Capacity: d.image.Size(), PopulatedSize: populated,
	}
}

// sums is what the manifest says of a stream.
type sums struct {
	sha1, sha256 interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func (s *sums) Write(p []byte) (int, error) {
	_, _ = s.sha1.Write(p) // neither fails
	_, _ = s.sha256.Write(p)
	s.n += int64(len(p))
	return len(p), nil
}

// keptStream is a disk in the form in which leases send it, in a file.
type keptStream struct {
	version   string
	populated int64
}

// stream sends a disk to w and sums. What was made once is kept for as long as the disk stays as it
// is, so that a benchmark measures its client.
func (s *Server) stream(w io.Writer, sums io.Writer, name string, image *Image) (populated int64, err error) {
	base, version := image.disk.layers[0].path(), image.version()
	file := filepath.Join(s.dir, "streams", uuid("stream", base))
	s.mu.Lock()
	kept := s.streams[base]
	var f *os.File
	if kept.version == version {
		f, err = os.Open(file)
	}
	s.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if f != nil {
		defer f.Close()
		_, err = io.Copy(io.MultiWriter(w, sums), f)
		return kept.populated, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return 0, err
	}
	if f, err = os.CreateTemp(filepath.Dir(file), "new-"); err != nil {
		return 0, err
	}
	defer os.Remove(f.Name()) // if it is still called that
	defer f.Close()
	populated, err = writeStream(io.MultiWriter(w, sums, f), image, image.Size(), name)
	if err != nil || version != image.version() {
		return populated, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[base] = keptStream{version: version, populated: populated}
	return populated, os.Rename(f.Name(), file)
}

package vspheretest

import (
	"context"
	"crypto/subtle"
	"io"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// reading is an answer with a VM's file or disk that is under way.
type reading struct {
	vm    *machine
	lease *lease // nil: not by one
	ctrl  *http.ResponseController
	stop  context.CancelFunc
}

// abort breaks the answer off.
func (r *reading) abort() {
	r.stop()
	_ = r.ctrl.SetWriteDeadline(time.Unix(1, 0)) // every connection of net/http can
}

// serveFolder is the files of the datastores: /folder/<path>?dcPath=<datacenter>&dsName=<datastore>,
// for whoever has a session's cookie or, as HTTP Basic, the password.
func (s *Server) serveFolder(w http.ResponseWriter, r *http.Request) {
	if !s.authorized(r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		http.Error(w, "Authentication required", http.StatusUnauthorized)
		return
	}
	q := r.URL.Query()
	dcPath := strings.Trim(q.Get("dcPath"), "/")
	var ds *datastore
	if dc := s.datacenter(dcPath); dc != nil && dcPath != "" && q.Get("dsName") != "" {
		ds = dc.datastore(q.Get("dsName"))
	}
	file := strings.TrimPrefix(r.URL.Path, "/folder/")
	switch {
	case ds == nil || path.Base(file) == stateName:
		http.NotFound(w, r)
	case path.Clean("/"+file) != "/"+file:
		http.Error(w, "Bad path", http.StatusBadRequest)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		s.serveFile(w, r, ds, file)
	case r.Method == http.MethodPut || r.Method == http.MethodPost:
		s.svc.ServeDatastore(w, r)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, POST")
		http.Error(w, "Method not allowed", http.StatusMethodNotAllowed)
	}
}

func (s *Server) authorized(r *http.Request) bool {
	if s.sessions.of(r) != nil {
		return true
	}
	user, password, ok := r.BasicAuth()
	same := subtle.ConstantTimeCompare([]byte(user+"\x00"+password), []byte(s.opt.Username+"\x00"+s.opt.Password))
	return ok && same == 1
}

// serveFile answers with a file, or a range of it. As long as no fault strikes, the kernel copies it
// to the socket.
func (s *Server) serveFile(w http.ResponseWriter, r *http.Request, ds *datastore, name string) {
	if ds.kind == typeVSAN && isExtent(name) {
		// The disks of vSAN are objects: their folders hold only descriptors.
		http.NotFound(w, r)
		return
	}
	f, err := os.OpenInRoot(ds.dir, name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil || !fi.Mode().IsRegular() {
		http.NotFound(w, r)
		return
	}
	file := "[" + ds.name + "] " + name
	var damage *damage
	if r.Method == http.MethodGet {
		off, n := asked(r.Header.Get("Range"), fi.Size())
		damage = s.faults.onRead(name, off, n)
	}

	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	if m := s.at(ds, name); m != nil {
		defer s.track(&reading{vm: m, ctrl: http.NewResponseController(w), stop: stop})()
	}
	meter := &meter{ResponseWriter: w}
	s.record.begin(file)
	defer func() {
		s.record.end(Request{
			Time: time.Now(), Method: r.Method, File: file, Range: r.Header.Get("Range"),
			Status: meter.status, Off: meter.off, Sent: meter.sent,
		})
	}()
	var out http.ResponseWriter = meter
	if damage != nil {
		if !wait(ctx, damage.delay) {
			panic(http.ErrAbortHandler)
		}
		if damage.fail != nil {
			damage.fail.answer(meter)
			return
		}
		if damage.noRange {
			r.Header.Del("Range")
		}
		out = &damagedWriter{ResponseWriter: meter, damage: damage, ctx: ctx}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(out, r, "", fi.ModTime(), f)
}

func isExtent(name string) bool {
	return strings.HasSuffix(name, "-flat.vmdk") || strings.HasSuffix(name, "-delta.vmdk")
}

// at is the VM that a file belongs to, nil if to none.
func (s *Server) at(ds *datastore, name string) *machine {
	home, _, _ := strings.Cut(name, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.machines {
		if m.ds == ds && m.home == home {
			return m
		}
	}
	return nil
}

// track keeps an answer until the function that it returns is called.
func (s *Server) track(r *reading) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reading[r] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.reading, r)
	}
}

// asked is the bytes of a file that a Range header asks for: all, if it asks for none or several.
func asked(header string, size int64) (off, n int64) {
	first, last, ok := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	if !ok || strings.Contains(header, ",") {
		return 0, size
	}
	end := size - 1
	if last != "" {
		v, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			return 0, size
		}
		if first == "" {
			return max(0, size-v), min(v, size)
		}
		end = min(end, v)
	}
	off, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0, size
	}
	return off, max(0, end-off+1)
}

// meter counts what is sent. It hands ReadFrom on, which is how the kernel gets to copy.
type meter struct {
	http.ResponseWriter
	status int
	off    int64
	sent   int64
}

func (m *meter) WriteHeader(status int) {
	m.status = status
	if start, ok := rangeStart(m.Header()); ok && status == http.StatusPartialContent {
		m.off = start
	} else if status == http.StatusPartialContent {
		m.off = -1 // several ranges
	}
	m.ResponseWriter.WriteHeader(status)
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.ResponseWriter.Write(p)
	m.count(int64(n))
	return n, err
}

func (m *meter) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(m.ResponseWriter, r)
	m.count(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (m *meter) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// count adds bytes of a body, which errors have, too.
func (m *meter) count(n int64) {
	if m.status < 300 {
		m.sent += n
	}
}

// Package vspheretest is a fake vCenter, for tests, demonstrations and cmd/hypersim.
//
// It speaks the vSphere API through the simulator of govmomi and adds what a program that copies
// disks depends on and the simulator leaves out: disks with content in real sparse files, deltas and
// frozen bases while there are snapshots, /folder with authentication and datastore types, sessions
// that are enforced and expire, tasks that fail, faults on any call and any byte, and a record of
// what was asked and served.
//
// Calls that it answers itself never reach the simulator (see soap.go); everything else does.
package vspheretest

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/vpx"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Server is a fake vCenter that listens. Its methods may be called from any goroutine.
type Server struct {
	opt  Options
	dir  string
	url  *url.URL
	cert tls.Certificate

	svc *simulator.Service
	reg *simulator.Registry
	mux *http.ServeMux

	web   *http.Server
	conns connections
	ctx   context.Context // ends with the server, and with it every delay and stall
	stop  context.CancelFunc
	work  sync.WaitGroup // requests and tasks

	door   sync.Mutex // work grows only while it is held and closed is false
	closed bool

	datacenters []*datacenter
	sessions    sessions
	faults      faults
	record      recorder
	observer    *observer

	building sync.Mutex   // one VM at a time
	tree     sync.RWMutex // what is in folders: the simulator searches them without their locks
	mu       sync.Mutex
	machines map[types.ManagedObjectReference]*machine
	reading  map[*reading]struct{}
	leases   map[string]*lease     // by id
	streams  map[string]keptStream // by path of the disk's base
	// questions are the answers that VMs wait for.
	questions map[types.ManagedObjectReference]chan string
	lastID    int // the highest number in a VM's or snapshot's id that was ever given
}

// TB is the part of testing.TB that [Start] needs.
type TB interface {
	Helper()
	Cleanup(f func())
	Fatalf(format string, args ...any)
}

// Start is [New] for a test, which ends with it.
func Start(t TB, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatalf("start the fake vCenter: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Fatalf("stop the fake vCenter: %v", err)
		}
	})
	return s
}

// New builds the inventory and listens.
func New(o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		opt: o, dir: o.Dir,
		machines: map[types.ManagedObjectReference]*machine{},
		reading:  map[*reading]struct{}{},
		leases:   map[string]*lease{},
		streams:  map[string]keptStream{},

		questions: map[types.ManagedObjectReference]chan string{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open() (err error) {
	if s.dir == "" {
		s.dir, err = os.MkdirTemp("", "vspheretest-")
	} else if s.dir, err = filepath.Abs(s.dir); err == nil {
		err = os.MkdirAll(s.dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("vspheretest: folder: %w", err)
	}
	listener, err := net.Listen("tcp", s.opt.Listen)
	if err != nil {
		return fmt.Errorf("vspheretest: listen: %w", err)
	}
	if err := s.build(listener.Addr().String()); err != nil {
		return errors.Join(err, listener.Close())
	}
	return s.serve(listener)
}

// simulatorGlobals is held while an inventory is built: the simulator writes variables of its
// packages then, and reads them.
var simulatorGlobals sync.Mutex

// build makes the simulator and its inventory.
func (s *Server) build(addr string) error {
	simulatorGlobals.Lock()
	defer simulatorGlobals.Unlock()
	s.url = &url.URL{Scheme: "http", Host: addr, Path: "/sdk"}
	if s.opt.TLS {
		s.url.Scheme = "https"
	}
	ctx, instance := simulator.NewServiceInstance(simulator.NewContext(), vpx.ServiceContent, vpx.RootFolder)
	s.svc, s.reg = simulator.New(ctx, instance), ctx.Map
	s.mux = http.NewServeMux()
	s.svc.ServeMux = s.mux
	s.svc.Listen = &url.URL{Scheme: s.url.Scheme, Host: addr, Path: "/sdk", User: url.UserPassword(s.opt.Username, s.opt.Password)}
	s.svc.RegisterSDK(s.reg, "/sdk/vimService")
	s.reg.SessionManager().ServiceHostName = addr
	s.reg.OptionManager().UpdateOptions(&types.UpdateOptions{ChangedValue: []types.BaseOptionValue{
		&types.OptionValue{Key: "vcsim.server.url", Value: s.url.String()},
	}})
	s.mux.HandleFunc("/sdk/vimServiceVersions.xml", s.svc.ServiceVersions)
	s.mux.HandleFunc("/folder/", s.serveFolder)
	s.mux.HandleFunc("/nfc/{lease}/{file}", s.serveNFC)
	s.mux.HandleFunc("POST /sdk", s.serveSDK)
	s.mux.HandleFunc("POST /sdk/vimService", s.serveSDK)

	s.sessions.init(s)
	s.observer = &observer{server: s, waiting: map[types.ManagedObjectReference]chan struct{}{}}
	s.reg.AddHandler(s.observer)
	s.reg.Handler = s.sessions.note

	if err := s.buildInventory(); err != nil {
		return fmt.Errorf("vspheretest: inventory: %w", err)
	}
	if err := s.restore(); err != nil {
		return fmt.Errorf("vspheretest: restore from %s: %w", s.dir, err)
	}
	for _, v := range s.opt.VMs {
		if s.has(v) {
			continue
		}
		if _, err := s.AddVM(v); err != nil {
			return err
		}
	}
	return nil
}

// serve answers requests on l.
func (s *Server) serve(l net.Listener) error {
	s.web = &http.Server{
		Handler:     http.HandlerFunc(s.serveHTTP),
		ConnState:   s.conns.state,
		BaseContext: func(net.Listener) context.Context { return s.ctx },
		// HTTP/1.1 only, as ESXi and most vCenters.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	if s.opt.TLS {
		host, _, err := net.SplitHostPort(s.url.Host)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		if s.cert, err = certificate(s.dir, host); err != nil {
			return errors.Join(fmt.Errorf("vspheretest: certificate: %w", err), l.Close())
		}
		config := &tls.Config{Certificates: []tls.Certificate{s.cert}, NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12}
		s.reg.SessionManager().TLS = func() *tls.Config { return config }
		l = tls.NewListener(l, config)
	}
	s.work.Go(func() { _ = s.web.Serve(l) }) // ends by Close
	return nil
}

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.door.Lock()
	if s.closed {
		s.door.Unlock()
		panic(http.ErrAbortHandler)
	}
	s.work.Add(1)
	s.door.Unlock()
	defer s.work.Done()
	s.mux.ServeHTTP(w, r)
}

// Close cuts all connections, lets no task go on, and waits until nothing runs. A temporary folder is
// removed.
func (s *Server) Close() error {
	s.door.Lock()
	s.closed = true
	s.door.Unlock()
	s.stop()
	var err error
	if s.web != nil {
		err = s.web.Close()
	}
	s.work.Wait()
	if s.opt.Dir == "" && s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// Handle adds a path to the server's own.
func (s *Server) Handle(pattern string, h http.Handler) { s.mux.Handle(pattern, h) }

// URL is the address of the API, without credentials: "https://127.0.0.1:8989/sdk".
func (s *Server) URL() *url.URL {
	u := *s.url
	return &u
}

// LoginURL is [Server.URL] with the credentials in it, as govmomi.NewClient takes it.
func (s *Server) LoginURL() *url.URL {
	u := s.URL()
	u.User = url.UserPassword(s.opt.Username, s.opt.Password)
	return u
}

// Dir is the folder that keeps everything.
func (s *Server) Dir() string { return s.dir }

// Username is the only user there is.
func (s *Server) Username() string { return s.opt.Username }

// Password is that of [Server.Username].
func (s *Server) Password() string { return s.opt.Password }

// Thumbprint is the SHA-1 of the certificate as vSphere writes it, "AB:CD:…"; empty without TLS.
func (s *Server) Thumbprint() string {
	if !s.opt.TLS {
		return ""
	}
	sum := sha1.Sum(s.cert.Certificate[0])
	return colons(sum[:])
}

// ThumbprintSHA256 is the SHA-256 of the certificate, "AB:CD:…"; empty without TLS.
func (s *Server) ThumbprintSHA256() string {
	if !s.opt.TLS {
		return ""
	}
	sum := sha256.Sum256(s.cert.Certificate[0])
	return colons(sum[:])
}

func colons(sum []byte) string { return strings.ReplaceAll(fmt.Sprintf("% X", sum), " ", ":") }

// CertificatePEM is the certificate, to be trusted as its own authority; nil without TLS.
func (s *Server) CertificatePEM() []byte {
	if !s.opt.TLS {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Certificate[0]})
}

// CloseConnections cuts every connection of every client, in the middle of whatever they carry.
func (s *Server) CloseConnections() { s.conns.closeBut("") }

// sim is a context for work inside of the simulator. Locks are held by a context, so that each piece
// of work takes its own.
func (s *Server) sim() *simulator.Context {
	return &simulator.Context{Map: s.reg, Context: s.ctx, Session: s.svc.Context.Session}
}

// connections are those of the clients.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]struct{}
}

func (c *connections) state(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		if c.open == nil {
			c.open = map[net.Conn]struct{}{}
		}
		c.open[conn] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	}
}

// closeBut closes all connections but the one from a remote address.
func (c *connections) closeBut(remote string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.open {
		if conn.RemoteAddr().String() != remote {
			_ = conn.Close() // the other side, and the handler, will notice
		}
	}
}

// sessionCookie is the name of the cookie that a session is known by.
const sessionCookie = soap.SessionCookieName

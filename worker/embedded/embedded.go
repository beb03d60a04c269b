// Package embedded runs a complete Temporal server in this process, on one SQLite file in the data
// folder, for loopback only. It is the durable engine of a daemon that has been given no cluster to
// join.
//
// It is the only package that links the server.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"go.temporal.io/server/temporal"
)

// Options say where the server keeps its state and where it listens.
type Options struct {
	// DataDir holds the database. It is made where it is missing. One process at a time uses it.
	DataDir string
	// FrontendAddr is the loopback address of the gRPC API; port 0 is any free one.
	FrontendAddr string
	// UI is a loopback listener for the Temporal Web UI, which the server closes; nil: no UI.
	UI net.Listener
	// CodecEndpoint is where the Web UI has payloads decoded, as the browser reaches it.
	CodecEndpoint string
	// Namespace is made where it is missing; "" is "default".
	Namespace string
	Log       *slog.Logger // nil: nothing is logged
}

const (
	dbName   = "temporal.db"
	lockName = "temporal.lock"

	startAttempts = 3
	stopTimeout   = 5 * time.Second
)

// Server is a running server.
type Server struct {
	frontend string
	database string
	lock     *lock
	log      *logger
	server   temporal.Server
	ui       *webUI
}

// Start brings the server up and returns when it takes requests. The error is one sentence: a folder
// that is in use or not writable, a port that is taken, a database of a newer version.
func Start(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	s := &Server{database: filepath.Join(o.DataDir, dbName), log: &logger{log: o.Log}}
	if err := s.start(o); err != nil {
		if o.UI != nil {
			_ = o.UI.Close()
		}
		return nil, errors.Join(err, s.lock.release())
	}
	return s, nil
}

func (s *Server) start(o Options) error {
	addr, err := loopback(o.FrontendAddr)
	if err != nil {
		return err
	}
	if o.UI != nil {
		if _, err := loopback(o.UI.Addr().String()); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return fmt.Errorf("data folder %s cannot be made: %w", o.DataDir, plainly(err))
	}
	if s.lock, err = acquire(filepath.Join(o.DataDir, lockName)); err != nil {
		return err
	}
	shards, err := prepare(context.Background(), s.database)
	if err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		s.server, s.frontend, err = startServer(o, s.log, addr, s.database, shards)
		// Somebody else may take a port between its choice and its use.
		if err == nil || attempt == startAttempts || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return err
	}
	if o.UI != nil {
		if s.ui, err = serveUI(o, s.frontend); err != nil {
			return errors.Join(err, s.server.Stop())
		}
	}
	return nil
}

// FrontendAddr is where clients reach the server.
func (s *Server) FrontendAddr() string { return s.frontend }

// Durable returns when everything that the server has taken down is on the disk. Whoever promises
// something to somebody outside, or does there what cannot be undone, waits for it first: then no failure
// of the machine makes the server forget what led to that.
func (s *Server) Durable(context.Context) error {
	// What is taken down goes into the log of SQLite, which is carried over into the database after it
	// was synced itself. No lock is held on the log: closing it takes none away from SQLite.
	wal, err := os.Open(s.database + "-wal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // all is in the database
	}
	if err != nil {
		return fmt.Errorf("embedded server: %w", err)
	}
	if err := errors.Join(wal.Sync(), wal.Close()); err != nil {
		return fmt.Errorf("embedded server: what jobs did cannot be made durable: %w", err)
	}
	return nil
}

// Stop ends the server; workers and clients are stopped before. Whatever it does not manage in some
// seconds is abandoned, which costs nothing: the database is whole at every moment.
func (s *Server) Stop() error {
	if s.ui != nil {
		s.ui.stop()
	}
	s.log.stopping.Store(true)
	done := make(chan error, 1)
	go func() { done <- s.server.Stop() }()
	select {
	case err := <-done:
		if err == nil {
			err = checkpoint(s.database)
		}
		return errors.Join(err, s.lock.release())
	case <-time.After(stopTimeout):
		return fmt.Errorf("the Temporal server did not stop within %s", stopTimeout) // the lock stays: it still writes
	}
}

// loopback refuses an address that others than this host could reach: the server has no
// authentication.
func loopback(addr string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address such as 127.0.0.1:7233", addr)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.IsLoopback() {
		return netip.AddrPort{}, fmt.Errorf("%s is not a loopback address: the embedded Temporal server has no authentication and serves this host only", addr)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q has no port number", addr)
	}
	return netip.AddrPortFrom(ip, uint16(n)), nil
}

// plainly is the bare reason of an error about a file that the sentence around it names already.
func plainly(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

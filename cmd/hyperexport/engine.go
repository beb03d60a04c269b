package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hypersdk/apiserver/client"
	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/providers/connections"
)

const (
	lockFile   = "owner.lock"
	socketFile = "api.sock"
	logFile    = "engine.log"
	maxLog     = 8 << 20
	// joinPatience is how long a process that has the folder may take to answer, or to let go of it.
	joinPatience = 45 * time.Second
	joinPace     = 100 * time.Millisecond
	// places is how many exports an engine takes at once, whoever asks for them: those that are stopped
	// keep theirs. How many run at once is up to each call.
	places = 200
)

// engine runs the exports of one user on one platform: in this process where it is the first on the
// folder, else in the process that is. When that one ends, another takes over; exports do not mind.
type engine struct {
	app      *app
	platform platform
	dir      string
	folder   *os.File       // dir, held open: sockets are reached through it, however long its path is
	lock     *os.File       // nil: another process has the folder
	daemon   *daemon.Daemon // nil: in another process
	log      *os.File
	api      *client.Client
}

// openEngine starts the engine, or joins the one that runs.
func (a *app) openEngine(ctx context.Context, p platform) (*engine, error) {
	e := &engine{app: a, platform: p, dir: p.folder(a.opt.dataDir)}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return nil, fmt.Errorf("private folder: %w", err)
	}
	var err error
	if e.folder, err = os.Open(e.dir); err != nil {
		return nil, fmt.Errorf("private folder: %w", err)
	}
	if err := e.connect(ctx); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// socket is a path to the socket that is short enough for the system.
func (e *engine) socket() string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", e.folder.Fd(), socketFile)
}

// connect makes this process the owner of the folder, or a client of its owner.
func (e *engine) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	for {
		mine, err := e.own()
		if err != nil || mine {
			return err
		}
		e.api = client.NewSocket(e.socket(), "hyperexport/"+e.app.version)
		if _, err := e.api.Health(ctx); err == nil {
			return nil
		}
		e.api.Close()
		select {
		case <-time.After(joinPace):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fmt.Errorf("private folder %s is in use by %s, which does not answer; end it, or give another --data-dir", e.dir, e.owner())
		}
	}
}

// own takes the folder where nobody has it, and starts the engine in this process.
func (e *engine) own() (bool, error) {
	f, err := os.OpenFile(filepath.Join(e.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, fmt.Errorf("private folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("private folder %s cannot be locked: %w", e.dir, err)
	}
	e.lock = f
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0) // for people only
	}
	if err := e.start(); err != nil {
		return false, errors.Join(err, e.release())
	}
	e.api = client.NewSocket(e.socket(), "hyperexport/"+e.app.version)
	return true, nil
}

func (e *engine) start() error {
	if err := os.Remove(e.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("private folder: %w", err)
	}
	l, err := net.Listen("unix", e.socket())
	if err != nil {
		return fmt.Errorf("private folder: %w", err)
	}
	log, err := e.openLog()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	c := e.app.cfg
	c.DataDir, c.MaxJobs, c.HostJobs = e.dir, places, places
	c.Connections = map[string]connections.Config{connections.Default: e.platform.config}
	c.VCenterURL, c.Username, c.Password = "", "", ""
	c.FrontendAddr, c.UIAddr = "127.0.0.1:0", daemon.NoUI
	if e.app.opt.ui {
		c.UIAddr = "127.0.0.1:0"
	}
	// Not the context of the call: an engine is stopped, not cancelled.
	e.daemon, err = daemon.Start(context.Background(), c, daemon.Parts{API: true, Worker: true, Listener: l}, log)
	if err != nil {
		return fmt.Errorf("the engine could not be started: %w", err)
	}
	return nil
}

// openLog begins or goes on with the log of the engine; a long one is put aside.
func (e *engine) openLog() (*slog.Logger, error) {
	name := filepath.Join(e.dir, logFile)
	if st, err := os.Stat(name); err == nil && st.Size() > maxLog {
		if err := os.Rename(name, name+".1"); err != nil {
			return nil, fmt.Errorf("private folder: %w", err)
		}
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("private folder: %w", err)
	}
	e.log = f
	return slog.New(slog.NewJSONHandler(f, &slog.HandlerOptions{Level: e.app.cfg.LogLevel})), nil
}

func (e *engine) owner() string {
	f, err := os.Open(filepath.Join(e.dir, lockFile))
	if err != nil {
		return "another process"
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		return fmt.Sprintf("process %d", pid)
	}
	return "another process"
}

// reconnect is for when the engine does not answer any more: the process that had it has ended.
func (e *engine) reconnect(ctx context.Context) error {
	if e.daemon != nil {
		select {
		case err := <-e.daemon.Failed():
			return fmt.Errorf("the engine has failed: %w (%s says more)", err, filepath.Join(e.dir, logFile))
		default:
			return nil // it is ours, and runs: a passing fault
		}
	}
	e.api.Close()
	return e.connect(ctx)
}

// release lets another process have the folder.
func (e *engine) release() error {
	err := e.lock.Close()
	e.lock = nil
	return err
}

// close stops the engine where it is in this process, and lets go of the folder.
func (e *engine) close() error {
	var errs []error
	if e.api != nil {
		e.api.Close()
	}
	if e.daemon != nil {
		errs = append(errs, e.daemon.Stop())
	}
	if e.lock != nil {
		errs = append(errs, e.release())
	}
	if e.log != nil {
		errs = append(errs, e.log.Close())
	}
	return errors.Join(append(errs, e.folder.Close())...)
}

package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// passwordFD is where nbdkit finds the password.
const passwordFD = 3

// errNotInstalled: there is no such program.
var errNotInstalled = errors.New("it is not installed")

// nbdkit is a server of one disk, and a process of its own. Nobody else can talk with it: its only
// connection is a pair of sockets without a name, so that neither a file nor a port is left of it
// however one of us ends, and it ends when we do.
type nbdkit struct {
	conn net.Conn // ours
	cmd  *exec.Cmd
	said lastLines
	done chan struct{} // closed when it has ended
}

// startNBDKit starts a server that is told the secret.
func startNBDKit(program string, args []string, secret string) (*nbdkit, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	pipe, err := filled(secret)
	if err != nil {
		return nil, errors.Join(err, ours.Close())
	}
	defer pipe.Close()
	k := &nbdkit{conn: ours, cmd: exec.Command(program, args...), done: make(chan struct{})}
	k.cmd.Env = environment()
	k.cmd.Dir = "/"
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = theirs, theirs, &k.said
	k.cmd.ExtraFiles = []*os.File{pipe}      // the first of which is passwordFD
	k.cmd.WaitDelay = 250 * time.Millisecond // for what it leaves behind and holds its stderr
	k.cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true, // a Ctrl-C is for us, who end it when nobody reads any more
		Pdeathsig: syscall.SIGTERM,
	}
	started := make(chan error)
	go k.run(started)
	if err := <-started; err != nil {
		return nil, errors.Join(absence(err), ours.Close())
	}
	return k, nil
}

// run starts the process and waits for its end, both on one thread: what asks the kernel to end it with
// its parent means the thread that started it, which the runtime could end long before the program.
func (k *nbdkit) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(k.done)
	err := k.cmd.Start()
	started <- err
	if err == nil {
		_ = k.cmd.Wait() // how it ended is in ProcessState
	}
}

// stop ends the process, which closes its disk when it finds its connection closed; a signal reminds it
// of that at half of grace, and at its end it is killed.
func (k *nbdkit) stop(grace time.Duration) {
	_ = k.conn.Close()
	for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		patience := time.NewTimer(grace / 2)
		select {
		case <-k.done:
			patience.Stop()
			return
		case <-patience.C:
			_ = k.cmd.Process.Signal(sig)
		}
	}
	<-k.done
}

// ended says how the process ended, "" where it has not within a moment.
func (k *nbdkit) ended(within time.Duration) string {
	patience := time.NewTimer(within)
	defer patience.Stop()
	select {
	case <-k.done:
		return k.cmd.ProcessState.String()
	case <-patience.C:
		return ""
	}
}

// words are the last that it said.
func (k *nbdkit) words() string { return k.said.String() }

// runNBDKit runs nbdkit until it ends, and answers what it said.
func runNBDKit(ctx context.Context, program string, args ...string) (out, words string, err error) {
	var stdout, stderr lastLines
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir = environment(), "/"
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second
	err = absence(cmd.Run())
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return stdout.String(), complaint(stderr.String()), err
}

// absence tells the lack of a program from its failure.
func absence(err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", errNotInstalled, err)
	}
	return err
}

// environment is what nbdkit gets of ours: none of our secrets, and no path to libraries, which it sets
// for itself. What it says is to be in English, and names may have any letters.
func environment() []string {
	out := []string{"LC_ALL=C.UTF-8"}
	for _, name := range []string{"PATH", "HOME", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// socketPair is two ends of one connection: one for us, and one for a child.
func socketPair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "nbdkit")
	theirs = os.NewFile(uintptr(fds[1]), "nbdkit")
	defer f.Close() // the connection has its own
	if ours, err = net.FileConn(f); err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// filled is a pipe that a short secret, and then its end, can be read from.
func filled(secret string) (*os.File, error) {
	if len(secret) > maxPassword || strings.ContainsRune(secret, '\n') {
		return nil, errors.New("the password is too long or has a line break")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, err = w.WriteString(secret)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

package endtoend

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers/vsphere/vspheretest"
	"hypersdk/workflows/job"
)

// The screen of hyperctl in a real terminal: a job is seen running, cancelled there, and another one is
// submitted from the list of VMs.
func TestTheWholeScreen(t *testing.T) {
	l := newLab(t, vspheretest.Options{VMs: []vspheretest.VM{vm("web-01", 64*mib), vm("web-02", mib)}})
	l.up()
	s := l.spec("web-01", "raw")
	s.Options.LimitMBps = 1
	id := l.submit(s)
	l.moved(id, mib)

	p := newPane(t, 100, 20, nil, l.exports, "hyperctl", "--server", l.server(), "tui", "--output", l.exports, "--format", "qcow2")
	p.sees("web-01", "running", "1 running")
	p.keys("Enter")
	p.sees(id, "datastore")
	p.keys("l")
	p.sees("snapshot taken")
	p.keys("Escape")
	p.sees("job " + id)
	p.keys("C-k")
	p.sees("Cancel the job of web-01? (y/n)")
	p.keys("y")
	require.Equal(t, job.Cancelled, l.end(id, 30*time.Second).Status)

	p.keys("Tab")
	p.sees("VMs (2)")
	p.keys("/")
	p.keys("0", "2", "Enter")
	p.sees("1 of 2 /02")
	p.keys("e")
	p.sees("export web-02 to the folder")
	p.keys("Enter")
	p.sees("format: qcow2")
	p.keys("Enter")
	p.sees("(y/n)")
	p.keys("y")
	p.sees("1 submitted")
	p.keys("Tab")
	p.sees("completed")
	p.keys("q")
	p.sees("exit code 0.")
	l.tidy("web-01")
	l.tidy("web-02")
}

package main

import (
	"cmp"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/providers/vsphere/vspheretest"
)

const long = `hypersim is a fake vCenter. It speaks the vSphere API, and its virtual machines have disks
with real content, in sparse files below the data folder.

It also listens to commands of tests, as JSON on the same address:

  GET    /hypersim/state             sessions, VMs, snapshots, calls, faults, and
                                     which bytes of which disk were served how often
  GET    /hypersim/requests          the requests for files, one by one
  DELETE /hypersim/requests          forget calls, requests and what was served
  POST   /hypersim/faults            let something go wrong: {"file":"*-flat.vmdk","cut_after":1000}
  DELETE /hypersim/faults            let nothing go wrong any more (?id=n: only that)
  POST   /hypersim/guest-write       {"vm":"web-01","disk":0,"offset":0,"data":"<base64>"}
                                     or "length" and "seed" instead of "data"
  POST   /hypersim/vm/delete         {"vm":"web-01"}
  POST   /hypersim/disk/resize       {"vm":"web-01","disk":0,"size":2147483648}
  POST   /hypersim/tracking/reset    {"vm":"web-01"}: its changed block tracking begins anew
  POST   /hypersim/tracking/forget   {"vm":"web-01","disk":0,"every":3}: it forgets every third write
  POST   /hypersim/sessions/expire   end all sessions
  POST   /hypersim/connections/cut   cut all connections

Nobody is asked for a password there: do not let it listen where strangers are.`

const examples = `  # A VM with 4 GiB, of which 2 GiB have content, and one with a given raw image
  hypersim --vm name=web-01,disk=4GiB:2GiB --vm name=db-01,disk=/images/db.img

  # A thousand VMs that are there again, as they were, at the next start
  hypersim --data /var/tmp/hypersim --vms 1000

  # Every third read of a disk breaks off, and the first snapshot fails
  hypersim --vm name=web-01,disk=1GiB:1GiB --fault file=*-flat.vmdk,cut_after=5000000,every=3 \
           --fault call=CreateSnapshot_Task,fault=FileLocked,task,times=1`

// flags are what the command line says.
type flags struct {
	options    vspheretest.Options
	vms        []string
	generated  int
	datastores []string
	faults     []string
	verbose    bool
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:           "hypersim",
		Short:         "A fake vCenter with real disks",
		Long:          long,
		Example:       examples,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return run(c, f) },
	}
	p, o := c.Flags(), &f.options
	p.SortFlags = false
	p.StringVar(&o.Listen, "listen", "127.0.0.1:8989", "address to listen on; port 0 takes a free one")
	p.BoolVar(&o.TLS, "tls", false, "speak HTTPS, with a certificate of its own that the data folder keeps")
	p.StringVar(&o.Username, "username", "administrator@vsphere.local", "the only user")
	p.StringVar(&o.Password, "password", "", "the user's password (default $HYPERSIM_PASSWORD, else \"hypersim\")")
	p.StringVar(&o.Dir, "data", "", "folder that keeps VMs and disks from run to run (default a temporary one)")
	p.StringArrayVar(&f.vms, "vm", nil, "a VM: name=NAME,disk=SIZE[:DATA[:SEED]]|FILE,… (repeatable)\n"+vmHelp)
	p.IntVar(&f.generated, "vms", 0, "so many more VMs, with empty disks")
	p.StringArrayVar(&f.datastores, "datastore", nil, "a datastore: NAME[:VMFS|NFS|vsan] (repeatable, default datastore1)")
	p.StringSliceVar(&o.Datacenters, "datacenter", nil, "names of the datacenters (default DC0)")
	p.IntVar(&o.Clusters, "clusters", 1, "clusters in each datacenter")
	p.IntVar(&o.Hosts, "hosts", 3, "hosts in each cluster")
	p.DurationVar(&o.SessionTimeout, "session-timeout", 0, "end sessions that are idle for so long (default never)")
	p.DurationVar(&o.TaskDelay, "task-delay", 0, "let every task, and every lease, take so much longer")
	p.StringArrayVar(&f.faults, "fault", nil, "let something go wrong: call=METHOD|file=PATTERN,… (repeatable)\n"+faultHelp)
	p.BoolVar(&f.verbose, "verbose", false, "show what the simulator logs")
	return c
}

const faultHelp = `when:      skip=N every=N times=N object=VM from=BYTE to=BYTE
what:      delay=1s status=503 retry_after=2s drop
of calls:  fault=TYPE message=TEXT task after
of reads:  cut_at=BYTE cut_after=N stall short=N rate=BYTES
           shared wrong_range no_range flip_at=BYTE`

// run serves until the command's context ends.
func run(c *cobra.Command, f flags) error {
	o := f.options
	o.Password = cmp.Or(o.Password, os.Getenv("HYPERSIM_PASSWORD"), "hypersim")
	o.Log = slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
	log.SetOutput(io.Discard) // the simulator's
	if f.verbose {
		log.SetOutput(c.ErrOrStderr())
	}
	for _, text := range f.datastores {
		o.Datastores = append(o.Datastores, parseDatastore(text))
	}
	for _, text := range f.vms {
		vm, err := parseVM(text)
		if err != nil {
			return fmt.Errorf("--vm %q: %w", text, err)
		}
		o.VMs = append(o.VMs, vm)
	}
	o.VMs = append(o.VMs, vspheretest.GeneratedVMs(f.generated)...)
	var faults []vspheretest.Fault
	for _, text := range f.faults {
		fault, err := vspheretest.ParseFault(text)
		if err != nil {
			return fmt.Errorf("--fault: %w", err)
		}
		faults = append(faults, fault)
	}

	begin := time.Now()
	s, err := vspheretest.New(o)
	if err != nil {
		return err
	}
	for _, fault := range faults {
		if _, err := s.Inject(fault); err != nil {
			return err
		}
	}
	s.Handle(vspheretest.ControlPath, vspheretest.Control(s))
	line := "hypersim: ready " + s.URL().String()
	if o.TLS {
		line += " thumbprint " + s.Thumbprint()
	}
	fmt.Fprintf(c.OutOrStdout(), "%s user %s data %s after %s\n", line, s.Username(), s.Dir(), time.Since(begin).Round(time.Millisecond))
	<-c.Context().Done()
	return s.Close()
}

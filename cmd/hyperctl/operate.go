package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// operatePace is how often an operation that takes long is asked after.
const operatePace = time.Second

// operation is what all commands that change a VM have in common.
type operation struct {
	vcenter  vcenter
	yes      bool
	noWait   bool
	question string // asked on a terminal before anything is done; "" asks nothing
	// check says what is wrong with the flags; nil where nothing can be.
	check func() error
}

// operateCommand is a command that changes one VM; send tells the daemon to.
func (a *app) operateCommand(c *cobra.Command, o *operation, send func(ctx context.Context, t api.Target) (api.Operation, error)) *cobra.Command {
	if c.Args == nil {
		c.Args = exactly(1, "the path, id or name of a VM")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if o.check != nil {
			if err := o.check(); err != nil {
				return err
			}
		}
		creds, err := o.vcenter.credentials(a)
		if err != nil {
			return err
		}
		if err := a.confirm(o, args[0]); err != nil {
			return err
		}
		out, err := send(c.Context(), api.Target{VMPath: args[0], Connection: o.vcenter.connection, VCenter: creds})
		if err != nil {
			return err
		}
		return a.operated(c.Context(), o, out)
	}
	c.ValidArgsFunction = first(a.completeVMs)
	o.vcenter.flags(c)
	c.Flags().BoolVar(&o.noWait, "no-wait", false, "do not wait for what takes more than 100 seconds: print its id")
	if o.question != "" {
		c.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	}
	return c
}

// confirm asks a person whether it is meant. A script has nobody to ask, and means it.
func (a *app) confirm(o *operation, vm string) error {
	if o.question == "" || o.yes || a.Ask == nil {
		return nil
	}
	fmt.Fprintf(a.Err, o.question+" [y/N] ", clean(vm))
	line, err := bufio.NewReader(io.LimitReader(a.In, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not confirmed; nothing was done")
}

// operated waits for the end of an operation and says what came of it.
func (a *app) operated(ctx context.Context, o *operation, out api.Operation) error {
	if out.Status == job.Running && !o.noWait {
		fmt.Fprintf(a.Err, "It takes its time; %s goes on if this is interrupted.\n", out.OperationID)
		tick := time.NewTicker(operatePace)
		defer tick.Stop()
		for out.Status == job.Running {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			var err error
			if out, err = a.client.Operation(ctx, out.OperationID); err != nil {
				return err
			}
		}
	}
	if a.json {
		if err := a.printJSON(out); err != nil {
			return err
		}
	}
	switch {
	case out.Status == job.Running:
		if !a.json {
			a.printf("%s\n", out.OperationID)
		}
	case !out.Success:
		code := exitFailure
		if out.Reason == string(providers.NotFound) {
			code = exitNotFound
		}
		return &codeError{code, errors.New(out.Error)}
	case !a.json:
		a.printf("%s\n", clean(out.Message))
	}
	return nil
}

// operateCommands are the commands that change VMs.
func (a *app) operateCommands() []*cobra.Command {
	return []*cobra.Command{
		a.powerOnCommand(), a.powerOffCommand(), a.shutDownCommand(), a.removeCDROMCommand(),
		a.snapshotsCommand(), a.snapshotCommand(), a.cloneCommand(), a.templateCommand(), a.operationCommand(),
	}
}

func (a *app) powerOnCommand() *cobra.Command {
	var o operation
	return a.operateCommand(&cobra.Command{
		Use: "poweron VM", Short: "Power on a VM", Example: "  hyperctl vms poweron /datacenter/vm/web-01",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.PowerOn(ctx, api.VMRequest{Target: t})
	})
}

func (a *app) powerOffCommand() *cobra.Command {
	o := operation{question: "Take the power of %s away, as pulling the plug would?"}
	return a.operateCommand(&cobra.Command{
		Use: "poweroff VM", Short: "Take the power of a VM away",
		Long:    "Takes the power of a VM away, as pulling the plug would: what the guest has not written is lost.",
		Example: "  hyperctl vms poweroff web-01 --yes",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.PowerOff(ctx, api.VMRequest{Target: t})
	})
}

func (a *app) shutDownCommand() *cobra.Command {
	o := operation{question: "Shut down %s?"}
	var timeout time.Duration
	var then string
	c := a.operateCommand(&cobra.Command{
		Use: "shutdown VM", Short: "Shut down the guest of a VM",
		Long: `Asks the guest's tools to shut down and waits for it. Where the guest does not do so in time, or has
no tools that run, the command fails, or with --then poweroff takes the VM's power away.`,
		Example: "  hyperctl vms shutdown web-01\n  hyperctl vms shutdown web-01 --timeout 10m --then poweroff --yes",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.ShutDown(ctx, api.ShutdownRequest{Target: t, Timeout: job.Duration(timeout), Then: job.Then(then)})
	})
	o.check = func() error {
		if then != string(job.ThenFail) && then != string(job.ThenPowerOff) {
			return usageError("--then %q is none of fail, poweroff", clean(then))
		}
		return nil
	}
	c.Flags().DurationVar(&timeout, "timeout", job.DefaultShutdownTimeout, "what the guest has to shut down")
	c.Flags().StringVar(&then, "then", string(job.ThenFail), "what follows where it does not: fail or poweroff")
	_ = c.RegisterFlagCompletionFunc("then", words(string(job.ThenFail), string(job.ThenPowerOff))) // the flag is there
	return c
}

func (a *app) removeCDROMCommand() *cobra.Command {
	o := operation{question: "Take the CD and DVD drives out of %s?"}
	return a.operateCommand(&cobra.Command{
		Use: "remove-cdrom VM", Short: "Take CD and DVD drives out of a VM",
		Long: `Takes the CD and DVD drives out of a VM. Those of a VM that runs cannot be taken out: they are emptied
and disconnected. An export with "submit --remove-cdrom" puts them back by itself; this does not.`,
		Example: "  hyperctl vms remove-cdrom web-01 --yes",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.RemoveCDROM(ctx, api.VMRequest{Target: t})
	})
}

func (a *app) snapshotsCommand() *cobra.Command {
	var v vcenter
	c := &cobra.Command{
		Use: "snapshots VM", Short: "List the snapshots of a VM", Args: exactly(1, "the path, id or name of a VM"),
		Example: "  hyperctl vms snapshots web-01",
		RunE: func(c *cobra.Command, args []string) error {
			creds, err := v.credentials(a)
			if err != nil {
				return err
			}
			out, err := a.client.Snapshots(c.Context(), api.VMInfoRequest{VMPath: args[0], Connection: v.connection, VCenter: creds})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(out)
			}
			if out.Total == 0 {
				a.printf("No snapshots.\n")
				return nil
			}
			t := newTable("ID", "SNAPSHOT", "CREATED", "WITH", "?DESCRIPTION")
			for _, s := range out.Snapshots {
				var with []string
				if s.Memory {
					with = append(with, "memory")
				}
				if s.Quiesced {
					with = append(with, "guest at rest")
				}
				t.add(string(s.ID), s.Name, s.Created.Local().Format("2006-01-02 15:04:05"), strings.Join(with, ", "), cut(s.Description, 40))
			}
			a.printTable(t)
			return nil
		},
		ValidArgsFunction: first(a.completeVMs),
	}
	v.flags(c)
	return c
}

func (a *app) snapshotCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "snapshot", Short: "Take or delete a snapshot of a VM", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(a.snapshotCreateCommand(), a.snapshotDeleteCommand())
	return c
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	var o operation
	var r job.SnapshotRequest
	c := a.operateCommand(&cobra.Command{
		Use: "create VM", Short: "Take a snapshot of a VM",
		Example: "  hyperctl vms snapshot create web-01 --name before-upgrade --quiesce",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.CreateSnapshot(ctx, api.SnapshotCreateRequest{VMRequest: api.VMRequest{Target: t}, SnapshotRequest: r})
	})
	o.check = func() error {
		switch {
		case r.Name == "":
			return usageError("give the snapshot a name (--name)")
		case r.Quiesce && r.Memory:
			return usageError("--quiesce and --memory exclude each other")
		}
		return nil
	}
	c.Flags().StringVar(&r.Name, "name", "", "name of the snapshot")
	c.Flags().StringVar(&r.Description, "description", "", "description for people")
	c.Flags().BoolVar(&r.Quiesce, "quiesce", false, "with the guest's file systems at rest, where its tools can")
	c.Flags().BoolVar(&r.Memory, "memory", false, "with the memory of the guest")
	return c
}

func (a *app) snapshotDeleteCommand() *cobra.Command {
	o := operation{question: "Delete the snapshot of %s?"}
	var snapshot string
	c := a.operateCommand(&cobra.Command{
		Use: "delete VM SNAPSHOT", Short: "Delete a snapshot of a VM, by its id or name; those taken upon it stay",
		Example: "  hyperctl vms snapshot delete web-01 before-upgrade --yes",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				snapshot = args[1]
			}
			return exactly(2, "a VM and the id or name of a snapshot")(c, args)
		},
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.DeleteSnapshot(ctx, api.SnapshotDeleteRequest{VMRequest: api.VMRequest{Target: t}, Snapshot: snapshot})
	})
	return c
}

func (a *app) cloneCommand() *cobra.Command {
	var o operation
	var r job.CloneRequest
	c := a.operateCommand(&cobra.Command{
		Use: "clone VM", Short: "Clone a VM or a template",
		Example: "  hyperctl vms clone web-01 --name web-02\n  hyperctl vms clone gold --name web-03 --folder /datacenter/vm/web --power-on",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		return a.client.Clone(ctx, api.CloneRequest{VMRequest: api.VMRequest{Target: t}, CloneRequest: r})
	})
	o.check = func() error {
		switch {
		case r.Name == "":
			return usageError("give the clone a name (--name)")
		case r.Template && r.PowerOn:
			return usageError("--template and --power-on exclude each other: a template does not run")
		}
		return nil
	}
	f := c.Flags()
	f.StringVar(&r.Name, "name", "", "name of the clone")
	f.StringVar(&r.Folder, "folder", "", "inventory path of its folder (default: that of the VM)")
	f.StringVar(&r.Datastore, "datastore", "", "name or path of its datastore (default: that of the VM)")
	f.StringVar(&r.ResourcePool, "resource-pool", "", "name or path of its resource pool (default: that of the VM)")
	f.StringVar(&r.Host, "host", "", "name or path of its host (default: that of the VM)")
	f.BoolVar(&r.Template, "template", false, "make it a template")
	f.BoolVar(&r.PowerOn, "power-on", false, "start it")
	return c
}

func (a *app) templateCommand() *cobra.Command {
	var o operation
	var undo bool
	c := a.operateCommand(&cobra.Command{
		Use: "template VM", Short: "Make a template of a VM that is off, or with --undo a VM of a template",
		Example: "  hyperctl vms template gold\n  hyperctl vms template gold --undo",
	}, &o, func(ctx context.Context, t api.Target) (api.Operation, error) {
		template := !undo
		return a.client.SetTemplate(ctx, api.TemplateRequest{VMRequest: api.VMRequest{Target: t}, Template: &template})
	})
	c.Flags().BoolVar(&undo, "undo", false, "make a VM of a template")
	return c
}

func (a *app) operationCommand() *cobra.Command {
	o := operation{noWait: true}
	c := &cobra.Command{
		Use: "operation ID", Short: "Show an operation that took long", Args: exactly(1, "the id of an operation"),
		Example: "  hyperctl vms operation 0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11 --wait",
		RunE: func(c *cobra.Command, args []string) error {
			out, err := a.client.Operation(c.Context(), args[0])
			if err != nil {
				return err
			}
			if out.Status == job.Running && o.noWait && !a.json {
				a.printf("%s\n", clean(string(out.Action)+" of "+out.VMPath+" goes on"))
				return nil
			}
			return a.operated(c.Context(), &o, out)
		},
	}
	wait := c.Flags().Bool("wait", false, "wait until it has ended")
	c.PreRun = func(*cobra.Command, []string) { o.noWait = !*wait }
	return c
}

// Command hyperctl talks to the daemon: it submits jobs, follows and steers them, and lists and operates VMs.
//
// Exit codes:
//
//	0  done
//	1  it failed
//	2  the command line is wrong
//	3  there is no such job, VM or connection
//	4  a job that was watched failed
//	5  a job that was watched was cancelled
//	6  no daemon answers
//	130  interrupted
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"hypersdk/cmd/terminal"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(run(ctx, os.Args[1:], terminal.System()))
}

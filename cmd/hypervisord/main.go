// Command hypervisord is the daemon: the API, a worker and an embedded Temporal server in one process,
// or one half of that on a Temporal cluster.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"hypersdk/cmd/hypervisord/daemon"
)

// version is the release, set by the linker.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	os.Exit(execute(ctx, daemon.Version(version), os.Args[1:], os.Stdout, os.Stderr))
}

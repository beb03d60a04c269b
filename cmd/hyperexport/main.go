// Command hyperexport exports VMs without a daemon: it brings its own engine along, which keeps its
// state in a private folder, so that an export that was stopped goes on with the same command.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/cmd/terminal"
)

// version is the release, set by the linker.
var version string

func main() {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		cancel()
		<-signals // at once: what is durable stays, as after a kill
		os.Stdout.WriteString(showCursor(os.Stdout))
		os.Exit(exitInterrupted)
	}()
	os.Exit(execute(ctx, daemon.Version(version), os.Args[1:], terminal.System()))
}

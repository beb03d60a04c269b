// Command release records histories of finished workflows of a running daemon, for the replay test of
// later releases: `go run ./deploy/release -temporal 127.0.0.1:7233 -keys DATA/keys/data.key -out DIR
// NAME=WORKFLOW-ID…`, where @TYPE instead of an id is the newest workflow of a type. The first job named also has
// its log fetched by a workflow, which is recorded too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"hypersdk/providers/connections/keys"
	"hypersdk/worker/codec"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
	"hypersdk/workflows/replay"
)

func main() {
	temporal := flag.String("temporal", "127.0.0.1:7233", "address of the Temporal server")
	keyFile := flag.String("keys", "", "key file of the daemon")
	out := flag.String("out", "", "folder to write to")
	flag.Parse()
	if err := run(context.Background(), *temporal, *keyFile, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, temporal, keyFile, out string, names []string) error {
	ring, err := keys.Load(keyFile)
	if err != nil {
		return err
	}
	code := codec.New(ring)
	c, err := client.Dial(client.Options{HostPort: temporal, Identity: "release", DataConverter: code.DataConverter(), FailureConverter: code.FailureConverter()})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for i, n := range names {
		name, id, ok := strings.Cut(n, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=WORKFLOW-ID", n)
		}
		if kind, ok := strings.CutPrefix(id, "@"); ok {
			if id, err = newest(ctx, c, kind); err != nil {
				return err
			}
		}
		if i == 0 {
			if err := fetchLog(ctx, c, id); err != nil {
				return err
			}
			if err := dump(ctx, c, code, filepath.Join(out, "fetch-log.json.gz"), "release-fetch-log"); err != nil {
				return err
			}
		}
		if err := dump(ctx, c, code, filepath.Join(out, name+".json.gz"), id); err != nil {
			return err
		}
	}
	return nil
}

// fetchLog reads the log of a job as an API on another host would.
func fetchLog(ctx context.Context, c client.Client, id string) error {
	v, err := c.QueryWorkflow(ctx, id, "", workflows.QueryStatus)
	if err != nil {
		return err
	}
	var s job.Snapshot
	if err := v.Get(&s); err != nil {
		return err
	}
	run, err := c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: "release-fetch-log", TaskQueue: workflows.Queue},
		workflows.LogWorkflow, job.LogRequest{Job: id, Host: s.Host})
	if err != nil {
		return err
	}
	return run.Get(ctx, nil)
}

// newest is the workflow of a type that was started last.
func newest(ctx context.Context, c client.Client, kind string) (string, error) {
	list, err := c.ListWorkflow(ctx, &workflowservice.ListWorkflowExecutionsRequest{Query: fmt.Sprintf("WorkflowType = %q", kind)})
	if err != nil {
		return "", err
	}
	if len(list.Executions) == 0 {
		return "", fmt.Errorf("there is no workflow of the type %q", kind)
	}
	return list.Executions[0].Execution.WorkflowId, nil
}

func dump(ctx context.Context, c client.Client, code *codec.Codec, path, id string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(replay.DumpHistory(ctx, c, code, id, f), f.Close())
}

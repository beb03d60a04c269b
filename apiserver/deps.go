package apiserver

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
)

// Config is how the server behaves towards its callers. The zero value is right for a daemon that is
// reached over loopback.
type Config struct {
	// AllowedHosts are names, without port, under which the server may be addressed although the
	// connection came in over loopback: those of a proxy in front of it. "localhost" and loopback
	// addresses always are; a connection that did not come over loopback is not checked unless the
	// list has entries.
	AllowedHosts []string
	// AllowedOrigins are origins ("https://vms.example.org") whose pages may call the API, beside
	// those that the server itself delivers.
	AllowedOrigins []string
	// DefaultFormat is the disk format of a job that names none.
	DefaultFormat string
	// Namespace is that of the Temporal client, for links into the Web UI; "" is "default".
	Namespace string
	// PollInterval is how often running jobs are looked at for those who watch them, and logs for
	// those who follow them; 0 is a second.
	PollInterval time.Duration
}

// Deps is what the server stands on.
type Deps struct {
	// Temporal is the truth about jobs. A client.Client is one.
	Temporal Temporal
	// Durable returns when what Temporal has taken down is on the disk: nothing is promised before. Nil
	// where Temporal promises nothing sooner either.
	Durable func(context.Context) error
	// Converter and Failures are those of the Temporal client; nil are the SDK's defaults.
	Converter converter.DataConverter
	Failures  converter.FailureConverter
	// Connections reach the platforms.
	Connections Connections
	// CanStoreCredentials is false where the workers do not read the store of Connections; a job
	// that brings credentials is refused then.
	CanStoreCredentials bool
	// Logs reads the logs of jobs in this process's data folder. Nil in split mode: the host that has
	// a log is asked for it.
	Logs LogReader
	// Providers are the kinds of platform of this build.
	Providers []api.ProviderKind
	// Formats are the disk formats that this build writes.
	Formats []string
	// Features are the job.Feature… that this build has.
	Features []string
	// Version of the program.
	Version string
	// TemporalUI is the base URL of the Temporal Web UI; "" where there is none.
	TemporalUI string
	// Codec, where not nil, is served below /codec/ for the Temporal Web UI.
	Codec http.Handler
	// Log is never nil after New: nothing is logged where it was.
	Log *slog.Logger
}

// Temporal is the part of client.Client that the server uses.
type Temporal interface {
	ExecuteWorkflow(ctx context.Context, o client.StartWorkflowOptions, workflow any, args ...any) (client.WorkflowRun, error)
	DescribeWorkflowExecution(ctx context.Context, workflowID, runID string) (*workflowservice.DescribeWorkflowExecutionResponse, error)
	ListWorkflow(ctx context.Context, r *workflowservice.ListWorkflowExecutionsRequest) (*workflowservice.ListWorkflowExecutionsResponse, error)
	CountWorkflow(ctx context.Context, r *workflowservice.CountWorkflowExecutionsRequest) (*workflowservice.CountWorkflowExecutionsResponse, error)
	QueryWorkflow(ctx context.Context, workflowID, runID, query string, args ...any) (converter.EncodedValue, error)
	UpdateWorkflow(ctx context.Context, o client.UpdateWorkflowOptions) (client.WorkflowUpdateHandle, error)
	CancelWorkflow(ctx context.Context, workflowID, runID string) error
}

// Connections are platforms by name, and the only reader of secrets.
type Connections interface {
	// Open is the provider of a configured connection; "" is the default one. It is shared: the
	// caller does not close it. NotFound where there is no such connection.
	Open(ctx context.Context, name string) (providers.Provider, error)
	// OpenOnce connects with a configuration that is kept nowhere. The caller closes the provider.
	OpenOnce(ctx context.Context, kind string, config json.RawMessage) (providers.Provider, error)
	// Put stores, encrypted, a connection that was given with a job; the same name again replaces it.
	Put(ctx context.Context, name, kind string, config json.RawMessage) error
	// Forget removes what Put stored; what is not there is forgotten.
	Forget(ctx context.Context, name string) error
}

// LogReader reads whole lines of a job's log from an offset on, and the offset to go on from. The end
// of the log, and a log that is not there (yet), is an empty page with the same offset.
type LogReader func(ctx context.Context, job string, offset int64) (page []byte, next int64, err error)

package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

type submitInput struct {
	ContentType string `header:"Content-Type" hidden:"true"`
	Key         string `header:"Idempotency-Key" maxLength:"200" doc:"Sending the same jobs again under the same key starts nothing and answers the same ids" example:"nightly-2026-03-01"`
	RawBody     []byte `contentType:"application/json"`
}

type submitOutput struct {
	Status int
	Body   api.Submitted
}

func (s *Server) submitOperation(h huma.API) {
	op := operation(http.MethodPost, "/jobs/submit", "submit-jobs", "jobs", "Submit jobs",
		"Takes one job, a list of jobs, or `{\"jobs\": […]}`, in JSON or YAML; at most 1000. A job that is "+
			"accepted is durable. Jobs with faults are rejected and the others accepted; where all are rejected the "+
			"status is 422.",
		http.StatusBadRequest, http.StatusConflict, http.StatusRequestEntityTooLarge, http.StatusServiceUnavailable)
	op.SkipValidateBody = true // reads it by itself
	huma.Register(h, op, s.submit)
	documentSubmit(h)
}

func (s *Server) submit(ctx context.Context, in *submitInput) (*submitOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	jobs, err := decodeJobs(in.ContentType, in.RawBody)
	if err != nil {
		return nil, fail(ctx, err)
	}
	request := digest(jobs) // before anything is filled in that another build would fill in otherwise
	var good []int
	for i := range jobs {
		s.check(&jobs[i])
		if len(jobs[i].faults) == 0 {
			good = append(good, i)
		}
	}
	b := batch{s: s, jobs: jobs, digest: request, ids: make([]string, len(jobs)), errs: make([]error, len(jobs))}
	for n, i := range good {
		b.ids[i], b.errs[i] = jobID(in.Key, n), errLate()
	}
	if in.Key != "" && len(good) > 0 {
		if err := b.repeated(ctx, b.ids[good[0]]); err != nil {
			return nil, fail(ctx, err)
		}
	}
	each(ctx, len(good), func(n int) { b.errs[good[n]] = b.start(ctx, good[n], in.Key != "") })
	return b.answer(ctx)
}

// cannotStore is why credentials are refused where nobody but this server could read them.
const cannotStore = "cannot be used here, because the workers do not share the credentials of this server; " +
	"name a configured connection in the field connection instead"

// check finds what is wrong with a job, beyond what its decoding found.
func (s *Server) check(j *submitted) {
	usual := s.cfg.DefaultFormat
	if j.Incremental {
		usual = "qcow2" // that of chains, whatever others get
	}
	j.Format = cmp.Or(strings.ToLower(j.Format), usual)
	found := append(j.Validate(s.caps), checkConnection(j.Connection, j.VCenter != nil)...)
	switch {
	case j.VCenter == nil:
	case !s.deps.CanStoreCredentials:
		found = append(found, job.FieldError{Field: "vcenter", Message: cannotStore})
	default:
		found = append(found, missing(j.VCenter, "vcenter.")...)
	}
	for _, f := range found {
		if !j.knows(f.Field) {
			j.faults = append(j.faults, f)
		}
	}
}

// knows says whether a field was found at fault already: one that could not be decoded is not missing.
func (s *submitted) knows(field string) bool {
	for _, f := range s.faults {
		if f.Field == field || f.Field == "" || field == "output_path" && f.Field == "output_dir" {
			return true
		}
	}
	return false
}

// batch is the jobs of one request on their way to Temporal.
type batch struct {
	s      *Server
	jobs   []submitted
	digest string
	ids    []string
	errs   []error
}

// errLate stands for a job whose start was not even begun.
func errLate() error {
	return newError(http.StatusGatewayTimeout, "there was no time left to start it; try again in a moment")
}

// start stores the credentials of a job and starts its workflow. With a key, a job that was started by
// an earlier request is as good.
func (b *batch) start(ctx context.Context, i int, key bool) error {
	id, j := b.ids[i], &b.jobs[i]
	if key {
		if _, err := b.s.describe(ctx, id); err == nil {
			return nil // its credentials were stored, and perhaps forgotten: leave it alone
		}
	}
	if err := b.store(ctx, id, j); err != nil {
		return err
	}
	_, err := b.s.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: workflows.Queue,
		EnableEagerStart:                         true, // a worker in this process, if there is one, begins at once
		WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowIDConflictPolicy:                 enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		Memo:                                     map[string]any{workflows.MemoSpec: j.Spec, memoRequest: b.digest},
		StaticSummary:                            job.Shorten(j.VMPath, 100),
	}, workflows.ExportWorkflow, j.Spec)
	var already *serviceerror.WorkflowExecutionAlreadyStarted
	switch {
	case err == nil:
		b.s.recent.note(id)
		return nil
	case errors.As(err, &already) && key: // by the same request, sent twice at once
		return b.repeated(ctx, id)
	}
	return b.settle(ctx, id, j, fmt.Errorf("start job: %w", err))
}

// store keeps the credentials that came with a job under a name that only it uses.
func (b *batch) store(ctx context.Context, id string, j *submitted) error {
	if j.VCenter == nil {
		return nil
	}
	config, err := json.Marshal(j.VCenter)
	if err != nil {
		return err
	}
	j.Connection = jobConnection + id
	if err := b.s.deps.Connections.Put(ctx, j.Connection, vcenterKind, config); err != nil {
		return fmt.Errorf("store credentials: %w", err)
	}
	return nil
}

// settle finds out what became of a start that failed: the answer may have been lost, not the job.
// The credentials of a job that is not there are deleted; where nobody knows they stay, and the job
// deletes them at its end.
func (b *batch) settle(ctx context.Context, id string, j *submitted, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickTimeout)
	defer cancel()
	_, err := b.s.describe(ctx, id)
	var answer *api.Error
	switch {
	case err == nil:
		return b.s.deps.durable(ctx)
	case j.VCenter != nil && errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return errors.Join(cause, b.s.deps.Connections.Forget(ctx, j.Connection))
	}
	return cause
}

// answer sums up. A request of which nothing was accepted is an error: of the jobs if they have
// faults, else of the server.
func (b *batch) answer(ctx context.Context) (*submitOutput, error) {
	out := api.Submitted{JobIDs: []string{}, Errors: []string{}, Timestamp: job.Now()}
	var failed error
	for i, j := range b.jobs {
		faults := j.faults
		if b.errs[i] != nil {
			failed = fail(ctx, b.errs[i])
			faults = []job.FieldError{{Message: "could not be started: " + failed.Error()}}
		}
		if len(faults) == 0 {
			out.JobIDs = append(out.JobIDs, b.ids[i])
			out.Accepted++
			continue
		}
		out.Rejected++
		for _, f := range faults {
			out.Errors = append(out.Errors, fmt.Sprintf("job %d: %s", i, f.Error()))
			out.Faults = append(out.Faults, api.Fault{Job: i, Field: f.Field, Message: f.Message})
		}
	}
	if out.Accepted > 0 {
		return &submitOutput{http.StatusOK, out}, nil
	}
	if failed != nil {
		return nil, failed
	}
	out.Error = "no job was accepted: " + out.Errors[0]
	if n := len(out.Errors) - 1; n > 0 {
		out.Error += fmt.Sprintf(" (and %d more)", n)
	}
	return &submitOutput{http.StatusUnprocessableEntity, out}, nil
}

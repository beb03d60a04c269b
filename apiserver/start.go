package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/sdk/client"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// newJob is a job that is no export, about to be started.
type newJob struct {
	what       string // for people: "conversion"
	workflow   string
	spec       any
	memo       string   // field that keeps spec
	definition job.Spec // what a Spec can say of it
	title      string
	// key is the idempotency key, empty for none; space is the name space of ids that are made of one.
	key   string
	space uuid.UUID
	id    string // where it had to be known before; empty: newID makes it
}

// StartInput is a request for a job. It is exported for huma, which looks no further else.
type StartInput[Body any] struct {
	Key  string `header:"Idempotency-Key" maxLength:"200" doc:"Sending the same request again under the same key starts nothing and answers the same id" example:"move-web-01"`
	Body Body
}

type startOutput struct {
	Location string `header:"Location" doc:"Where to ask how it goes"`
	Body     api.Started
}

// starting registers an endpoint that starts a job, by start, which answers its id.
func starting[Body any](h huma.API, path, id, tag, summary, description string, start func(ctx context.Context, key string, r Body) (string, error)) {
	op := operation(http.MethodPost, path, id, tag, summary, description, http.StatusBadRequest, http.StatusConflict, http.StatusServiceUnavailable)
	op.DefaultStatus = http.StatusAccepted
	huma.Register(h, op, func(ctx context.Context, in *StartInput[Body]) (*startOutput, error) {
		ctx, cancel := context.WithTimeout(ctx, quickTimeout)
		defer cancel()
		id, err := start(ctx, in.Key, in.Body)
		if err != nil {
			return nil, fail(ctx, err)
		}
		return &startOutput{"/jobs/" + id, api.Started{JobID: id, Status: job.Pending, Timestamp: job.Now()}}, nil
	})
}

// newID is the id of the job.
func (b newJob) newID() string {
	switch {
	case b.id != "":
		return b.id
	case b.key != "":
		return uuid.NewSHA1(b.space, []byte(b.key)).String()
	}
	return uuid.Must(uuid.NewV7()).String()
}

// startJob starts a job, or finds the one that was started under the same key.
func (s *Server) startJob(ctx context.Context, b newJob) (id string, err error) {
	raw, err := json.Marshal(b.spec)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(raw)
	request := hex.EncodeToString(sum[:])
	id = b.newID()
	_, err = s.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		ID: id, TaskQueue: workflows.Queue,
		WorkflowIDReusePolicy:                    enumspb.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
		WorkflowIDConflictPolicy:                 enumspb.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
		WorkflowExecutionErrorWhenAlreadyStarted: true,
		Memo:                                     map[string]any{workflows.MemoSpec: b.definition, b.memo: b.spec, memoRequest: request},
		StaticSummary:                            job.Shorten(b.title, 100),
	}, b.workflow, b.spec)
	var already *serviceerror.WorkflowExecutionAlreadyStarted
	switch {
	case err == nil:
		s.recent.note(id)
		return id, nil
	case errors.As(err, &already) && b.key != "":
		return id, s.sameRequest(ctx, id, request, b.what)
	}
	// The answer may have been lost, not the job.
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickTimeout)
	defer cancel()
	if _, derr := s.describe(again, id); derr == nil {
		return id, s.deps.durable(again)
	}
	return "", fmt.Errorf("start %s: %w", b.what, err)
}

// sameRequest refuses a request under a key that was used for another one.
func (s *Server) sameRequest(ctx context.Context, id, request, what string) error {
	d, err := s.describe(ctx, id)
	if err != nil {
		return err
	}
	var was string
	if s.memo(d.GetWorkflowExecutionInfo().GetMemo(), memoRequest, &was) && was != request {
		return newError(http.StatusConflict, "the idempotency key was used for another %s; use a new key", what)
	}
	return nil
}

package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

const (
	maxTail     = 10_000
	maxTailSize = 8 << 20
)

type logInput struct {
	JobPath
	Follow bool   `query:"follow" doc:"Keep the answer open and send what is added, until the job has ended"`
	Tail   int    `query:"tail" doc:"Only the last so many lines; 0: all" minimum:"0" maximum:"10000"`
	Offset int64  `query:"offset" doc:"Begin behind so many bytes of the log as it is stored: the header Log-Offset of an earlier answer" minimum:"0"`
	Format string `query:"format" doc:"text: lines for people; json: an object per line, as it is stored" enum:"text,json" default:"text"`
}

func (s *Server) logOperation(h huma.API) {
	op := operation(http.MethodGet, "/jobs/logs/{id}", "job-logs", "jobs", "The log of a job",
		"Empty while the job has not been placed on a host.", http.StatusNotFound, http.StatusServiceUnavailable, http.StatusGatewayTimeout)
	op.Responses = map[string]*huma.Response{"200": {
		Description: "The log. The header Log-Offset says how far it goes.",
		Content: map[string]*huma.MediaType{"text/plain": {
			Schema:  &huma.Schema{Type: huma.TypeString},
			Example: "2026-03-01T12:00:00.000Z INFO  snapshot taken snapshot=snapshot-7\n",
		}},
	}}
	huma.Register(h, op, s.logs)
}

func (s *Server) logs(ctx context.Context, in *logInput) (*huma.StreamResponse, error) {
	asked, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	j, err := s.job(asked, in.ID)
	if err != nil {
		return nil, fail(ctx, err)
	}
	l := &logStream{s: s, job: j, next: in.Offset, json: in.Format == "json"}
	// The beginning is read before the answer begins, so that trouble still has a status.
	head, err := l.beginning(asked, in.Tail)
	if err != nil {
		return nil, fail(ctx, err)
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		w := humaecho.Unwrap(c).Response()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if !in.Follow {
			w.Header().Set("Log-Offset", strconv.FormatInt(l.next, 10))
		}
		w.WriteHeader(http.StatusOK)
		if _, err := w.Write(l.render(head)); err == nil && in.Follow {
			note(ctx, l.follow(ctx, w))
		}
	}}, nil
}

// logStream reads a job's log from somewhere on.
type logStream struct {
	s    *Server
	job  job.Job
	next int64
	json bool
}

// beginning is what there is of the log now, or its last lines.
func (l *logStream) beginning(ctx context.Context, tail int) ([]byte, error) {
	var all []byte
	for {
		page, err := l.page(ctx)
		if err != nil {
			return nil, err
		}
		if len(page) == 0 {
			return all, nil
		}
		all = append(all, page...)
		if tail > 0 {
			all = lastLines(all, tail)
		}
		if over := len(all) - maxTailSize; over > 0 { // a log is bounded by its worker; this bounds what we trust
			all = all[over+bytes.IndexByte(all[over:], '\n')+1:]
		}
	}
}

// follow sends what is added until the job has ended, the caller has gone, or the server stops.
func (l *logStream) follow(ctx context.Context, w http.ResponseWriter) error {
	out := http.NewResponseController(w)
	for ended := l.job.Status.Ended(); ; {
		page, err := l.page(ctx)
		if err != nil {
			return fmt.Errorf("follow log: %w", err)
		}
		if err := out.SetWriteDeadline(time.Now().Add(l.s.patience.write)); err != nil {
			return err
		}
		switch {
		case len(page) > 0:
			if _, err := w.Write(l.render(page)); err != nil {
				return fmt.Errorf("follow log: the caller has gone: %w", err)
			}
			continue
		case ended:
			return nil
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("follow log: the caller has gone: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.s.hub.ctx.Done():
			return nil
		case <-time.After(l.s.cfg.PollInterval):
		}
		if d, err := l.s.describe(ctx, l.job.ID); err == nil {
			j := l.s.view(d.GetWorkflowExecutionInfo())
			l.job.Host, ended = j.Host, j.Status.Ended()
		}
	}
}

// page reads on: from this process's data folder, or by asking the host that has the log.
func (l *logStream) page(ctx context.Context) ([]byte, error) {
	var page job.LogPage
	var err error
	switch {
	case l.s.deps.Logs != nil:
		page.Data, page.Next, err = l.s.deps.Logs(ctx, l.job.ID, l.next)
	case l.job.Host == "": // not placed yet
		return nil, nil
	default:
		page, err = l.s.fetchLog(ctx, job.LogRequest{Job: l.job.ID, Host: l.job.Host, Offset: l.next})
	}
	if err != nil {
		return nil, err
	}
	if page.Next <= l.next {
		return nil, nil
	}
	l.next = page.Next
	return page.Data, nil
}

// fetchLog has a short workflow read a page on the host that has the log.
func (s *Server) fetchLog(ctx context.Context, r job.LogRequest) (job.LogPage, error) {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	var page job.LogPage
	run, err := s.temporal.ExecuteWorkflow(ctx, client.StartWorkflowOptions{
		TaskQueue: workflows.Queue, WorkflowExecutionTimeout: 2 * quickTimeout,
	}, workflows.LogWorkflow, r)
	if err == nil {
		err = run.Get(ctx, &page)
	}
	var app *temporal.ApplicationError
	switch {
	case err == nil:
		return page, nil
	case errors.As(err, &app) && providers.Reason(app.Type()) != providers.Unavailable:
		return page, newError(http.StatusBadGateway, "the log cannot be read: %s", app.Message())
	case errors.As(err, &app), ctx.Err() != nil:
		note(ctx, err)
		return page, newError(http.StatusGatewayTimeout, "the host that has the log does not answer: %s", r.Host)
	}
	return page, err
}

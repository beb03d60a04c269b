package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

// Submit submits jobs. Where none is accepted the error is an *api.Error and the answer says of each
// job why. The same jobs under the same key, if it is not empty, are started once.
func (c *Client) Submit(ctx context.Context, key string, jobs ...api.Submission) (api.Submitted, error) {
	body, err := json.Marshal(map[string]any{"jobs": jobs})
	if err != nil {
		return api.Submitted{}, err
	}
	return c.SubmitBody(ctx, key, "application/json", body)
}

// SubmitBody is Submit of a body as it is: JSON or YAML, one job or many. With an empty content type
// the server finds out which.
func (c *Client) SubmitBody(ctx context.Context, key, contentType string, body []byte) (api.Submitted, error) {
	h := http.Header{}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	}
	if key != "" {
		h.Set("Idempotency-Key", key)
	}
	var out api.Submitted
	r, err := c.do(ctx, http.MethodPost, "/jobs/submit", nil, h, body)
	if err != nil {
		return out, err
	}
	defer r.Body.Close()
	switch r.StatusCode {
	case http.StatusOK:
		return out, decode(r, &out)
	case http.StatusUnprocessableEntity: // all rejected: told as a success is, or the body as a whole
		raw, err := io.ReadAll(io.LimitReader(r.Body, maxAnswer))
		if err == nil && json.Unmarshal(raw, &out) == nil && out.Rejected > 0 {
			return out, &api.Error{Message: out.Error, Timestamp: out.Timestamp, Status: r.StatusCode}
		}
		r.Body = io.NopCloser(bytes.NewReader(raw))
	}
	return api.Submitted{}, refusal(r)
}

// Jobs finds jobs.
func (c *Client) Jobs(ctx context.Context, q api.Query) (out api.Jobs, err error) {
	return out, c.call(ctx, http.MethodPost, "/jobs/query", nil, q, &out)
}

// Job is a job as it is now.
func (c *Client) Job(ctx context.Context, id string) (out job.Job, err error) {
	return out, c.call(ctx, http.MethodGet, "/jobs/"+idPath(id), nil, nil, &out)
}

// Cancel tells jobs to stop.
func (c *Client) Cancel(ctx context.Context, ids ...string) (out api.Cancelled, err error) {
	return out, c.call(ctx, http.MethodPost, "/jobs/cancel", nil, api.CancelRequest{JobIDs: ids}, &out)
}

// Pause stops a job's reading until Resume.
func (c *Client) Pause(ctx context.Context, id string) (out api.Controlled, err error) {
	return out, c.call(ctx, http.MethodPost, "/jobs/"+idPath(id)+"/pause", nil, nil, &out)
}

// Resume lets a paused job go on.
func (c *Client) Resume(ctx context.Context, id string) (out api.Controlled, err error) {
	return out, c.call(ctx, http.MethodPost, "/jobs/"+idPath(id)+"/resume", nil, nil, &out)
}

// Limit sets the bandwidth limit of a job in MB/s (1,000,000 bytes); 0 is none.
func (c *Client) Limit(ctx context.Context, id string, mbps float64) (out api.Controlled, err error) {
	return out, c.call(ctx, http.MethodPut, "/jobs/"+idPath(id)+"/limit", nil, api.LimitRequest{LimitMBps: mbps}, &out)
}

// LogOptions choose a part of a log.
type LogOptions struct {
	Tail   int   // only so many lines; 0: all
	Offset int64 // only what is behind so many bytes of the log as it is stored
	JSON   bool  // an object per line, as it is stored
}

// Log copies a job's log to w, and answers the offset that it goes to.
func (c *Client) Log(ctx context.Context, id string, o LogOptions, w io.Writer) (next int64, err error) {
	q := url.Values{}
	if o.Tail > 0 {
		q.Set("tail", strconv.Itoa(o.Tail))
	}
	if o.Offset > 0 {
		q.Set("offset", strconv.FormatInt(o.Offset, 10))
	}
	if o.JSON {
		q.Set("format", "json")
	}
	r, err := c.send(ctx, http.MethodGet, "/jobs/logs/"+idPath(id), q, http.Header{}, nil)
	if err != nil {
		return 0, err
	}
	defer r.Body.Close()
	if _, err := io.Copy(w, r.Body); err != nil {
		return 0, err
	}
	if next, err = strconv.ParseInt(r.Header.Get("Log-Offset"), 10, 64); err != nil {
		return 0, fmt.Errorf("the answer with the log does not say how far it goes: %w", err)
	}
	return next, nil
}

// idPath is an id as part of a path. One that would be another path is made one that nobody has.
func idPath(id string) string {
	if id == "" || id == "." || id == ".." {
		return "-"
	}
	return url.PathEscape(id)
}

package client

import (
	"context"
	"encoding/json"
	"net/http"

	"hypersdk/apiserver/api"
)

// The same request for work on a chain under the same key, if it is not empty, is started once.

// CheckChain starts a job that examines a chain.
func (c *Client) CheckChain(ctx context.Context, key string, r api.ChainCheckRequest) (api.ChainStarted, error) {
	return c.work(ctx, "/incremental/check", key, r)
}

// MergeChain starts a job that makes a point the oldest of its chain.
func (c *Client) MergeChain(ctx context.Context, key string, r api.ChainMergeRequest) (api.ChainStarted, error) {
	return c.work(ctx, "/incremental/merge", key, r)
}

// FlattenChain starts a job that writes disks at a point as images of their own.
func (c *Client) FlattenChain(ctx context.Context, key string, r api.ChainFlattenRequest) (api.ChainStarted, error) {
	return c.work(ctx, "/incremental/flatten", key, r)
}

// DeletePoint starts a job that gives up a point of a chain.
func (c *Client) DeletePoint(ctx context.Context, key string, r api.ChainDeleteRequest) (api.ChainStarted, error) {
	return c.work(ctx, "/incremental/delete", key, r)
}

// Chain tells what a chain is made of.
func (c *Client) Chain(ctx context.Context, r api.ChainListRequest) (out api.Chain, err error) {
	return out, c.call(ctx, http.MethodPost, "/incremental/list", nil, r, &out)
}

// AnalyzeIncremental tells what the next incremental export of a VM would do. Where that takes longer than the
// server waits, it is still running, and [Client.Operation] has the analysis later.
func (c *Client) AnalyzeIncremental(ctx context.Context, r api.AnalyzeRequest) (out api.Analyzed, err error) {
	return out, c.call(ctx, http.MethodPost, "/incremental/analyze", nil, r, &out)
}

func (c *Client) work(ctx context.Context, path, key string, r any) (out api.ChainStarted, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return out, err
	}
	h := http.Header{"Content-Type": {"application/json"}}
	if key != "" {
		h.Set("Idempotency-Key", key)
	}
	answer, err := c.send(ctx, http.MethodPost, path, nil, h, body)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	return out, decode(answer, &out)
}

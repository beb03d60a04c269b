package client

import (
	"context"
	"net/http"

	"hypersdk/apiserver/api"
)

// The same request for work on a chain under the same key, if it is not empty, is started once.

// CheckChain starts a job that examines a chain.
func (c *Client) CheckChain(ctx context.Context, key string, r api.ChainCheckRequest) (out api.Started, err error) {
	return out, c.start(ctx, "/incremental/check", key, r, &out)
}

// MergeChain starts a job that makes a point the oldest of its chain.
func (c *Client) MergeChain(ctx context.Context, key string, r api.ChainMergeRequest) (out api.Started, err error) {
	return out, c.start(ctx, "/incremental/merge", key, r, &out)
}

// FlattenChain starts a job that writes disks at a point as images of their own.
func (c *Client) FlattenChain(ctx context.Context, key string, r api.ChainFlattenRequest) (out api.Started, err error) {
	return out, c.start(ctx, "/incremental/flatten", key, r, &out)
}

// DeletePoint starts a job that gives up a point of a chain.
func (c *Client) DeletePoint(ctx context.Context, key string, r api.ChainDeleteRequest) (out api.Started, err error) {
	return out, c.start(ctx, "/incremental/delete", key, r, &out)
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

package client

import (
	"context"
	"net/http"

	"hypersdk/apiserver/api"
)

// Sync starts a warm copy. The same request under the same key, if it is not empty, is started once.
func (c *Client) Sync(ctx context.Context, key string, r api.SyncRequest) (out api.Started, err error) {
	return out, c.start(ctx, "/sync/submit", key, r, &out)
}

// Cutover asks a warm copy for its cutover.
func (c *Client) Cutover(ctx context.Context, id string) (out api.CutoverAsked, err error) {
	return out, c.call(ctx, http.MethodPost, "/sync/cutover", nil, api.CutoverRequest{JobID: id}, &out)
}

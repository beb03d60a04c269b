package client

import (
	"context"
	"encoding/json"
	"net/http"

	"hypersdk/apiserver/api"
)

// Sync starts a warm copy. The same request under the same key, if it is not empty, is started once.
func (c *Client) Sync(ctx context.Context, key string, r api.SyncRequest) (out api.SyncStarted, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return out, err
	}
	h := http.Header{"Content-Type": {"application/json"}}
	if key != "" {
		h.Set("Idempotency-Key", key)
	}
	answer, err := c.send(ctx, http.MethodPost, "/sync/submit", nil, h, body)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	return out, decode(answer, &out)
}

// Cutover asks a warm copy for its cutover.
func (c *Client) Cutover(ctx context.Context, id string) (out api.CutoverAsked, err error) {
	return out, c.call(ctx, http.MethodPost, "/sync/cutover", nil, api.CutoverRequest{JobID: id}, &out)
}

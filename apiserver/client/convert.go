package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"

	"hypersdk/apiserver/api"
)

// Convert starts a conversion of disk images. The same request under the same key, if it is not empty, is
// started once.
func (c *Client) Convert(ctx context.Context, key string, r api.ConvertRequest) (out api.ConvertStarted, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return out, err
	}
	h := http.Header{"Content-Type": {"application/json"}}
	if key != "" {
		h.Set("Idempotency-Key", key)
	}
	answer, err := c.send(ctx, http.MethodPost, "/convert/format", nil, h, body)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	return out, decode(answer, &out)
}

// ConvertStatus is where a conversion stands.
func (c *Client) ConvertStatus(ctx context.Context, id string) (out api.ConvertStatus, err error) {
	return out, c.call(ctx, http.MethodGet, "/convert/status", url.Values{"conversion_id": {id}}, nil, &out)
}

package client

import (
	"context"
	"net/http"
	"net/url"

	"hypersdk/apiserver/api"
)

// Convert starts a conversion of disk images. The same request under the same key, if it is not empty, is
// started once.
func (c *Client) Convert(ctx context.Context, key string, r api.ConvertRequest) (out api.ConvertStarted, err error) {
	return out, c.start(ctx, "/convert/format", key, r, &out)
}

// ConvertStatus is where a conversion stands.
func (c *Client) ConvertStatus(ctx context.Context, id string) (out api.ConvertStatus, err error) {
	return out, c.call(ctx, http.MethodGet, "/convert/status", url.Values{"conversion_id": {id}}, nil, &out)
}

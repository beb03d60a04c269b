package client

import (
	"context"

	"hypersdk/apiserver/api"
)

// EnableCBT switches changed block tracking of a VM on.
func (c *Client) EnableCBT(ctx context.Context, r api.VMRequest) (api.Operation, error) {
	return c.operate(ctx, "/cbt/enable", r)
}

// DisableCBT switches changed block tracking of a VM off.
func (c *Client) DisableCBT(ctx context.Context, r api.VMRequest) (api.Operation, error) {
	return c.operate(ctx, "/cbt/disable", r)
}

// CBTStatus tells how far the changes of a VM are tracked.
func (c *Client) CBTStatus(ctx context.Context, r api.VMRequest) (api.Operation, error) {
	return c.operate(ctx, "/cbt/status", r)
}

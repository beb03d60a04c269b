package client

import (
	"context"
	"net/http"

	"hypersdk/apiserver/api"
)

// An operation that takes longer than the server waits is answered while it is running; Operation tells
// how it goes on.

// PowerOn powers a VM on.
func (c *Client) PowerOn(ctx context.Context, r api.VMRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/poweron", r)
}

// PowerOff takes the power of a VM away.
func (c *Client) PowerOff(ctx context.Context, r api.VMRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/poweroff", r)
}

// ShutDown shuts the guest of a VM down.
func (c *Client) ShutDown(ctx context.Context, r api.ShutdownRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/shutdown", r)
}

// RemoveCDROM takes the CD and DVD drives out of a VM.
func (c *Client) RemoveCDROM(ctx context.Context, r api.VMRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/remove-cdrom", r)
}

// Snapshots lists the snapshots of a VM.
func (c *Client) Snapshots(ctx context.Context, r api.VMInfoRequest) (out api.Snapshots, err error) {
	return out, c.call(ctx, http.MethodPost, "/vms/snapshots", nil, r, &out)
}

// CreateSnapshot takes a snapshot of a VM.
func (c *Client) CreateSnapshot(ctx context.Context, r api.SnapshotCreateRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/snapshots/create", r)
}

// DeleteSnapshot deletes a snapshot of a VM.
func (c *Client) DeleteSnapshot(ctx context.Context, r api.SnapshotDeleteRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/snapshots/delete", r)
}

// Clone clones a VM.
func (c *Client) Clone(ctx context.Context, r api.CloneRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/clone", r)
}

// SetTemplate makes a template of a VM, or a VM of a template.
func (c *Client) SetTemplate(ctx context.Context, r api.TemplateRequest) (api.Operation, error) {
	return c.operate(ctx, "/vms/template", r)
}

// Operation is an operation as it is now.
func (c *Client) Operation(ctx context.Context, id string) (out api.Operation, err error) {
	return out, c.call(ctx, http.MethodGet, "/vms/operations/"+idPath(id), nil, nil, &out)
}

func (c *Client) operate(ctx context.Context, path string, in any) (out api.Operation, err error) {
	return out, c.call(ctx, http.MethodPost, path, nil, in, &out)
}

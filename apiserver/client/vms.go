package client

import (
	"context"
	"net/http"
	"net/url"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
)

// VMs lists the VMs of a configured connection; "" is the default one.
func (c *Client) VMs(ctx context.Context, connection string, f providers.Filter) ([]providers.VM, error) {
	q := url.Values{}
	for name, v := range map[string]string{"connection": connection, "name": f.Name, "folder": f.Folder, "power": string(f.Power)} {
		if v != "" {
			q.Set(name, v)
		}
	}
	var out api.VMs
	err := c.call(ctx, http.MethodGet, "/vms/list", q, nil, &out)
	return out.VMs, err
}

// VMsOf lists the VMs of a vCenter that is not configured.
func (c *Client) VMsOf(ctx context.Context, vc api.Credentials) (out []providers.VM, err error) {
	return out, c.call(ctx, http.MethodPost, "/vms/list", nil, api.VMListRequest{
		Server: vc.Server, Username: vc.Username, Password: vc.Password, Insecure: vc.Insecure, Thumbprint: vc.Thumbprint,
	}, &out)
}

// VM describes one VM in full.
func (c *Client) VM(ctx context.Context, r api.VMInfoRequest) (out providers.VM, err error) {
	return out, c.call(ctx, http.MethodPost, "/vms/info", nil, r, &out)
}

package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
)

// Import starts an import of a package. The same request under the same key, if it is not empty, is started
// once.
func (c *Client) Import(ctx context.Context, key string, r api.ImportRequest) (out api.Started, err error) {
	return out, c.start(ctx, "/vms/import", key, r, &out)
}

// Places narrow a list of the infrastructure.
type Places struct {
	Connection string // "": the default one
	Name       string // part of the name
	Datacenter string // inventory path
}

// Inventory lists the things of one kind; out is a pointer to the answer of that kind: *api.Hosts for
// providers.KindHost.
func (c *Client) Inventory(ctx context.Context, kind providers.Kind, f Places, out any) error {
	return c.call(ctx, http.MethodGet, "/inventory/"+url.PathEscape(string(kind)),
		query("connection", f.Connection, "name", f.Name, "datacenter", f.Datacenter), nil, out)
}

// History narrows events, tasks and metrics.
type History struct {
	Connection string // "": the default one
	VM         string
	Host       string // of metrics
	Since      string // a time (RFC 3339), or a duration back from now
	Limit      int    // 0: the server's idea
}

func (h History) query() url.Values {
	limit := ""
	if h.Limit > 0 {
		limit = strconv.Itoa(h.Limit)
	}
	return query("connection", h.Connection, "vm", h.VM, "host", h.Host, "since", h.Since, "limit", limit)
}

// Events tells what happened.
func (c *Client) Events(ctx context.Context, h History) (out api.Events, err error) {
	return out, c.call(ctx, http.MethodGet, "/inventory/events", h.query(), nil, &out)
}

// Tasks tells what the platform does and did.
func (c *Client) Tasks(ctx context.Context, h History) (out api.Tasks, err error) {
	return out, c.call(ctx, http.MethodGet, "/inventory/tasks", h.query(), nil, &out)
}

// Metrics tells how busy a VM or a host was lately.
func (c *Client) Metrics(ctx context.Context, h History) (out api.Metrics, err error) {
	return out, c.call(ctx, http.MethodGet, "/inventory/metrics", h.query(), nil, &out)
}

// query is pairs of a name and a value, without those that are empty.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

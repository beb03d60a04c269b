package apiserver

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ofPlatform are the faults of what is asked of a platform.
var ofPlatform = []int{http.StatusForbidden, http.StatusNotFound, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}

type placesInput struct {
	Connection string `query:"connection" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	Name       string `query:"name" doc:"Part of the name, without regard to case" maxLength:"200"`
	Datacenter string `query:"datacenter" doc:"Only what lies in the datacenter with this inventory path" maxLength:"2048"`
}

type historyInput struct {
	Connection string `query:"connection" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	VM         string `query:"vm" doc:"Inventory path, id or unambiguous name of the only VM to tell of" maxLength:"2048"`
	Since      string `query:"since" doc:"Nothing before: a time, or a duration back from now" example:"24h" maxLength:"40"`
	Limit      int    `query:"limit" doc:"At most so many, the newest; 0: 100" minimum:"0" maximum:"1000"`
}

type metricsInput struct {
	Connection string `query:"connection" doc:"Name of a configured connection; the default one where absent" maxLength:"2048"`
	VM         string `query:"vm" doc:"Inventory path, id or unambiguous name of a VM" maxLength:"2048"`
	Host       string `query:"host" doc:"Inventory path, id or unambiguous name of a host, instead of a VM" maxLength:"2048"`
	Since      string `query:"since" doc:"No samples before: a time, or a duration back from now" example:"10m" maxLength:"40"`
	Limit      int    `query:"limit" doc:"At most so many samples of each metric, the newest; 0: 15" minimum:"0" maximum:"180"`
}

func (s *Server) inventoryOperations(h huma.API) {
	surveyed(s, h, providers.KindDatacenter, "List datacenters", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Datacenters {
		l := chosen(i.Datacenters, in, func(d providers.Datacenter) providers.Place { return d.Place })
		return api.Datacenters{Datacenters: l, Total: len(l), Timestamp: now}
	})
	surveyed(s, h, providers.KindCluster, "List clusters", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Clusters {
		l := chosen(i.Clusters, in, func(c providers.Cluster) providers.Place { return c.Place })
		return api.Clusters{Clusters: l, Total: len(l), Timestamp: now}
	})
	surveyed(s, h, providers.KindHost, "List hosts", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Hosts {
		l := chosen(i.Hosts, in, func(h providers.Host) providers.Place { return h.Place })
		return api.Hosts{Hosts: l, Total: len(l), Timestamp: now}
	})
	surveyed(s, h, providers.KindDatastore, "List datastores", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Datastores {
		l := chosen(i.Datastores, in, func(d providers.Datastore) providers.Place { return d.Place })
		return api.Datastores{Datastores: l, Total: len(l), Timestamp: now}
	})
	surveyed(s, h, providers.KindNetwork, "List networks", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Networks {
		l := chosen(i.Networks, in, func(n providers.Network) providers.Place { return n.Place })
		return api.Networks{Networks: l, Total: len(l), Timestamp: now}
	})
	surveyed(s, h, providers.KindPool, "List resource pools", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Pools {
		l := chosen(i.Pools, in, func(p providers.Pool) providers.Place { return p.Place })
		return api.Pools{Pools: l, Total: len(l), Timestamp: now}
	})
	surveyed(s, h, providers.KindFolder, "List folders", func(i providers.Infrastructure, in *placesInput, now job.Time) api.Folders {
		l := chosen(i.Folders, in, func(f providers.Folder) providers.Place { return f.Place })
		return api.Folders{Folders: l, Total: len(l), Timestamp: now}
	})
	s.historyOperations(h)
}

// surveyed registers the list of one kind of thing.
func surveyed[Out any](s *Server, h huma.API, kind providers.Kind, summary string, answer func(providers.Infrastructure, *placesInput, job.Time) Out) {
	huma.Register(h, operation(http.MethodGet, "/inventory/"+string(kind), "list-"+string(kind), "inventory", summary, "", ofPlatform...),
		func(ctx context.Context, in *placesInput) (*struct{ Body Out }, error) {
			var found providers.Infrastructure
			err := lend(ctx, s, in.Connection, func(ctx context.Context, p providers.Surveyor) (err error) {
				found, err = p.Survey(ctx, kind)
				return err
			})
			return &struct{ Body Out }{answer(found, in, job.Now())}, fail(ctx, err)
		})
}

// chosen are those that a request is for.
func chosen[T any](list []T, in *placesInput, at func(T) providers.Place) []T {
	name := strings.ToLower(in.Name)
	return orEmpty(slices.DeleteFunc(list, func(one T) bool {
		p := at(one)
		return !strings.Contains(strings.ToLower(p.Name), name) || in.Datacenter != "" && p.Datacenter != in.Datacenter && p.Path != in.Datacenter
	}))
}

func (s *Server) historyOperations(h huma.API) {
	bad := append([]int{http.StatusBadRequest}, ofPlatform...)
	huma.Register(h, operation(http.MethodGet, "/inventory/events", "list-events", "inventory", "What happened on a platform", "", bad...),
		func(ctx context.Context, in *historyInput) (*struct{ Body api.Events }, error) {
			var out []providers.Event
			err := history(ctx, s, in, func(ctx context.Context, p providers.Historian, f providers.HistoryFilter) (err error) {
				out, err = p.Events(ctx, f)
				return err
			})
			return &struct{ Body api.Events }{api.Events{Events: orEmpty(out), Total: len(out), Timestamp: job.Now()}}, fail(ctx, err)
		})
	huma.Register(h, operation(http.MethodGet, "/inventory/tasks", "list-tasks", "inventory", "What a platform does and did", "", bad...),
		func(ctx context.Context, in *historyInput) (*struct{ Body api.Tasks }, error) {
			var out []providers.Task
			err := history(ctx, s, in, func(ctx context.Context, p providers.Historian, f providers.HistoryFilter) (err error) {
				out, err = p.Tasks(ctx, f)
				return err
			})
			return &struct{ Body api.Tasks }{api.Tasks{Tasks: orEmpty(out), Total: len(out), Timestamp: job.Now()}}, fail(ctx, err)
		})
	huma.Register(h, operation(http.MethodGet, "/inventory/metrics", "list-metrics", "inventory", "How busy a VM or a host was lately",
		"Samples are 20 seconds apart.", bad...),
		func(ctx context.Context, in *metricsInput) (*struct{ Body api.Metrics }, error) {
			var out []providers.Metric
			since, err := moment(in.Since)
			if err == nil {
				err = lend(ctx, s, in.Connection, func(ctx context.Context, p providers.Gauger) (err error) {
					out, err = p.Metrics(ctx, providers.MetricFilter{VM: in.VM, Host: in.Host, Since: since, Limit: in.Limit})
					return err
				})
			}
			return &struct{ Body api.Metrics }{api.Metrics{Metrics: orEmpty(out), Total: len(out), Timestamp: job.Now()}}, fail(ctx, err)
		})
}

func history(ctx context.Context, s *Server, in *historyInput, tell func(context.Context, providers.Historian, providers.HistoryFilter) error) error {
	since, err := moment(in.Since)
	if err != nil {
		return err
	}
	return lend(ctx, s, in.Connection, func(ctx context.Context, p providers.Historian) error {
		return tell(ctx, p, providers.HistoryFilter{VM: in.VM, Since: since, Limit: in.Limit})
	})
}

// moment reads a time, or a duration back from now; "" is the zero time.
func moment(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return time.Now().Add(-d), nil
	}
	return time.Time{}, invalid(http.StatusUnprocessableEntity, []job.FieldError{{
		Field: "since", Message: `must be a time such as "2026-03-01T12:00:00Z" or a duration such as "24h"`,
	}})
}

// lend lends a configured connection as what is needed of it.
func lend[C any](ctx context.Context, s *Server, connection string, use func(context.Context, C) error) error {
	if faults := checkConnection(connection, false); len(faults) > 0 {
		return invalid(http.StatusUnprocessableEntity, faults)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	p, err := s.deps.Connections.Open(ctx, connection)
	if err != nil {
		return err
	}
	c, err := providers.As[C](p)
	if err != nil {
		return err
	}
	return use(ctx, c)
}

package providertest

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
)

// infrastructure examines [providers.Surveyor].
func (h Harness) infrastructure(t *testing.T) {
	p := h.open(t)
	s := capability[providers.Surveyor](t, p)
	all, err := s.Survey(t.Context())
	require.NoError(t, err)
	require.NotEmpty(t, all.Hosts)
	require.NotEmpty(t, all.Datastores)
	places := [][]providers.Place{
		placesOf(all.Datacenters, func(d providers.Datacenter) providers.Place { return d.Place }),
		placesOf(all.Clusters, func(c providers.Cluster) providers.Place { return c.Place }),
		placesOf(all.Hosts, func(h providers.Host) providers.Place { return h.Place }),
		placesOf(all.Datastores, func(d providers.Datastore) providers.Place { return d.Place }),
		placesOf(all.Networks, func(n providers.Network) providers.Place { return n.Place }),
		placesOf(all.Pools, func(p providers.Pool) providers.Place { return p.Place }),
		placesOf(all.Folders, func(f providers.Folder) providers.Place { return f.Place }),
	}
	ids := map[string]bool{}
	for _, list := range places {
		require.True(t, slices.IsSortedFunc(list, func(a, b providers.Place) int {
			if a.Path < b.Path {
				return -1
			}
			return 0
		}), "ordered by path")
		for _, one := range list {
			require.NotEmpty(t, one.ID)
			require.NotEmpty(t, one.Name)
			require.Regexp(t, "^/", one.Path)
			require.False(t, ids[one.ID], "%s is there twice", one.ID)
			ids[one.ID] = true
		}
	}
	some, err := s.Survey(t.Context(), providers.KindDatastore)
	require.NoError(t, err)
	require.Equal(t, providers.Infrastructure{Datastores: all.Datastores}, some, "only what was asked for")
	_, err = s.Survey(cancelled(t))
	require.ErrorIs(t, err, providers.Canceled)
}

func placesOf[T any](list []T, at func(T) providers.Place) (out []providers.Place) {
	for _, one := range list {
		out = append(out, at(one))
	}
	return out
}

// history examines [providers.Historian].
func (h Harness) history(t *testing.T) {
	p := h.open(t)
	c := capability[providers.Historian](t, p)
	events, err := c.Events(t.Context(), providers.HistoryFilter{Limit: 3})
	require.NoError(t, err)
	require.NotEmpty(t, events)
	require.LessOrEqual(t, len(events), 3)
	require.True(t, slices.IsSortedFunc(events, func(a, b providers.Event) int { return b.Time.Compare(a.Time) }), "the newest first")
	tasks, err := c.Tasks(t.Context(), providers.HistoryFilter{})
	require.NoError(t, err)
	require.True(t, slices.IsSortedFunc(tasks, func(a, b providers.Task) int { return b.Queued.Compare(a.Queued) }), "the newest first")
	for _, f := range []providers.HistoryFilter{{VM: h.VM}, {VM: h.VM, Since: time.Now().Add(time.Hour)}} {
		about, err := c.Events(t.Context(), f)
		require.NoError(t, err)
		for _, e := range about {
			require.True(t, f.Since.IsZero(), "nothing from the future")
			require.NotEmpty(t, e.Type)
		}
	}
	_, err = c.Tasks(t.Context(), providers.HistoryFilter{VM: string(h.Absent)})
	require.ErrorIs(t, err, providers.NotFound)
	_, err = c.Events(t.Context(), providers.HistoryFilter{Limit: providers.MaxHistory + 1})
	require.ErrorIs(t, err, providers.Invalid)
}

// metrics examines [providers.Gauger].
func (h Harness) metrics(t *testing.T) {
	p := h.open(t)
	c := capability[providers.Gauger](t, p)
	got, err := c.Metrics(t.Context(), providers.MetricFilter{VM: h.VM, Limit: 4})
	require.NoError(t, err)
	for _, m := range got {
		require.NotEmpty(t, m.Name)
		require.NotEmpty(t, m.Unit)
		require.LessOrEqual(t, len(m.Samples), 4)
		require.True(t, slices.IsSortedFunc(m.Samples, func(a, b providers.Sample) int { return a.Time.Compare(b.Time) }), "ascending")
	}
	for _, f := range []providers.MetricFilter{{}, {VM: h.VM, Host: "a"}, {VM: h.VM, Limit: -1}} {
		_, err := c.Metrics(t.Context(), f)
		require.ErrorIs(t, err, providers.Invalid)
	}
	_, err = c.Metrics(t.Context(), providers.MetricFilter{VM: string(h.Absent)})
	require.ErrorIs(t, err, providers.NotFound)
}

// packageImport examines [providers.PackageImporter].
func (h Harness) packageImport(t *testing.T) {
	pkg, to := h.Package(t)
	p := h.open(t)
	c := capability[providers.PackageImporter](t, p)
	plan, err := c.PlanImport(t.Context(), pkg.Descriptor, to)
	require.NoError(t, err)
	require.Len(t, plan.Files, len(pkg.Files))
	again, err := c.PlanImport(t.Context(), pkg.Descriptor, plan.Target)
	require.NoError(t, err)
	require.Equal(t, plan.Target, again.Target, "places that were found are found again")
	require.NoError(t, c.DiscardImport(t.Context(), plan.Target, "exam"), "nothing is there")

	vm, err := c.ImportPackage(t.Context(), pkg, plan.Target, "exam")
	require.NoError(t, err)
	require.Equal(t, to.Name, vm.Name)
	require.Equal(t, providers.PowerOff, vm.PowerState)
	same, err := c.ImportPackage(t.Context(), pkg, plan.Target, "exam")
	require.NoError(t, err)
	require.Equal(t, vm.ID, same.ID, "idempotent in its key")
	require.NoError(t, c.DiscardImport(t.Context(), plan.Target, "exam"))
	_, err = capability[providers.Inventory](t, p).VM(t.Context(), string(vm.ID))
	require.NoError(t, err, "what is complete stays")
	_, err = c.ImportPackage(t.Context(), pkg, plan.Target, "other")
	require.ErrorIs(t, err, providers.Exists)
	_, err = c.ImportPackage(t.Context(), pkg, providers.ImportTarget{}, "exam")
	require.ErrorIs(t, err, providers.Invalid)
}

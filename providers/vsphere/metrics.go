package vsphere

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

const (
	// realtime is how far two samples of the last hour are apart, in seconds; older ones are coarser and
	// of another kind.
	realtime = 20
	// usualSamples is five minutes.
	usualSamples = 15
	// maxSamples is what a server keeps of the last hour.
	maxSamples = 180
)

// gauges are the counters that are told, of what both VMs and hosts have.
var gauges = []string{
	"cpu.usage.average", "cpu.usagemhz.average", "mem.usage.average", "mem.consumed.average",
	"disk.usage.average", "net.usage.average",
}

// Metrics tells how busy a VM or a host was lately.
func (p *Provider) Metrics(ctx context.Context, f providers.MetricFilter) ([]providers.Metric, error) {
	const op = "read metrics"
	object := f.VM + f.Host
	limit := f.Limit
	switch {
	case (f.VM == "") == (f.Host == ""):
		return nil, &providers.Error{Op: "vsphere: " + op, Reason: providers.Invalid, Msg: "name a VM or a host, and not both"}
	case limit < 0 || limit > maxSamples:
		return nil, &providers.Error{Op: "vsphere: " + op, Object: object, Reason: providers.Invalid, Msg: fmt.Sprintf("a limit is from 1 to %d samples", maxSamples)}
	case limit == 0:
		limit = usualSamples
	}
	entity, err := p.gauged(ctx, f)
	if err != nil {
		return nil, fail(op, object, err)
	}
	counters, err := p.counters(ctx)
	if err != nil {
		return nil, fail(op, object, err)
	}
	out, err := p.samples(ctx, entity, counters, f.Since, limit)
	return out, fail(op, object, err)
}

// gauged is what metrics are wanted of.
func (p *Provider) gauged(ctx context.Context, f providers.MetricFilter) (types.ManagedObjectReference, error) {
	if f.VM != "" {
		m, err := p.find(ctx, f.VM)
		if err != nil {
			return types.ManagedObjectReference{}, err
		}
		return m.Self, nil
	}
	s, err := p.survey(ctx, providers.KindHost)
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	h, err := choose("host", f.Host, s.Hosts, func(h providers.Host) providers.Place { return h.Place })
	return types.ManagedObjectReference{Type: "HostSystem", Value: h.ID}, err
}

// counters are those of the server that are told, by their number.
func (p *Provider) counters(ctx context.Context) (map[int32]types.PerfCounterInfo, error) {
	m, err := load[mo.PerformanceManager](ctx, p, *p.soap.ServiceContent.PerfManager, "perfCounter")
	if err != nil {
		return nil, err
	}
	out := map[int32]types.PerfCounterInfo{}
	for _, c := range m.PerfCounter {
		if slices.Contains(gauges, counterName(c)) {
			out[c.Key] = c
		}
	}
	return out, nil
}

func counterName(c types.PerfCounterInfo) string {
	if c.GroupInfo == nil || c.NameInfo == nil {
		return ""
	}
	return c.GroupInfo.GetElementDescription().Key + "." + c.NameInfo.GetElementDescription().Key + "." + string(c.RollupType)
}

func (p *Provider) samples(ctx context.Context, entity types.ManagedObjectReference, counters map[int32]types.PerfCounterInfo, since time.Time, limit int) ([]providers.Metric, error) {
	spec := types.PerfQuerySpec{Entity: entity, IntervalId: realtime, MaxSample: int32(limit)}
	if !since.IsZero() {
		spec.StartTime = &since
	}
	for key := range counters {
		spec.MetricId = append(spec.MetricId, types.PerfMetricId{CounterId: key}) // "": of all instances together
	}
	slices.SortFunc(spec.MetricId, func(a, b types.PerfMetricId) int { return int(a.CounterId - b.CounterId) })
	res, err := methods.QueryPerf(ctx, p.soap, &types.QueryPerf{This: *p.soap.ServiceContent.PerfManager, QuerySpec: []types.PerfQuerySpec{spec}})
	if err != nil {
		return nil, err
	}
	out := []providers.Metric{}
	for _, b := range res.Returnval {
		m, ok := b.(*types.PerfEntityMetric)
		if !ok {
			continue
		}
		for _, v := range m.Value {
			s, ok := v.(*types.PerfMetricIntSeries)
			c, known := counters[v.GetPerfMetricSeries().Id.CounterId]
			if !ok || !known || s.Id.Instance != "" {
				continue
			}
			out = append(out, metric(c, m.SampleInfo, s.Value))
		}
	}
	slices.SortFunc(out, func(a, b providers.Metric) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func metric(c types.PerfCounterInfo, at []types.PerfSampleInfo, values []int64) providers.Metric {
	m := providers.Metric{Name: counterName(c), Samples: []providers.Sample{}}
	m.Label = c.NameInfo.GetElementDescription().Label
	scale := 1.0
	if c.UnitInfo != nil {
		m.Unit = c.UnitInfo.GetElementDescription().Key
	}
	if m.Unit == string(types.PerformanceManagerUnitPercent) {
		scale = 0.01 // it is told in hundredths
	}
	for i := range min(len(at), len(values)) {
		if values[i] >= 0 { // less is no sample
			m.Samples = append(m.Samples, providers.Sample{Time: at[i].Timestamp.UTC(), Value: float64(values[i]) * scale})
		}
	}
	slices.SortStableFunc(m.Samples, func(a, b providers.Sample) int { return a.Time.Compare(b.Time) })
	return m
}

package vsphere

import (
	"context"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// usualHistory is how much is told where nobody says how much is wanted.
const usualHistory = 100

// Events tells what happened, the newest first.
func (p *Provider) Events(ctx context.Context, f providers.HistoryFilter) ([]providers.Event, error) {
	const op = "list events"
	entity, limit, err := p.subject(ctx, f)
	if err != nil {
		return nil, fail(op, f.VM, err)
	}
	spec := types.EventFilterSpec{}
	if entity != nil {
		spec.Entity = &types.EventFilterSpecByEntity{Entity: *entity, Recursion: types.EventFilterSpecRecursionOptionSelf}
	}
	if !f.Since.IsZero() {
		spec.Time = &types.EventFilterSpecByTime{BeginTime: &f.Since}
	}
	made, err := methods.CreateCollectorForEvents(ctx, p.soap, &types.CreateCollectorForEvents{
		This: *p.soap.ServiceContent.EventManager, Filter: spec,
	})
	if err != nil {
		return nil, fail(op, f.VM, err)
	}
	c, err := latest[mo.EventHistoryCollector](ctx, p, made.Returnval, limit)
	if err != nil {
		return nil, fail(op, f.VM, err)
	}
	out := make([]providers.Event, 0, len(c.LatestPage))
	for _, e := range c.LatestPage {
		out = append(out, event(e))
	}
	return out[:min(limit, len(out))], nil
}

// Tasks tells what the server does and did, the newest first.
func (p *Provider) Tasks(ctx context.Context, f providers.HistoryFilter) ([]providers.Task, error) {
	const op = "list tasks"
	entity, limit, err := p.subject(ctx, f)
	if err != nil {
		return nil, fail(op, f.VM, err)
	}
	spec := types.TaskFilterSpec{}
	if entity != nil {
		spec.Entity = &types.TaskFilterSpecByEntity{Entity: *entity, Recursion: types.TaskFilterSpecRecursionOptionSelf}
	}
	if !f.Since.IsZero() {
		spec.Time = &types.TaskFilterSpecByTime{TimeType: types.TaskFilterSpecTimeOptionQueuedTime, BeginTime: &f.Since}
	}
	made, err := methods.CreateCollectorForTasks(ctx, p.soap, &types.CreateCollectorForTasks{
		This: *p.soap.ServiceContent.TaskManager, Filter: spec,
	})
	if err != nil {
		return nil, fail(op, f.VM, err)
	}
	c, err := latest[mo.TaskHistoryCollector](ctx, p, made.Returnval, limit)
	if err != nil {
		return nil, fail(op, f.VM, err)
	}
	out := make([]providers.Task, 0, len(c.LatestPage))
	for _, t := range c.LatestPage {
		out = append(out, task(t))
	}
	return out[:min(limit, len(out))], nil
}

// subject is what a filter is about, nil for everything, and how much it wants.
func (p *Provider) subject(ctx context.Context, f providers.HistoryFilter) (*types.ManagedObjectReference, int, error) {
	limit := f.Limit
	switch {
	case limit < 0 || limit > providers.MaxHistory:
		return nil, 0, &providers.Error{Op: "vsphere: history", Reason: providers.Invalid,
			Msg: "a limit is from 1 to " + strconv.Itoa(providers.MaxHistory)}
	case limit == 0:
		limit = usualHistory
	}
	if f.VM == "" {
		return nil, limit, nil
	}
	m, err := p.find(ctx, f.VM)
	if err != nil {
		return nil, 0, err
	}
	return &m.Self, limit, nil
}

// latest reads the newest page of a collector, which it destroys: a session may have a few of them only.
func latest[T any](ctx context.Context, p *Provider, collector types.ManagedObjectReference, size int) (T, error) {
	defer func() {
		detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), brief)
		defer cancel()
		_, _ = methods.DestroyCollector(detached, p.soap, &types.DestroyCollector{This: collector}) // else the session's end does it
	}()
	_, err := methods.SetCollectorPageSize(ctx, p.soap, &types.SetCollectorPageSize{This: collector, MaxCount: int32(size)})
	if err != nil {
		var none T
		return none, err
	}
	return load[T](ctx, p, collector, "latestPage")
}

func event(b types.BaseEvent) providers.Event {
	e := b.GetEvent()
	out := providers.Event{
		ID: strconv.Itoa(int(e.Key)), Time: e.CreatedTime.UTC(), Type: reflect.Indirect(reflect.ValueOf(b)).Type().Name(),
		Message: e.FullFormattedMessage, User: e.UserName,
	}
	if x, ok := b.(*types.EventEx); ok {
		out.Type = x.EventTypeId
	}
	if e.Vm != nil {
		out.VM = unescape(e.Vm.Name)
	}
	if e.Host != nil {
		out.Host = unescape(e.Host.Name)
	}
	return out
}

func task(t types.TaskInfo) providers.Task {
	out := providers.Task{
		ID: t.Key, Operation: t.DescriptionId, Entity: unescape(t.EntityName), State: string(t.State), Progress: int(t.Progress),
		Queued: t.QueueTime.UTC(), Started: utc(t.StartTime), Completed: utc(t.CompleteTime),
	}
	if out.Operation == "" {
		out.Operation = strings.TrimSuffix(t.Name, "_Task")
	}
	if u, ok := t.Reason.(*types.TaskReasonUser); ok {
		out.User = u.UserName
	}
	if t.Error != nil {
		out.Error = strings.TrimPrefix(newTaskError(t.Error).Error(), "the task failed: ")
	}
	if t.State == types.TaskInfoStateSuccess {
		out.Progress = 100
	}
	return out
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

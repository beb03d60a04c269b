package vsphere

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	firstPoll = 20 * time.Millisecond
	lastPoll  = time.Second
	// brief is how long cleaning up may take after the caller has given up.
	brief = time.Second
)

// wait waits until a task has ended and answers its result. When ctx ends first the task is cancelled.
//
// The task is asked, at growing intervals, rather than watched: a watch is tied to the session and
// would be lost with it, and to one connection that may fall silent.
func (p *Provider) wait(ctx context.Context, task types.ManagedObjectReference) (types.AnyType, error) {
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		t, err := load[mo.Task](ctx, p, task, "info.state", "info.error", "info.result")
		if err != nil {
			return nil, p.giveUp(ctx, task, err)
		}
		switch t.Info.State {
		case types.TaskInfoStateSuccess:
			return t.Info.Result, nil
		case types.TaskInfoStateError:
			return nil, newTaskError(t.Info.Error)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, p.giveUp(ctx, task, err)
		}
	}
}

// giveUp cancels the task where the caller no longer wants it. Some tasks cannot be cancelled; they
// run to their end and the caller undoes what they did.
func (p *Provider) giveUp(ctx context.Context, task types.ManagedObjectReference, err error) error {
	if ctx.Err() == nil {
		return err
	}
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), brief)
	defer cancel()
	_, _ = methods.CancelTask(detached, p.soap, &types.CancelTask{This: task})
	return err
}

// running says whether a task that does what, "clone" or "createSnapshot", is under way on a VM. It may
// be one whose id never reached us: its call was carried out, and the answer was lost.
func (p *Provider) running(ctx context.Context, vm types.ManagedObjectReference, what string) (bool, error) {
	objects, err := p.retrieve(ctx, types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{
			Obj: vm, Skip: types.NewBool(true),
			SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{Type: "ManagedEntity", Path: "recentTask"}},
		}},
		PropSet: []types.PropertySpec{{Type: "Task", PathSet: []string{"info.descriptionId", "info.state"}}},
	})
	if err != nil {
		return false, err
	}
	for _, o := range objects {
		o.MissingSet = nil // a task that we may not see is not ours
		entity, err := decode(o)
		if err != nil {
			return false, err
		}
		t, _ := entity.(mo.Task)
		under := t.Info.State == types.TaskInfoStateRunning || t.Info.State == types.TaskInfoStateQueued
		if under && strings.Contains(strings.ToLower(t.Info.DescriptionId), strings.ToLower(what)) {
			return true, nil
		}
	}
	return false, nil
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// taskError is a task that failed.
type taskError struct {
	fault types.BaseMethodFault
	text  string
}

func newTaskError(f *types.LocalizedMethodFault) error {
	if f == nil {
		return errors.New("the task failed and does not say why")
	}
	text := f.LocalizedMessage
	if text == "" && f.Fault != nil {
		text = reflect.Indirect(reflect.ValueOf(f.Fault)).Type().Name()
	}
	return &taskError{fault: f.Fault, text: text}
}

func (e *taskError) Error() string                { return fmt.Sprintf("the task failed: %s", e.text) }
func (e *taskError) Fault() types.BaseMethodFault { return e.fault }

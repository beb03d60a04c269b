package vspheretest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// task is a task of the API that this package runs, rather than the simulator. The simulator's own
// hold the lock of the VM while they run, so that nobody could look at it meanwhile.
type task struct {
	name   string                       // of the method: "CreateSnapshot_Task"
	entity types.ManagedObjectReference // what it is done to
	delay  time.Duration                // before anything is done
	fail   *types.LocalizedMethodFault  // it fails with this, after delay and without doing anything
	vm     *machine                     // where only one task at a time may run; nil otherwise
	do     func() (types.AnyType, *types.LocalizedMethodFault)
}

// start makes the task known and lets it run. It answers the task's id.
func (s *Server) start(t task) types.ManagedObjectReference {
	name := strings.TrimSuffix(t.name, "_Task")
	obj := simulator.CreateTask(t.entity, strings.ToLower(name[:1])+name[1:]+"Task", nil)
	if e, ok := s.reg.Get(t.entity).(mo.Entity); ok {
		obj.Info.EntityName = e.Entity().Name
	}
	obj.Info.Reason = &types.TaskReasonUser{UserName: s.opt.Username}
	obj.Info.Cancelable = true
	obj.Info.State = types.TaskInfoStateRunning
	obj.Info.StartTime = types.NewTime(now())
	ref := s.reg.Put(obj).Reference()
	ctx := s.sim()
	s.reg.AtomicUpdate(ctx, obj, []types.PropertyChange{{Name: "info.key", Val: ref.Value}, {Name: "info.task", Val: ref}})
	s.work.Go(func() { s.run(obj, t) })
	return ref
}

func (s *Server) run(obj *simulator.Task, t task) {
	if !wait(s.ctx, t.delay) {
		return
	}
	var result types.AnyType
	fail := t.fail
	switch {
	case s.ended(obj): // canceled
		return
	case fail != nil:
	case t.vm != nil && !t.vm.busy.TryLock():
		fail = fault(&types.TaskInProgress{Task: obj.Self}, "Another task is already in progress.")
	default:
		result, fail = t.do()
		if t.vm != nil {
			t.vm.busy.Unlock()
		}
	}
	end := []types.PropertyChange{
		{Name: "info.completeTime", Val: now()},
		{Name: "info.state", Val: types.TaskInfoStateSuccess},
		{Name: "info.result", Val: result},
	}
	if fail != nil {
		end[1].Val = types.TaskInfoStateError
		end[2] = types.PropertyChange{Name: "info.error", Val: *fail}
	} else {
		end = append(end, types.PropertyChange{Name: "info.progress", Val: int32(100)})
	}
	s.reg.AtomicUpdate(s.sim(), obj, end)
}

// ended says whether a task came to its end by itself or was canceled.
func (s *Server) ended(obj *simulator.Task) (done bool) {
	s.sim().WithLock(obj, func() { done = over(obj.Info.State) })
	return done
}

func over(state types.TaskInfoState) bool {
	return state == types.TaskInfoStateSuccess || state == types.TaskInfoStateError
}

// wait lets d pass. It is false if ctx ended before.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// fault is f with the words that a client shows.
func fault(f types.BaseMethodFault, format string, args ...any) *types.LocalizedMethodFault {
	return &types.LocalizedMethodFault{Fault: f, LocalizedMessage: fmt.Sprintf(format, args...)}
}

// observer hears of every change of the simulator's objects.
type observer struct {
	server *Server

	mu      sync.Mutex
	waiting map[types.ManagedObjectReference]chan struct{} // for the end of a task
}

// Reference is the observer's own name among the simulator's objects.
func (*observer) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Observer", Value: "vspheretest"}
}

// PutObject is called for every new object.
func (*observer) PutObject(*simulator.Context, mo.Reference) {}

// UpdateObject is called for every change of an object, which is locked meanwhile.
func (o *observer) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	switch x := obj.(type) {
	case *mo.Task:
		if !over(x.Info.State) {
			return
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if c, ok := o.waiting[x.Self]; ok {
			close(c)
			delete(o.waiting, x.Self)
		}
	case *mo.VirtualMachine:
		for _, c := range changes {
			if c.Name == "runtime.powerState" {
				o.server.powered(x.Self, x.Runtime.PowerState)
				o.server.retrack(x)
			}
		}
	}
}

// RemoveObject is called for every object that goes.
func (o *observer) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	if ref.Type == "VirtualMachine" {
		o.server.forget(ref)
	}
}

// await waits for the end of one of the simulator's tasks. The error is that of ctx, or the task's.
func (o *observer) await(ctx context.Context, ref types.ManagedObjectReference) (types.TaskInfo, error) {
	o.mu.Lock()
	c, ok := o.waiting[ref]
	if !ok {
		c = make(chan struct{})
		o.waiting[ref] = c
	}
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		delete(o.waiting, ref)
		o.mu.Unlock()
	}()
	obj := o.server.reg.Get(ref).(*simulator.Task)
	info := func() (info types.TaskInfo) {
		o.server.sim().WithLock(obj, func() { info = obj.Info })
		return info
	}
	i := info()
	if !over(i.State) { // else it ended before anybody waited
		select {
		case <-ctx.Done():
			return i, ctx.Err()
		case <-c:
		}
		i = info()
	}
	if i.Error != nil {
		return i, &taskError{*i.Error}
	}
	return i, nil
}

// taskError is the fault that a task ended with.
type taskError struct{ types.LocalizedMethodFault }

func (e *taskError) Error() string { return fmt.Sprintf("%s (%T)", e.LocalizedMessage, e.Fault) }

package vsphere

import (
	"context"
	"strings"

	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// lockedDrive is how a VM calls the question whether a CD drive is to be disconnected although the
// guest holds on to what is in it.
const lockedDrive = "msg.cdromdisconnect.locked"

// waitFor waits for a task on a VM, in which the VM may stop and ask. That the guest holds on to a
// drive which is to be taken from it is answered with yes: that is what was asked for. Any other
// question is for people, and ends the task.
func (p *Provider) waitFor(ctx context.Context, vm providers.VMID, task types.ManagedObjectReference) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := p.answer(ctx, vm); err != nil {
			stop(err)
		}
	}()
	_, err := p.wait(ctx, task)
	asked := context.Cause(ctx)
	stop(nil)
	<-done
	if err != nil && providers.ReasonOf(asked) == providers.Precondition {
		return asked
	}
	return err
}

// answer watches for questions of a VM until ctx ends.
func (p *Provider) answer(ctx context.Context, vm providers.VMID) error {
	for {
		if sleep(ctx, lastPoll) != nil {
			return nil
		}
		m, err := load[mo.VirtualMachine](ctx, p, vmRef(vm), "runtime")
		q := m.Runtime.Question
		if err != nil || q == nil {
			continue // the task itself tells what is wrong
		}
		if choice, ok := yes(q); ok {
			_, _ = methods.AnswerVM(ctx, p.soap, &types.AnswerVM{This: vmRef(vm), QuestionId: q.Id, AnswerChoice: choice}) // it is asked again
			continue
		}
		return &providers.Error{Op: "vsphere: wait for", Object: string(vm), Reason: providers.Precondition,
			Msg: "the VM waits for somebody to answer it: " + strings.TrimSpace(q.Text)}
	}
}

// yes is the choice that says yes to the one question that this package answers.
func yes(q *types.VirtualMachineQuestionInfo) (key string, ok bool) {
	for _, m := range q.Message {
		ok = ok || m.Id == lockedDrive
	}
	if !ok {
		return "", false
	}
	for _, c := range q.Choice.ChoiceInfo {
		if d := c.GetElementDescription(); strings.EqualFold(d.Label, "yes") || strings.HasSuffix(strings.ToLower(d.Label), ".yes") {
			return d.Key, true
		}
	}
	return "0", true // of the buttons that such a question has, the first is yes
}

package apiservertest

import (
	"context"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"

	"hypersdk/workflows/job"
)

// Chains says what chains are made of; without it there are none.
func (t *Temporal) Chains(f func(job.ChainQuery) (*job.ChainView, error)) {
	t.set(func() { t.chains = f })
}

type chainRun struct {
	client.WorkflowRun
	view *job.ChainView
	err  error
}

func (r chainRun) Get(_ context.Context, into any) error {
	if r.err == nil {
		*into.(*job.ChainView) = *r.view
	}
	return r.err
}

// listChain looks at a chain. The lock is held.
func (t *Temporal) listChain(q job.ChainQuery) client.WorkflowRun {
	if t.chains == nil {
		return chainRun{err: temporal.NewNonRetryableApplicationError("chain: open the chain: not found", "not_found", nil)}
	}
	view, err := t.chains(q)
	return chainRun{view: view, err: err}
}

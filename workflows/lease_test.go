package workflows

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ways are a transport that reads block by block, and one that reads under a lease.
func ways(why string) []providers.Transport {
	return []providers.Transport{{Name: "datastore", Resumable: true, Why: why}, {Name: "nfc", Leased: true}}
}

// elsewhere is a transfer whose transport is refused when it comes to it.
func elsewhere() error {
	return temporal.NewApplicationErrorWithOptions("another snapshot came between", string(providers.Precondition), temporal.ApplicationErrorOptions{
		NonRetryable: true, Details: []any{activities.Refused{Transport: "datastore", Why: "another snapshot came between"}},
	})
}

func TestPlanChoosesATransport(t *testing.T) {
	block := providers.Transport{Name: "datastore"}
	leased := providers.Transport{Name: "nfc", Leased: true}
	not := func(t providers.Transport, why string) providers.Transport { t.Why = why; return t }
	for _, c := range []struct {
		name      string
		ways      []providers.Transport
		forced    string
		able      []string // nil: of all
		transport string
		leased    bool
		why, then string
	}{
		{name: "the best, and then the next", ways: []providers.Transport{block, leased}, transport: "datastore", then: "nfc"},
		{name: "only one", ways: []providers.Transport{block}, transport: "datastore"},
		{name: "the best that is safe", ways: []providers.Transport{not(block, "vSAN"), leased}, transport: "nfc", leased: true, why: "datastore: vSAN"},
		{name: "blocks before a lease", ways: []providers.Transport{not(block, "vSAN"), {Name: "vddk", Resumable: true}, leased}, transport: "vddk", why: "datastore: vSAN", then: "nfc"},
		{name: "what comes after is not told", ways: []providers.Transport{not(block, "vSAN"), leased, {Name: "vddk", Why: "not configured"}}, transport: "nfc", leased: true, why: "datastore: vSAN"},
		{name: "never from a lease to blocks", ways: []providers.Transport{leased, block}, transport: "nfc", leased: true},
		{name: "no other one that is usable", ways: []providers.Transport{block, not(leased, "encrypted")}, transport: "datastore"},
		{name: "forced to blocks", ways: []providers.Transport{block, leased}, forced: "datastore", transport: "datastore", why: "it was asked for"},
		{name: "forced to a lease", ways: []providers.Transport{block, leased}, forced: "nfc", transport: "nfc", leased: true, why: "it was asked for"},
		{name: "no lease without the ability", ways: []providers.Transport{block, leased}, able: []string{"disk-source", "snapshot"}, transport: "datastore"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, f := spec(), facts()
			f.Transports, s.Options.Transport = c.ways, c.forced
			if c.able != nil {
				f.Capabilities = c.able
			}
			p, err := makePlan(s, f)
			require.NoError(t, err)
			require.Equal(t, []any{c.transport, c.leased, c.why, c.then}, []any{p.Transport, p.Leased, p.Why, p.Else})
		})
	}
	t.Run("a lease without the ability says so", func(t *testing.T) {
		f := facts()
		f.Transports, f.Capabilities = []providers.Transport{not(block, "vSAN"), leased}, []string{"disk-source", "snapshot"}
		_, err := makePlan(spec(), f)
		require.ErrorContains(t, err, `datastore: vSAN; nfc: vsphere has no ability "disk-leaser"`)
	})
}

func TestExportUnderALease(t *testing.T) {
	s := newStage(t)
	s.ways = ways("vSAN gives out no files")
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	require.Contains(t, s.called(), "lease-disks nfc")
	require.Equal(t, HostQueue("h1"), s.queues["lease-disks nfc"])
	require.NotContains(t, s.called(), "transfer-disk web-01-disk-1.qcow2")
	in := s.last[activities.LeaseActivity].(activities.LeaseRequest)
	require.Equal(t, providers.SnapshotRef{VM: "vm-42", Snapshot: "snapshot-7"}, in.Ref)
	require.Equal(t, "datastore: vSAN gives out no files", in.Why)
	require.Len(t, in.Disks, 2, "all disks under one lease")

	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, "nfc", r.Transport)
	require.EqualValues(t, gib/2, r.Disks[0].Read)
	require.EqualValues(t, 1, r.Disks[1].Retries)
	require.Equal(t, "datastore: vSAN gives out no files", s.status().Progress.TransportReason)
}

func TestExportFallsBackToALease(t *testing.T) {
	s := newStage(t)
	s.ways = ways("")
	s.beside("transfer-disk web-01-disk-1.qcow2", "transfer-disk web-01-disk-2.qcow2", failing(elsewhere()))
	s.export(spec())
	require.NoError(t, s.GetWorkflowError())
	in := s.last[activities.LeaseActivity].(activities.LeaseRequest)
	require.Len(t, in.Disks, 2, "a disk that was begun the other way begins anew")
	require.Equal(t, "datastore: another snapshot came between", in.Why)
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, "nfc", r.Transport)
	p := s.status().Progress
	require.Equal(t, "nfc", p.Transport)
	require.Equal(t, "datastore: another snapshot came between", p.TransportReason)
	require.Equal(t, "nfc", s.last[activities.FinishActivity].(activities.FinishRequest).Via)
}

func TestWhatDoesNotFallBack(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		ways []providers.Transport
		spec func(*job.Spec)
	}{
		{"a target that is denied", temporal.NewNonRetryableApplicationError("read-only", string(providers.Denied), nil), ways(""), nil},
		{"no other transport", elsewhere(), ways("")[:1], nil},
		{"a transport that was asked for", elsewhere(), ways(""), func(s *job.Spec) { s.Options.Transport = "datastore" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t)
			s.ways = c.ways
			s.fail["transfer-disk web-01-disk-1.qcow2"] = c.err
			in := spec()
			if c.spec != nil {
				c.spec(&in)
			}
			s.export(in)
			require.Error(t, s.GetWorkflowError())
			require.NotContains(t, s.called(), "lease-disks nfc")
			require.Equal(t, job.Failed, s.status().Status)
		})
	}
}

func TestALeaseThatFailsEndsTheJob(t *testing.T) {
	s := newStage(t)
	s.ways = ways("no")
	s.fail["lease-disks nfc"] = temporal.NewNonRetryableApplicationError("Hard disk 2 (x): not what the manifest says", string(providers.Corrupt), nil)
	s.export(spec())
	st := s.status()
	require.Equal(t, job.Failed, st.Status)
	require.Equal(t, "Hard disk 2 (x): not what the manifest says", st.Error)
	require.Equal(t, string(providers.Corrupt), st.Reason)
	require.Contains(t, s.called(), "drop-snapshot hypersdk-"+testID)
	require.Contains(t, s.called(), "discard web-01")
}

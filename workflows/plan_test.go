package workflows

import (
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

func facts() activities.Facts {
	return activities.Facts{
		Kind: "vsphere", Capabilities: []string{"disk-leaser", "disk-source", "inventory", "snapshot"},
		VM: providers.VM{ID: "vm-42", Name: "web-01", Disks: []providers.Disk{
			{ID: "2000", Label: "Hard disk 1", Size: 40 * gib, Used: 10 * gib, Thin: true, Mode: "persistent"},
			{ID: "2001", Label: "Hard disk 2", Size: 8 * gib},
		}},
		Transports: []providers.Transport{{Name: "hotadd", Why: "no proxy VM"}, {Name: "datastore"}, {Name: "nfc", Leased: true}},
		Format:     activities.FormatFacts{Name: "qcow2", Ext: ".qcow2"},
	}
}

func TestPlan(t *testing.T) {
	no := false
	for _, c := range []struct {
		name   string
		spec   func(*job.Spec)
		facts  func(*activities.Facts)
		phases []job.Phase
		via    string
		need   int64
	}{
		{name: "usual", phases: []job.Phase{job.Snap, job.Transfer, job.Verify, job.Manifest, job.Clean}, via: "datastore", need: 18 * gib},
		{name: "not verified", spec: func(s *job.Spec) { s.Options.NoVerify = true },
			phases: []job.Phase{job.Snap, job.Transfer, job.Manifest, job.Clean}, via: "datastore", need: 18 * gib},
		{name: "transport asked for", spec: func(s *job.Spec) { s.Options.Transport = "nfc" }, via: "nfc", need: 18 * gib},
		{name: "thick", spec: func(s *job.Spec) { s.Thin = &no }, via: "datastore", need: 48 * gib},
		{name: "compressed", spec: func(s *job.Spec) { s.Compress = true }, via: "datastore", need: 9 * gib},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, f := spec(), facts()
			if c.spec != nil {
				c.spec(&s)
			}
			p, err := makePlan(s, f)
			require.NoError(t, err)
			require.Equal(t, c.via, p.Transport)
			require.Equal(t, c.need, p.Need)
			if c.phases != nil {
				require.Equal(t, c.phases, p.Phases)
			}
			require.Equal(t, "web-01-disk-1.qcow2", p.Disks[0].File)
			require.Equal(t, "web-01-disk-2.qcow2", p.Disks[1].File)
			require.Equal(t, "web-01", p.Target.Folder)
		})
	}
}

func TestPlanSays(t *testing.T) {
	no := false
	for _, c := range []struct {
		name   string
		spec   func(*job.Spec)
		facts  func(*activities.Facts)
		reason providers.Reason
		want   string
	}{
		{"incremental and not qcow2", func(s *job.Spec) { s.Incremental, s.Format = true, "raw" }, nil, providers.Invalid, "format must be qcow2"},
		{"incremental and leased", func(s *job.Spec) { s.Incremental, s.Format, s.Options.Transport = true, "", "nfc" }, nil, providers.Unsupported, "nfc: it sends whole disks front to back"},
		{"CD drives", func(s *job.Spec) { s.Options.RemoveCDROM = true }, nil, providers.Unsupported, `no ability "drives"`},
		{"compressed and thick", func(s *job.Spec) { s.Compress, s.Thin = true, &no }, nil, providers.Invalid, "both compressed and allocated in full"},
		{"no snapshots", nil, func(f *activities.Facts) { f.Capabilities = []string{"disk-source"} }, providers.Unsupported, `vsphere has no ability "snapshot"`},
		{"no disks readable", nil, func(f *activities.Facts) { f.Capabilities = []string{"snapshot"} }, providers.Unsupported, `no ability "disk-source"`},
		{"template", nil, func(f *activities.Facts) { f.VM.Template = true }, providers.Unsupported, "web-01 is a template"},
		{"diskless", nil, func(f *activities.Facts) { f.VM.Disks = nil }, providers.Unsupported, "web-01 has no disks"},
		{"too many disks", nil, func(f *activities.Facts) { f.VM.Disks = make([]providers.Disk, MaxDisks+1) }, providers.Unsupported, "at most 120"},
		{"independent disk", nil, func(f *activities.Facts) { f.VM.Disks[0].Mode = "independent_nonpersistent" }, providers.Unsupported, "Hard disk 1 of web-01 is an independent disk"},
		{"nonsense size", nil, func(f *activities.Facts) { f.VM.Disks[0].Size = -1 }, providers.Invalid, "has the size -1"},
		{"format", nil, func(f *activities.Facts) { f.Format.Why = "there is no format floppy" }, providers.Unsupported, "there is no format floppy"},
		{"unknown transport", func(s *job.Spec) { s.Options.Transport = "tape" }, nil, providers.Unsupported, `there is no transport "tape" for web-01; there are: hotadd, datastore, nfc`},
		{"unsafe transport", func(s *job.Spec) { s.Options.Transport = "hotadd" }, nil, providers.Unsupported, "cannot be read now (hotadd: no proxy VM)"},
		{"no transport", nil, func(f *activities.Facts) { f.Transports = nil }, providers.Unsupported, "no way to read the disks"},
		{"all unsafe", nil, func(f *activities.Facts) {
			f.Transports = []providers.Transport{{Name: "a", Why: "x"}, {Name: "b", Why: "y"}}
		}, providers.Unsupported, "(a: x; b: y)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, f := spec(), facts()
			if c.spec != nil {
				c.spec(&s)
			}
			if c.facts != nil {
				c.facts(&f)
			}
			_, err := makePlan(s, f)
			require.ErrorIs(t, err, c.reason)
			require.ErrorContains(t, err, c.want)
		})
	}
}

func TestPlanMeetsTheSnapshot(t *testing.T) {
	p, err := makePlan(spec(), facts())
	require.NoError(t, err)
	grown := []providers.Disk{{ID: "2001", Size: 16 * gib}, {ID: "2000", Size: 40 * gib, Used: 11 * gib}}
	require.NoError(t, p.disksOf(providers.Snapshot{Disks: grown}))
	require.Equal(t, grown[1], p.Disks[0].Disk, "files keep their disks")
	require.Equal(t, int64(16*gib), p.Disks[1].Need)
	require.ErrorIs(t, p.disksOf(providers.Snapshot{Disks: grown[:1]}), providers.Precondition)
	grown[0].ID = "2002"
	require.ErrorContains(t, p.disksOf(providers.Snapshot{Disks: grown}), "was taken from the VM before its snapshot")
}

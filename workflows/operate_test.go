package workflows

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// operations are the activities that change a VM, played.
func operations(s *stage) {
	s.vm.PowerState = providers.PowerOn
	play(s, activities.FindVMActivity, func(in activities.FindVMRequest) (string, activities.FoundVM) {
		return in.VMPath, activities.FoundVM{VM: s.vm}
	})
	play(s, activities.PowerActivity, func(in activities.PowerRequest) (string, activities.Powered) {
		return string(in.Want), activities.Powered{Power: in.Want}
	})
	play(s, activities.ShutDownActivity, func(in activities.ShutDownRequest) (string, activities.Powered) {
		return in.Within.String(), activities.Powered{Power: s.vmAfter()}
	})
	play(s, activities.DrivesActivity, func(in activities.Touch) (string, []providers.Drive) {
		return string(in.VM), []providers.Drive{{CDROM: providers.CDROM{ID: "3000", Label: "CD/DVD drive 1"}, Form: []byte(`{}`)}}
	})
	play(s, activities.RemoveDrivesActivity, func(in activities.DrivesRequest) (string, struct{}) {
		return in.Drives[0].ID, struct{}{}
	})
	play(s, activities.RestoreDrivesActivity, func(in activities.DrivesRequest) (string, struct{}) {
		return in.Drives[0].ID, struct{}{}
	})
	play(s, activities.TakeSnapshotActivity, func(in activities.TakeSnapshotRequest) (string, providers.Snapshot) {
		return in.Name + " " + in.Key, providers.Snapshot{ID: "snapshot-7", Name: in.Name,
			Disks: []providers.Disk{{ID: "2000", ChangeID: "52 de/7"}, {ID: "2001"}}}
	})
	play(s, activities.DeleteSnapshotActivity, func(in activities.DeleteSnapshotRequest) (string, providers.Snapshot) {
		return in.Snapshot, providers.Snapshot{ID: "snapshot-7"}
	})
	play(s, activities.CloneActivity, func(in activities.CloneRequest) (string, providers.VM) {
		return in.Name, providers.VM{ID: "vm-43", Path: "/dc/vm/" + in.Name}
	})
	play(s, activities.SetTemplateActivity, func(in activities.TemplateRequest) (string, struct{}) {
		return fmt.Sprint(in.Template), struct{}{}
	})
	play(s, activities.TrackingActivity, func(in activities.TrackingRequest) (string, providers.TrackingStatus) {
		switch {
		case in.Want == nil:
			return "look", providers.TrackingStatus{Enabled: true, Active: true}
		case *in.Want:
			return "on", providers.TrackingStatus{Enabled: true, Missing: []string{"take a snapshot"}}
		}
		return "off", providers.TrackingStatus{}
	})
}

// vmAfter is the state of the VM once its guest was asked to shut down.
func (s *stage) vmAfter() providers.Power {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stubborn {
		return providers.PowerOn
	}
	return providers.PowerOff
}

func operationStage(t *testing.T) *stage {
	s := newStage(t)
	operations(s)
	return s
}

func TestOperations(t *testing.T) {
	for _, c := range []struct {
		name    string
		in      job.Operation
		setup   func(*stage)
		calls   []string
		message string
		reason  providers.Reason
	}{
		{"power on a VM that is on", job.Operation{Action: job.PowerOn}, nil, nil, "web-01 is on already", ""},
		{"power off", job.Operation{Action: job.PowerOff}, nil, []string{"power poweredOff"}, "web-01 is off", ""},
		{"power off refused", job.Operation{Action: job.PowerOff}, func(s *stage) { s.fail["power poweredOff"] = refused(providers.Denied, "no privilege") },
			[]string{"power poweredOff"}, "no privilege", providers.Denied},
		{"shut down", job.Operation{Action: job.ShutDown}, nil, []string{"shut-down 5m0s"}, "web-01 has shut down", ""},
		{"shut down a VM that is off", job.Operation{Action: job.ShutDown}, func(s *stage) { s.vm.PowerState = providers.PowerOff }, nil, "web-01 is off already", ""},
		{"shut down in vain", job.Operation{Action: job.ShutDown, Timeout: job.Duration(time.Minute)}, func(s *stage) { s.stubborn = true },
			[]string{"shut-down 1m0s"}, "did not shut down within 1m0s", providers.Precondition},
		{"shut down in vain, then power off", job.Operation{Action: job.ShutDown, Timeout: job.Duration(time.Minute), Then: job.ThenPowerOff}, func(s *stage) { s.stubborn = true },
			[]string{"shut-down 1m0s", "power poweredOff"}, "its power was taken away", ""},
		{"nobody to ask", job.Operation{Action: job.ShutDown}, func(s *stage) {
			s.fail["shut-down 5m0s"] = temporal.NewApplicationError("VMware Tools do not run", string(providers.Precondition))
		}, []string{"shut-down 5m0s"}, "VMware Tools do not run", providers.Precondition},
		{"nobody to ask, then power off", job.Operation{Action: job.ShutDown, Then: job.ThenPowerOff}, func(s *stage) {
			s.fail["shut-down 5m0s"] = temporal.NewApplicationError("VMware Tools do not run", string(providers.Precondition))
		}, []string{"shut-down 5m0s", "power poweredOff"}, "its power was taken away", ""},
		{"not allowed, so not powered off either", job.Operation{Action: job.ShutDown, Then: job.ThenPowerOff}, func(s *stage) {
			s.fail["shut-down 5m0s"] = refused(providers.Denied, "no privilege")
		}, []string{"shut-down 5m0s"}, "no privilege", providers.Denied},
		{"remove drives", job.Operation{Action: job.RemoveCDROM}, nil, []string{"drives vm-42", "remove-drives 3000"}, "CD/DVD drive 1 stayed, emptied and disconnected", ""},
		{"snapshot", job.Operation{Action: job.TakeSnapshot, Snapshot: &job.SnapshotRequest{Name: "before", Quiesce: true}}, nil,
			[]string{"take-snapshot before hypersdk-" + testID}, "the guest's file systems were not at rest", ""},
		{"delete a snapshot", job.Operation{Action: job.DeleteSnapshot, Snapshot: &job.SnapshotRequest{Name: "before"}}, nil,
			[]string{"delete-snapshot before"}, "does not have the snapshot before any more", ""},
		{"clone", job.Operation{Action: job.Clone, Clone: &job.CloneRequest{Name: "web-02", PowerOn: true}}, nil,
			[]string{"clone web-02", "power poweredOn"}, "was cloned to /dc/vm/web-02", ""},
		{"clone that does not start", job.Operation{Action: job.Clone, Clone: &job.CloneRequest{Name: "web-02", PowerOn: true}},
			func(s *stage) { s.fail["power poweredOn"] = refused(providers.Exhausted, "no memory left") },
			[]string{"clone web-02", "power poweredOn"}, "the clone /dc/vm/web-02 was made and could not be started: no memory left", providers.Exhausted},
		{"template", job.Operation{Action: job.Template, Template: true}, nil, []string{"set-template true"}, "web-01 is a template", ""},
		{"track changes", job.Operation{Action: job.EnableCBT}, nil, []string{"change-tracking on"},
			"the changes of web-01 are not tracked yet: take a snapshot", ""},
		{"track no changes", job.Operation{Action: job.DisableCBT}, nil, []string{"change-tracking off"}, "the changes of web-01 are not tracked", ""},
		{"look at tracking", job.Operation{Action: job.ReportCBT}, nil, []string{"change-tracking look"}, "the changes of web-01 are tracked", ""},
		{"tracking refused", job.Operation{Action: job.EnableCBT}, func(s *stage) {
			s.fail["change-tracking on"] = refused(providers.Unsupported, "its hardware version is vmx-04")
		}, []string{"change-tracking on"}, "its hardware version is vmx-04", providers.Unsupported},
		{"no such VM", job.Operation{Action: job.PowerOff}, func(s *stage) { s.fail["find-vm web-01"] = refused(providers.NotFound, "there is no such VM") },
			nil, "there is no such VM", providers.NotFound},
		{"from the future", job.Operation{Action: "levitate"}, nil, nil, "does not know the action", providers.Unsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := operationStage(t)
			if c.setup != nil {
				c.setup(s)
			}
			c.in.VMPath, c.in.Connection = "web-01", "job-"+testID
			s.ExecuteWorkflow(OperateWorkflow, c.in)
			state := job.Completed
			if c.reason != "" {
				state = job.Failed
			}
			want := append([]string{"find-vm web-01"}, c.calls...)
			require.Equal(t, append(want, "leave "+string(state)), s.called(), "the credentials are forgotten last, whatever came of it")
			require.Equal(t, "job-"+testID, s.left.Connection)
			require.True(t, s.left.Clean)
			if c.reason != "" {
				var app *temporal.ApplicationError
				require.ErrorAs(t, s.GetWorkflowError(), &app)
				require.Equal(t, string(c.reason), app.Type())
				require.Contains(t, app.Message(), c.message)
				return
			}
			require.NoError(t, s.GetWorkflowError())
			var out job.Operated
			require.NoError(t, s.GetWorkflowResult(&out))
			require.Contains(t, out.Message, c.message)
			if out.Snapshot != nil {
				require.Empty(t, out.Snapshot.Disks, "the answer is about the snapshot")
			}
		})
	}
}

// source is an export that may change its VM.
func sourceSpec(o job.Options) job.Spec {
	in := spec()
	in.Options = o
	return in
}

// sourceCalls are the calls that change the VM, and the snapshot's.
func (s *stage) sourceCalls() (out []string) {
	for _, c := range s.called() {
		for _, name := range []string{"power", "shut-down", "drives", "remove-drives", "restore-drives", "snapshot", "drop-snapshot", "finish"} {
			if len(c) > len(name) && c[:len(name)+1] == name+" " {
				out = append(out, c)
			}
		}
	}
	return out
}

func TestExportThatChangesItsSource(t *testing.T) {
	const snap, drop = "snapshot hypersdk-" + testID, "drop-snapshot hypersdk-" + testID
	cdrom := []string{"drives vm-42", "remove-drives 3000"}
	for _, c := range []struct {
		name  string
		opt   job.Options
		setup func(*stage)
		calls []string
		fails bool
	}{
		{"nothing unasked", job.Options{}, nil, []string{snap, "finish web-01", drop}, false},
		{"drives", job.Options{RemoveCDROM: true}, nil, append(cdrom, snap, "finish web-01", drop, "restore-drives 3000"), false},
		{"drives stay out", job.Options{RemoveCDROM: true, KeepCDROMRemoved: true}, nil, append(cdrom, snap, "finish web-01", drop), false},
		{"drives come back after a failure all the same", job.Options{RemoveCDROM: true, KeepCDROMRemoved: true},
			func(s *stage) { s.fail["transfer-disk web-01-disk-1.qcow2"] = refused(providers.NotFound, "gone") },
			append(cdrom, snap, drop, "restore-drives 3000"), true},
		{"drives come back where removing them failed", job.Options{RemoveCDROM: true},
			func(s *stage) { s.fail["remove-drives 3000"] = refused(providers.Denied, "no") }, append(cdrom, "restore-drives 3000"), true},
		{"shut down", job.Options{Shutdown: true}, nil, []string{"shut-down 5m0s", snap, "finish web-01", drop, "power poweredOn"}, false},
		{"shut down and drives", job.Options{Shutdown: true, RemoveCDROM: true}, nil,
			append([]string{"shut-down 5m0s"}, append(cdrom, snap, "finish web-01", drop, "restore-drives 3000", "power poweredOn")...), false},
		{"on again after the snapshot", job.Options{Shutdown: true, PowerOn: job.PowerOnAfterSnapshot}, nil,
			[]string{"shut-down 5m0s", snap, "power poweredOn", "finish web-01", drop}, false},
		{"on again after the snapshot, with its drives", job.Options{Shutdown: true, RemoveCDROM: true, PowerOn: job.PowerOnAfterSnapshot}, nil,
			append([]string{"shut-down 5m0s"}, append(cdrom, snap, "restore-drives 3000", "power poweredOn", "finish web-01", drop)...), false},
		{"stays off", job.Options{Shutdown: true, PowerOn: job.PowerOnNever}, nil, []string{"shut-down 5m0s", snap, "finish web-01", drop}, false},
		{"on again after a failure all the same", job.Options{Shutdown: true, PowerOn: job.PowerOnNever},
			func(s *stage) { s.fail[snap] = refused(providers.Denied, "no") }, []string{"shut-down 5m0s", snap, drop, "power poweredOn"}, true},
		{"a VM that is off stays off", job.Options{Shutdown: true}, func(s *stage) { s.vm.PowerState = providers.PowerOff },
			[]string{snap, "finish web-01", drop}, false},
		{"a guest that does not", job.Options{Shutdown: true, ShutdownTimeout: job.Duration(time.Minute)}, func(s *stage) { s.stubborn = true },
			[]string{"shut-down 1m0s", "power poweredOn"}, true},
		{"a guest that does not, then power off", job.Options{Shutdown: true, ShutdownThen: job.ThenPowerOff}, func(s *stage) { s.stubborn = true },
			[]string{"shut-down 5m0s", "power poweredOff", snap, "finish web-01", drop, "power poweredOn"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := operationStage(t)
			if c.setup != nil {
				c.setup(s)
			}
			s.export(sourceSpec(c.opt))
			if c.fails {
				require.Error(t, s.GetWorkflowError())
			} else {
				require.NoError(t, s.GetWorkflowError())
			}
			require.Equal(t, c.calls, s.sourceCalls())
		})
	}
}

// A guest that was asked and had not gone down yet when the job was cancelled may still go down: the job
// waits for it before it makes sure that the VM runs.
func TestCancelledWhileTheGuestShutsDown(t *testing.T) {
	s := operationStage(t)
	s.hold["shut-down 5m0s"] = s.cancelling
	s.export(sourceSpec(job.Options{Shutdown: true}))
	require.True(t, temporal.IsCanceledError(s.GetWorkflowError()))
	require.Equal(t, []string{"shut-down 5m0s", "power poweredOn"}, s.sourceCalls())
	require.Equal(t, 2*time.Minute, s.last[activities.PowerActivity].(activities.PowerRequest).Settle)
}

// What cannot be put back is said.
func TestDrivesThatCannotBePutBack(t *testing.T) {
	s := operationStage(t)
	s.fail["restore-drives 3000"] = refused(providers.Exists, "Hard disk 3 has taken the place of CD/DVD drive 1")
	s.export(sourceSpec(job.Options{RemoveCDROM: true}))
	require.NoError(t, s.GetWorkflowError())
	var r job.Result
	require.NoError(t, s.GetWorkflowResult(&r))
	require.Equal(t, []string{"CD drives of web-01 removed (Hard disk 3 has taken the place of CD/DVD drive 1)"}, r.Leftover)
	require.False(t, s.left.Clean)
}

// A job that lost its host does not do to its source again what it has done.
func TestSourceOfAJobThatMoves(t *testing.T) {
	s := operationStage(t)
	s.hosts = []string{"h1", "h2"}
	s.once["transfer-disk web-01-disk-1.qcow2"] = awayHost()
	s.export(sourceSpec(job.Options{RemoveCDROM: true, Shutdown: true}))
	require.NoError(t, s.GetWorkflowError())
	require.Equal(t, []string{"shut-down 5m0s", "drives vm-42", "remove-drives 3000", "snapshot hypersdk-" + testID,
		"finish web-01", "drop-snapshot hypersdk-" + testID, "restore-drives 3000", "power poweredOn"}, s.sourceCalls())
}

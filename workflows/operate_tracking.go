package workflows

import (
	"strings"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// tracking switches the tracking of a VM's changes, or only looks at it.
func (o *operation) tracking(ctx workflow.Context) error {
	in := activities.TrackingRequest{Touch: o.touch()}
	if o.in.Action != job.ReportCBT {
		on := o.in.Action == job.EnableCBT
		in.Want = &on
	}
	var status providers.TrackingStatus
	if err := o.do(ctx, short, activities.TrackingActivity, in, &status); err != nil {
		return err
	}
	o.out.Tracking = &status
	o.out.Message = trackingSentence(o.out.VM.Name, status)
	return nil
}

// trackingSentence is how far a VM's changes are tracked, for people.
func trackingSentence(vm string, s providers.TrackingStatus) string {
	missing := strings.Join(s.Missing, "; ")
	switch {
	case s.Active:
		return "the changes of " + vm + " are tracked"
	case s.Enabled && missing != "":
		return "the changes of " + vm + " are not tracked yet: " + missing
	case s.Enabled:
		return vm + " has no disk whose changes can be tracked"
	case missing != "":
		return "the changes of " + vm + " are not tracked: " + missing
	}
	return "the changes of " + vm + " are not tracked"
}

package activities

import (
	"context"
	"errors"
	"log/slog"

	"hypersdk/providers"
)

// TrackingActivity is Control.Tracking.
const TrackingActivity = "change-tracking"

// TrackingRequest asks how far the changes of a VM are tracked, after switching that.
type TrackingRequest struct {
	Touch
	Want *bool `json:"want,omitempty"` // nil: only look
}

// Tracking switches the tracking of a VM's changes where that is asked for, and tells how far it is.
func (c *Control) Tracking(ctx context.Context, in TrackingRequest) (providers.TrackingStatus, error) {
	return touch(ctx, c.Site, in.Touch, TrackingActivity, func(ctx context.Context, p providers.ChangeTracker, log *slog.Logger) (providers.TrackingStatus, error) {
		if in.Want != nil {
			err := p.SetTracking(ctx, in.VM, *in.Want)
			if errors.Is(err, providers.Precondition) {
				err = final(err) // snapshots do not go away while somebody waits
			}
			if err != nil {
				return providers.TrackingStatus{}, err
			}
			log.Info("change tracking", "vm", in.VM, "on", *in.Want)
		}
		return p.Tracking(ctx, in.VM)
	})
}

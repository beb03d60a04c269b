package apiserver

import (
	"github.com/danielgtaylor/huma/v2"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

// trackingOperations are the endpoints of changed block tracking.
func trackingOperations(s *Server, h huma.API) {
	simple := func(action job.Action) func(api.VMRequest) (api.Target, job.Operation, job.Duration) {
		return func(r api.VMRequest) (api.Target, job.Operation, job.Duration) {
			return r.Target, job.Operation{Action: action}, r.Timeout
		}
	}
	operating(s, h, "/cbt/enable", "enable-cbt", "Track the changes of a VM",
		"Switches changed block tracking on; what is on stays so and loses nothing. It is refused while the VM has snapshots. A VM that runs is tracked from its next snapshot or power cycle on.",
		simple(job.EnableCBT))
	operating(s, h, "/cbt/disable", "disable-cbt", "Do not track the changes of a VM any more",
		"The points of all earlier copies are lost: the next one is a full copy.", simple(job.DisableCBT))
	operating(s, h, "/cbt/status", "cbt-status", "Tell how far the changes of a VM are tracked",
		"For the VM and each of its disks, and what is missing.", simple(job.ReportCBT))
}

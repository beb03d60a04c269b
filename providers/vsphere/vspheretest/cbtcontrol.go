package vspheretest

import "net/http"

// diskRequest is the body of what is asked of a disk.
type diskRequest struct {
	VM    string `json:"vm"`
	Disk  int    `json:"disk"`
	Size  int64  `json:"size"`
	Every int    `json:"every"`
}

// controlTracking is the part of [Control] about disks and the tracking of their changes.
func controlTracking(s *Server, handle func(pattern string, f func(r *http.Request) (any, error))) {
	for pattern, do := range map[string]func(diskRequest) error{
		"POST /hypersim/disk/resize":     func(q diskRequest) error { return s.ResizeDisk(q.VM, q.Disk, q.Size) },
		"POST /hypersim/tracking/reset":  func(q diskRequest) error { return s.ResetTracking(q.VM) },
		"POST /hypersim/tracking/forget": func(q diskRequest) error { return s.ForgetWrites(q.VM, q.Disk, q.Every) },
	} {
		handle(pattern, func(r *http.Request) (any, error) {
			q, err := decode[diskRequest](r)
			if err != nil {
				return nil, err
			}
			return map[string]bool{"ok": true}, do(q)
		})
	}
}

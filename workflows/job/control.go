package job

import (
	"errors"
	"math"
)

// Snapshot is a job as its workflow knows it: all of a [Job] but what its start says (id, definition,
// time) and what only its running activities know (bytes in flight, rates, why they wait). It answers
// the status query and is kept in the memo of the workflow.
type Snapshot struct {
	Status State `json:"status"`
	// Progress.Disks holds a line for every disk from the transfer on; those of running activities
	// are newer in their heartbeats, which are [DiskProgress] too.
	Progress    Progress `json:"progress"`
	Result      *Result  `json:"result,omitempty"`
	Error       string   `json:"error,omitempty"`
	Reason      string   `json:"reason,omitempty"` // a providers.Reason, where Error is set
	StartedAt   *Time    `json:"started_at,omitempty"`
	CompletedAt *Time    `json:"completed_at,omitempty"`
	UpdatedAt   Time     `json:"updated_at"`
	Host        string   `json:"host,omitempty"`
	// Sync is set by a warm copy.
	Sync *SyncStatus `json:"sync,omitempty"`
}

// Limits are what a running job keeps to; they may change at any time.
type Limits struct {
	Paused bool    `json:"paused,omitempty"`
	MBps   float64 `json:"mbps,omitempty"` // MB/s (1,000,000 bytes) of the whole job; 0: none
}

// Control changes the limits of a running job. A field that is nil stays as it is.
type Control struct {
	Paused    *bool    `json:"paused,omitempty"`
	LimitMBps *float64 `json:"limit_mbps,omitempty"`
}

// MaxMBps is the highest bandwidth limit that means anything: 1 TB/s.
const MaxMBps = 1e6

// Validate says what is wrong with the request.
func (c Control) Validate() error {
	switch {
	case c.Paused == nil && c.LimitMBps == nil:
		return errors.New("control: say pause, resume or a limit")
	case c.LimitMBps != nil && (math.IsNaN(*c.LimitMBps) || *c.LimitMBps < 0 || *c.LimitMBps > MaxMBps):
		return errors.New("control: limit_mbps must be between 0 (no limit) and 1000000")
	}
	return nil
}

// Apply is l with what c changes.
func (c Control) Apply(l Limits) Limits {
	if c.Paused != nil {
		l.Paused = *c.Paused
	}
	if c.LimitMBps != nil {
		l.MBps = *c.LimitMBps
	}
	return l
}

// LogRequest asks for a page of a job's log, which is JSON lines.
type LogRequest struct {
	Job    string `json:"job"`
	Host   string `json:"host,omitempty"` // Job.Host; empty before the job was placed
	Offset int64  `json:"offset"`         // 0, or Next of the page before
}

// LogPage is a page of whole lines. The end of the log is an empty page with Next as asked.
type LogPage struct {
	Data []byte `json:"data"`
	Next int64  `json:"next"`
}

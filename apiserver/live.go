package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	workflowpb "go.temporal.io/api/workflow/v1"
	"go.temporal.io/api/workflowservice/v1"

	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

const (
	// queryTimeout is how long a workflow may take to answer: without a worker it never does.
	queryTimeout = 500 * time.Millisecond
	// queryPause is how long nobody is asked after a query that nobody answered.
	queryPause = 5 * time.Second
	// slowStart is how long an activity may lie in its queue before that is worth a word.
	slowStart = 3 * time.Second
)

// alive is a job with what only its running workflow and activities know.
func (s *Server) alive(ctx context.Context, d *workflowservice.DescribeWorkflowExecutionResponse) job.Job {
	info := d.GetWorkflowExecutionInfo()
	j := s.view(info)
	if info.GetStatus() != enumspb.WORKFLOW_EXECUTION_STATUS_RUNNING || j.Status.Ended() {
		return j
	}
	var snap job.Snapshot
	if s.queries.ask(ctx, j.ID, workflows.QueryStatus, &snap) && snap.Status != "" {
		apply(&j, snap)
	}
	if j.Status == job.Pending {
		pending(&j, s.queries.waits(ctx, j.ID)[j.ID])
	} else {
		s.enliven(&j, d)
	}
	return j
}

// pending says what a job that was not admitted yet waits for.
func pending(j *job.Job, why string) {
	if j.Progress == nil {
		j.Progress = &job.Progress{Phase: job.Admit}
	}
	if j.Progress.Paused {
		return
	}
	j.Progress.WaitingFor = cmp.Or(why, j.Progress.WaitingFor, "its turn")
}

// enliven merges the heartbeats and the troubles of a job's activities into it.
func (s *Server) enliven(j *job.Job, d *workflowservice.DescribeWorkflowExecutionResponse) {
	if j.Progress == nil {
		j.Progress = &job.Progress{Phase: job.Place}
	}
	p := j.Progress
	var waits, rests []string
	moving := false
	for _, a := range d.GetPendingActivities() {
		why := s.trouble(a)
		for _, beat := range s.heartbeats(a) {
			beat.Attempt = max(beat.Attempt, a.GetAttempt())
			if p.Paused || a.GetState() == enumspb.PENDING_ACTIVITY_STATE_SCHEDULED {
				beat.RateMBps = 0 // that of its last seconds is over
			}
			if why != "" && beat.Done < beat.Total {
				beat.Waiting = why
			} else if beat.Waiting != "" && (beat.Waiting != "paused" || p.Paused) {
				// A heartbeat may be older than the end of a pause.
				rests = append(rests, beat.Waiting)
			}
			moving = moving || beat.RateMBps > 0
			mergeDisk(p, beat)
			if t := a.GetLastHeartbeatTime().AsTime(); t.After(j.UpdatedAt.Time) {
				j.UpdatedAt = job.Time{Time: t.UTC()}
			}
		}
		if why != "" {
			waits = append(waits, why)
		}
	}
	if !moving { // while one disk is copied the job goes on, although others wait for their turn
		waits = append(waits, rests...)
	}
	if len(waits) > 0 && !p.Paused {
		slices.Sort(waits)
		p.WaitingFor = strings.Join(slices.Compact(waits), "; ")
	}
	total(p)
}

// heartbeats are the last words of a data activity about its disks: one, or one for each that it copies
// under a lease. Every other activity has none.
func (s *Server) heartbeats(a *workflowpb.PendingActivityInfo) []job.DiskProgress {
	var out []job.DiskProgress
	for _, one := range a.GetHeartbeatDetails().GetPayloads() {
		var beat job.DiskProgress
		if s.converter.FromPayload(one, &beat) == nil && beat.Disk != "" {
			out = append(out, beat)
		}
	}
	return out
}

// mergeDisk puts a heartbeat in the place of what the workflow knew of that disk.
func mergeDisk(p *job.Progress, beat job.DiskProgress) {
	i := slices.IndexFunc(p.Disks, func(d job.DiskProgress) bool { return d.Disk == beat.Disk })
	if i < 0 {
		p.Disks = append(p.Disks, beat)
		return
	}
	if beat.File == "" {
		beat.File = p.Disks[i].File
	}
	if beat.Total == 0 {
		beat.Total = p.Disks[i].Total
	}
	p.Disks[i] = beat
}

// total sums the disks up: bytes of the phase that the job is in, rate, and what time that leaves.
func total(p *job.Progress) {
	if len(p.Disks) == 0 {
		return
	}
	var done, size int64
	var rate float64
	now := stage(p.Phase)
	p.CurrentFile = ""
	for i, d := range p.Disks {
		p.Disks[i].EstimatedRemaining = ""
		if now != copied && stage(d.Phase) == now && !p.Paused {
			p.Disks[i].EstimatedRemaining = remaining(d.Total-d.Done, d.RateMBps)
		}
		size += d.Total
		switch at := stage(d.Phase); {
		case now == copied:
			// After the last byte, or after a failure: what was reached stands.
			done += min(d.Done, d.Total)
		case at > now:
			done += d.Total
		case at == now:
			done += min(d.Done, d.Total)
		}
		if now != copied {
			rate += d.RateMBps
		}
		if p.CurrentFile == "" && d.Done < d.Total {
			p.CurrentFile = d.File
		}
	}
	p.BytesTransferred, p.TotalBytes, p.TransferRateMBps = done, size, math.Round(rate*10)/10
	p.PercentComplete, p.EstimatedRemaining = percent(done, size), ""
	if !p.Paused {
		p.EstimatedRemaining = remaining(size-done, rate)
	}
}

// remaining is how long the bytes that are left take at a rate in MB/s; "" where nothing moves.
func remaining(left int64, rate float64) string {
	if rate <= 0 || left <= 0 {
		return ""
	}
	seconds := float64(left) / (rate * 1e6)
	if seconds >= 1e9 {
		return ""
	}
	return max(time.Second, (time.Duration(seconds) * time.Second)).String()
}

// percent has one fractional digit, and is 100 only when all is done.
func percent(done, size int64) float64 {
	if size <= 0 {
		return 0
	}
	return math.Floor(float64(done)/float64(size)*1000) / 10
}

// copied is the stage of a job whose disks are all dealt with.
const copied = 4

// stage orders the phases of a disk.
func stage(p job.Phase) int {
	switch p {
	case job.Transfer:
		return 1
	case job.Package:
		return 2
	case job.Verify:
		return 3
	case job.Manifest, job.Name, job.Clean, job.Done:
		return copied
	}
	return 0
}

// trouble says in a sentence why an activity does not get on; "" where it does.
func (s *Server) trouble(a *workflowpb.PendingActivityInfo) string {
	if a.GetState() != enumspb.PENDING_ACTIVITY_STATE_SCHEDULED {
		return ""
	}
	now := time.Now()
	if f := a.GetLastFailure(); f != nil && a.GetAttempt() > 1 {
		why := s.failures.FailureToError(f).Error()
		var reason string
		switch app := f.GetApplicationFailureInfo(); {
		case app != nil:
			reason, why = app.GetType(), plainMessage(why, app.GetType())
		case f.GetTimeoutFailureInfo() != nil:
			why = "a worker: the last one stopped answering"
		}
		return retrying(providers.Reason(reason), why, a, now)
	}
	if since := a.GetScheduledTime().AsTime(); now.Sub(since) > slowStart {
		return "a worker that is free to go on with it"
	}
	return ""
}

// retrying is "space on the target: … (attempt 3, next in 40s)".
func retrying(reason providers.Reason, why string, a *workflowpb.PendingActivityInfo, now time.Time) string {
	next := ""
	if t := a.GetNextAttemptScheduleTime(); t != nil {
		if in := t.AsTime().Sub(now).Round(time.Second); in > 0 {
			next = ", next in " + in.String()
		}
	}
	lead := ""
	if reason == providers.Exhausted {
		lead = "room: "
	}
	return fmt.Sprintf("%s%s (attempt %d%s)", lead, job.Shorten(why, 300), a.GetAttempt(), next)
}

// plainMessage is the message of a failure without what the SDK puts behind it.
func plainMessage(msg, kind string) string {
	for _, tail := range []string{fmt.Sprintf(" (type: %s, retryable: true)", kind), fmt.Sprintf(" (type: %s, retryable: false)", kind)} {
		msg = strings.TrimSuffix(msg, tail)
	}
	return msg
}

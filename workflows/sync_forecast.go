package workflows

import (
	"math"
	"time"

	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
	"hypersdk/workflows/job"
)

// shutdownGuess is what a guest is taken to need to shut down before anybody has seen it do so.
const shutdownGuess = 30 * time.Second

// noteRound notes a round that is whole.
func (w *warm) noteRound(ctx workflow.Context) {
	s := w.status.Sync
	r := job.SyncRound{
		Round: w.round, Began: job.Time{Time: w.began.UTC()}, Point: job.Time{Time: w.snapshot.Created.UTC()},
		Snapshot: tidy(w.took), Took: tidy(workflow.Now(ctx).Sub(w.began)), Final: w.round == w.last,
	}
	for i, d := range w.done {
		r.Changed += d.Changed
		r.Read += d.Read
		r.Asked = max(r.Asked, tidy(d.Asked))
		r.Copied = max(r.Copied, tidy(d.Copied))
		if d.Why != "" {
			how := " was compared: "
			if d.By == activities.SyncedInFull {
				how = " was copied in full: "
			}
			r.Notes = append(r.Notes, w.plan.Disks[i].Disk.Label+how+d.Why)
		}
	}
	s.Rounds = append(s.Rounds, r)
	s.Forecast = forecast(w.spec, s.Rounds, w.shut)
	s.Rounds = append([]job.SyncRound{}, s.Rounds[max(0, len(s.Rounds)-job.MaxSyncRounds):]...)
	s.Holds = w.round
}

// tidy is a duration without what nobody reads.
func tidy(d time.Duration) job.Duration { return job.Duration(max(d, 0).Round(time.Millisecond)) }

// forecast tells by what the rounds did what a cutover would cost that begins now: what changed since the
// last snapshot, and until the guest is off, is copied at the rate of all rounds so far. nil: one round says
// nothing about changes.
func forecast(spec job.SyncSpec, rounds []job.SyncRound, shut time.Duration) *job.SyncForecast {
	if len(rounds) < 2 {
		return nil
	}
	last, before := rounds[len(rounds)-1], rounds[len(rounds)-2]
	guest := last.Point.Sub(before.Point.Time).Seconds()
	var read, seconds float64
	for _, r := range rounds {
		read += float64(r.Read)
		seconds += time.Duration(r.Copied).Seconds()
	}
	if guest <= 0 || seconds <= 0 {
		return nil
	}
	changes, copies := float64(last.Changed)/guest, read/seconds
	f := &job.SyncForecast{ChangeRate: megabytes(changes), TransferRate: megabytes(copies)}
	if spec.Shutdown {
		f.Shutdown = tidy(shutdownGuess)
		if shut > 0 {
			f.Shutdown = tidy(shut)
		}
	}
	copying := 0.0
	if copies > 0 {
		copying = float64(last.Read) / copies
	}
	f.Overhead = tidy(time.Duration(last.Took) - time.Duration(copying*float64(time.Second)))
	open := time.Duration(last.Took).Seconds() + time.Duration(f.Shutdown).Seconds() // since the last snapshot
	f.Changed = int64(changes * open)
	down := time.Duration(f.Shutdown) + time.Duration(f.Overhead)
	if copies > 0 {
		down += time.Duration(float64(f.Changed) / copies * float64(time.Second))
	}
	f.Downtime = tidy(down)
	return f
}

// megabytes is a rate in MB/s with two fractional digits.
func megabytes(bytes float64) float64 { return math.Round(bytes/1e4) / 100 }

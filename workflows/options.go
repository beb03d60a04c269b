package workflows

import (
	"errors"
	"time"

	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/workflow"

	"hypersdk/activities"
)

// Every time and retry policy of the program that is not a worker's configuration. Which failures are
// tried again, and when, is decided where they are translated (activities, fail): the policies here
// only pace what nobody classified.
const (
	day = 24 * time.Hour

	// askAgain is how often a job that waits for admission makes sure that it is still in the queue.
	askAgain = 30 * time.Minute
	// checkOwners is how often admission looks whether the jobs that run still live.
	checkOwners = time.Minute
	// lookPatience is how long a host may take to begin to look at the images of a job, and lookAgain how
	// long after those that did not begin are asked again.
	lookPatience = 10 * time.Second
	lookAgain    = 15 * time.Second
	// logPatience is how long the host that has a log may take to begin to answer.
	logPatience = 5 * time.Second
)

// firstTerms hold until a worker has told its own.
var firstTerms = activities.Terms{HostAway: 10 * time.Minute, Heartbeat: 10 * time.Second, CleanWithin: 30 * time.Minute}

func retries(first, most time.Duration) *temporal.RetryPolicy {
	return &temporal.RetryPolicy{
		InitialInterval: first, BackoffCoefficient: 2, MaximumInterval: most,
		// A bug does not go away by trying again.
		NonRetryableErrorTypes: []string{"PanicError"},
	}
}

// anywhere is for short activities that need no host of their own.
func anywhere(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              Queue,
		StartToCloseTimeout:    5 * time.Minute,
		ScheduleToCloseTimeout: day,
		HeartbeatTimeout:       time.Minute,
		WaitForCancellation:    true,
		RetryPolicy:            retries(time.Second, time.Minute),
	})
}

// quickly runs a step inside the workflow's own task: a third of the cost of an activity, which
// matters for what every job does, also the hundreds that only wait. What does not succeed at once is
// left to a real activity, with its retries and its failures for all to see.
func quickly(ctx, again workflow.Context, name string, in, out any) error {
	local := workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{
		ScheduleToCloseTimeout: 3 * time.Second,
		RetryPolicy:            &temporal.RetryPolicy{MaximumAttempts: 1},
	})
	err := workflow.ExecuteLocalActivity(local, name, in).Get(local, out)
	var app *temporal.ApplicationError
	if err == nil || ctx.Err() != nil || errors.As(err, &app) && app.NonRetryable() {
		return err
	}
	return workflow.ExecuteActivity(again, name, in).Get(again, out)
}

// somewhere is for finding a host: it waits for as long as none has a place.
func somewhere(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              PlaceQueue,
		StartToCloseTimeout:    time.Minute,
		ScheduleToCloseTimeout: 90 * day,
		WaitForCancellation:    true,
		RetryPolicy:            retries(time.Second, time.Minute),
	})
}

// looking is for a look at what a host has, which one that works begins to take at once.
func looking(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	ctx = onHost(ctx, host, t)
	opt := workflow.GetActivityOptions(ctx)
	opt.ScheduleToStartTimeout = lookPatience
	return workflow.WithActivityOptions(ctx, opt)
}

// settling is for getting a place on one host: it waits for as long as that has none.
func settling(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	ctx = onHost(ctx, host, t)
	opt := workflow.GetActivityOptions(ctx)
	opt.StartToCloseTimeout, opt.ScheduleToCloseTimeout = time.Minute, 90*day
	return workflow.WithActivityOptions(ctx, opt)
}

// onHost is for steps that take seconds or minutes on the job's host.
func onHost(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              HostQueue(host),
		StartToCloseTimeout:    2 * time.Hour,
		ScheduleToStartTimeout: t.HostAway,
		ScheduleToCloseTimeout: day,
		HeartbeatTimeout:       t.Heartbeat,
		WaitForCancellation:    true,
		RetryPolicy:            retries(time.Second, time.Minute),
	})
}

// touching is for steps that change the source: what does not work for an hour is for people to look
// at, and every attempt leaves its traces there.
func touching(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	ctx = onHost(ctx, host, t)
	opt := workflow.GetActivityOptions(ctx)
	opt.ScheduleToCloseTimeout, opt.StartToCloseTimeout = time.Hour+t.HostAway, time.Hour
	opt.RetryPolicy = retries(5*time.Second, 5*time.Minute)
	return workflow.WithActivityOptions(ctx, opt)
}

// turning is for the snapshots of a warm copy. Unlike that of an export, which has copied nothing yet, one
// that does not work for hours is no reason to give up what weeks have copied.
func turning(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	ctx = touching(ctx, host, t)
	opt := workflow.GetActivityOptions(ctx)
	opt.ScheduleToCloseTimeout, opt.StartToCloseTimeout = 3*day, 6*time.Hour
	return workflow.WithActivityOptions(ctx, opt)
}

// moving is for what takes as long as a disk is large.
func moving(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		TaskQueue:              HostQueue(host),
		StartToCloseTimeout:    30 * day,
		ScheduleToStartTimeout: t.HostAway,
		ScheduleToCloseTimeout: 30 * day,
		HeartbeatTimeout:       t.Heartbeat,
		WaitForCancellation:    true,
		RetryPolicy:            retries(time.Second, time.Minute),
	})
}

// leasing is for disks that are copied under one lease: what cuts them off costs all that is not whole,
// so that a host which is busy gets more time to beat.
func leasing(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	ctx = moving(ctx, host, t)
	opt := workflow.GetActivityOptions(ctx)
	opt.HeartbeatTimeout = 3 * t.Heartbeat
	return workflow.WithActivityOptions(ctx, opt)
}

// cleaning is for undoing: tried for a while, then reported. An empty host is any.
func cleaning(ctx workflow.Context, host string, t activities.Terms) workflow.Context {
	opt := workflow.ActivityOptions{
		TaskQueue:              Queue,
		StartToCloseTimeout:    t.CleanWithin,
		ScheduleToCloseTimeout: t.CleanWithin,
		HeartbeatTimeout:       t.Heartbeat,
		RetryPolicy:            retries(time.Second, 30*time.Second),
	}
	if host != "" {
		opt.TaskQueue = HostQueue(host)
		opt.ScheduleToStartTimeout = min(t.HostAway, t.CleanWithin)
	}
	return workflow.WithActivityOptions(ctx, opt)
}

// reading is for a page of a log: now, or not at all.
func reading(ctx workflow.Context, host string) workflow.Context {
	opt := workflow.ActivityOptions{
		TaskQueue:              Queue,
		StartToCloseTimeout:    10 * time.Second,
		ScheduleToStartTimeout: logPatience,
		ScheduleToCloseTimeout: 15 * time.Second,
		RetryPolicy:            &temporal.RetryPolicy{MaximumAttempts: 1},
	}
	if host != "" {
		opt.TaskQueue = HostQueue(host)
	}
	return workflow.WithActivityOptions(ctx, opt)
}

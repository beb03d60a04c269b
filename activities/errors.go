package activities

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"go.temporal.io/sdk/temporal"

	"hypersdk/formats"
	"hypersdk/providers"
)

// Paces are how long is waited before an attempt is made again.
type Paces struct {
	Again        time.Duration // after an attempt that came further than the one before it
	Precondition time.Duration
	Throttled    time.Duration // where the platform does not say
	Exhausted    time.Duration
}

// DefaultPaces are kind to platforms and to the operator who has to make room.
func DefaultPaces() Paces {
	return Paces{Again: time.Second, Precondition: 15 * time.Second, Throttled: 30 * time.Second, Exhausted: time.Minute}
}

// fail is the one place where a reason becomes a decision of Temporal: whether the activity is tried
// again, and when. The type of the failure is the reason, its message the error's.
//
//	invalid unsupported not_found exists   not retried: the user mends the job
//	auth denied                            not retried: the user mends the connection
//	corrupt                                not retried: the operator looks
//	tracking_lost                          not retried: the workflow copies in full
//	precondition throttled exhausted       retried at their pace
//	unavailable, unknown                   retried, 1 s to 1 min (the activity's retry policy)
//	canceled                               CanceledError, if the activity itself was cancelled
func (p Paces) fail(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	var decided *temporal.ApplicationError
	if errors.As(err, &decided) {
		return decided
	}
	reason := reasonOf(err)
	// It is logged here, with the job and the disk; the SDK need not do so again.
	opt := temporal.ApplicationErrorOptions{Category: temporal.ApplicationErrorCategoryBenign}
	switch reason {
	case providers.Canceled:
		if cancelled(ctx) {
			return temporal.NewCanceledError()
		}
		reason = providers.Unavailable // the worker stops, or the attempt was replaced
		opt.NextRetryDelay = p.Again
	case providers.Invalid, providers.Unsupported, providers.NotFound, providers.Exists,
		providers.Auth, providers.Denied, providers.Corrupt, providers.TrackingLost:
		opt.NonRetryable = true
	case providers.Precondition:
		opt.NextRetryDelay = p.Precondition
	case providers.Throttled:
		opt.NextRetryDelay = p.Throttled
		if d := providers.RetryAfter(err); d > 0 {
			opt.NextRetryDelay = min(d, time.Hour)
		}
	case providers.Exhausted:
		opt.NextRetryDelay = p.Exhausted
	}
	return temporal.NewApplicationErrorWithOptions(clip(err.Error(), maxMessage), string(reason), opt)
}

// maxMessage keeps a failure below what the server stores of one whole (4 KiB).
const maxMessage = 2000

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// final makes err one that is not tried again, whatever its reason.
func final(err error) error {
	return temporal.NewApplicationErrorWithOptions(clip(err.Error(), maxMessage), string(reasonOf(err)),
		temporal.ApplicationErrorOptions{NonRetryable: true, Category: temporal.ApplicationErrorCategoryBenign})
}

// soon makes err one that is tried again at once.
func (p Paces) soon(err error) error {
	return temporal.NewApplicationErrorWithOptions(clip(err.Error(), maxMessage), string(reasonOf(err)),
		temporal.ApplicationErrorOptions{NextRetryDelay: p.Again, Category: temporal.ApplicationErrorCategoryBenign})
}

// again says whether a translated error will be tried again.
func again(err error) bool {
	var app *temporal.ApplicationError
	return errors.As(err, &app) && !app.NonRetryable()
}

// reasonOf is providers.ReasonOf for errors of formats and of the local file system too.
func reasonOf(err error) providers.Reason {
	var s *sentence
	var e *providers.Error
	var r providers.Reason
	switch {
	case errors.As(err, &s):
		return s.reason
	case errors.As(err, &e), errors.As(err, &r):
		return providers.ReasonOf(err)
	case errors.Is(err, formats.ErrCorrupt):
		return providers.Corrupt
	case errors.Is(err, formats.ErrFormat):
		return providers.Unsupported
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return providers.Exhausted
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EROFS):
		return providers.Denied
	}
	return providers.ReasonOf(err)
}

// refuse is an error of this package with a reason and one sentence.
func refuse(reason providers.Reason, format string, args ...any) error {
	return &sentence{reason: reason, err: fmt.Errorf(format, args...)}
}

// sentence is an error that already says all that people need to know.
type sentence struct {
	reason providers.Reason
	err    error
}

func (s *sentence) Error() string        { return s.err.Error() }
func (s *sentence) Unwrap() error        { return s.err }
func (s *sentence) Is(target error) bool { return target == error(s.reason) }

// cancelled says whether the activity itself was cancelled: not its worker, not this attempt of it.
func cancelled(ctx context.Context) bool {
	return ctx.Err() != nil && temporal.IsCanceledError(context.Cause(ctx))
}

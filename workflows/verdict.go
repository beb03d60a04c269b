package workflows

import (
	"errors"
	"fmt"
	"strings"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/sdk/temporal"

	"hypersdk/providers"
)

// outcome is a failure as it is told to people: a reason and one sentence.
type outcome struct {
	reason providers.Reason
	text   string
}

func (o outcome) Error() string { return o.text }

// Is makes an outcome equal to its reason.
func (o outcome) Is(target error) bool { return target == error(o.reason) }

func refusal(r providers.Reason, format string, args ...any) error {
	return outcome{r, fmt.Sprintf(format, args...)}
}

// verdict reads an error of an activity, of this package, or of Temporal.
func verdict(err error) outcome {
	var o outcome
	var app *temporal.ApplicationError
	var late *temporal.TimeoutError
	switch {
	case errors.As(err, &o):
		return o
	case temporal.IsCanceledError(err):
		return outcome{providers.Canceled, "cancelled"}
	case errors.As(err, &late):
		// An activity that gave up trying says so with its last failure inside.
		if errors.As(late.Unwrap(), &app) {
			return outcome{providers.Reason(app.Type()), "gave up after trying for long: " + app.Message()}
		}
		switch late.TimeoutType() {
		case enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START:
			return outcome{providers.Unavailable, "the host of the job does not answer"}
		case enumspb.TIMEOUT_TYPE_HEARTBEAT:
			return outcome{providers.Unavailable, "the worker of the job stopped answering"}
		}
		return outcome{providers.Unavailable, "it took longer than is allowed"}
	case errors.As(err, &app):
		return outcome{providers.Reason(app.Type()), app.Message()}
	}
	var fault *temporal.PanicError
	if errors.As(err, &fault) {
		return outcome{providers.Unavailable, "internal error: " + firstLine(fault.Error())}
	}
	return outcome{providers.ReasonOf(err), err.Error()}
}

// asError is what a workflow fails with: its type is the reason, its message the sentence.
func (o outcome) asError() error {
	if o.reason == providers.Canceled {
		return temporal.NewCanceledError()
	}
	return temporal.NewNonRetryableApplicationError(o.text, string(o.reason), nil)
}

// hostLost says whether an activity never started because its host is away.
func hostLost(err error) bool {
	var late *temporal.TimeoutError
	return errors.As(err, &late) && late.TimeoutType() == enumspb.TIMEOUT_TYPE_SCHEDULE_TO_START
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

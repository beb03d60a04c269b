package providers

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Reason is why an operation on a platform failed, and thereby who is to act. It is itself an error,
// so that `errors.Is(err, providers.NotFound)` reads as English.
type Reason string

const (
	Invalid      Reason = "invalid"       // the request makes no sense: mend the request
	Unsupported  Reason = "unsupported"   // this platform or VM cannot do that
	NotFound     Reason = "not_found"     // what was named is not there
	Exists       Reason = "exists"        // it is there already and must not be replaced
	Auth         Reason = "auth"          // the credentials are refused
	Denied       Reason = "denied"        // the account lacks a privilege
	Corrupt      Reason = "corrupt"       // bytes are not what they should be
	TrackingLost Reason = "tracking_lost" // changes since a point can no longer be told: copy in full
	Precondition Reason = "precondition"  // not in this state, perhaps later
	Throttled    Reason = "throttled"     // the platform asks for patience
	Exhausted    Reason = "exhausted"     // no space, no quota
	Unavailable  Reason = "unavailable"   // the network, a server, a passing fault
	Canceled     Reason = "canceled"      // the caller gave up
)

func (r Reason) Error() string { return strings.ReplaceAll(string(r), "_", " ") }

// Error is an operation that failed: what, on what, why.
type Error struct {
	Op     string // package and operation: "vsphere: snapshot"
	Object string // what it was done to: "vm-42"; may be empty
	Reason Reason
	Msg    string        // one plain sentence for people; may be empty where Err says it
	Retry  time.Duration // when the platform asks to come back; 0: it does not say
	Err    error         // the cause; never holds a secret
}

// Error reads "vsphere: snapshot vm-42: the task failed: disk is locked".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Object != "" {
		b.WriteString(" " + e.Object)
	}
	switch {
	case e.Msg != "" && e.Err != nil:
		b.WriteString(": " + e.Msg + ": " + e.Err.Error())
	case e.Msg != "":
		b.WriteString(": " + e.Msg)
	case e.Err != nil:
		b.WriteString(": " + e.Err.Error())
	default:
		b.WriteString(": " + e.Reason.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes an Error equal to its Reason.
func (e *Error) Is(target error) bool {
	r, ok := target.(Reason)
	return ok && r == e.Reason
}

// ReasonOf is the outermost Reason in err's chain; Canceled for a context that ended, Unavailable for
// what nobody classified, "" for nil.
func ReasonOf(err error) Reason {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	var r Reason
	if errors.As(err, &r) {
		return r
	}
	if errors.Is(err, context.Canceled) {
		return Canceled
	}
	return Unavailable
}

// RetryAfter is how long the platform asked to wait; 0 where it did not.
func RetryAfter(err error) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		return e.Retry
	}
	return 0
}

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/labstack/echo/v4"
	"go.temporal.io/api/serviceerror"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

const serverFailed = "the server failed; its log says why, under the request id of this answer"

func newError(status int, format string, args ...any) *api.Error {
	return &api.Error{Message: fmt.Sprintf(format, args...), Timestamp: job.Now(), Status: status}
}

// invalid is a request with faults.
func invalid(status int, faults []job.FieldError) *api.Error {
	const most = 5
	said := make([]string, 0, most+1)
	for i, f := range faults {
		if i == most {
			said = append(said, fmt.Sprintf("and %d more", len(faults)-most))
			break
		}
		said = append(said, f.Error())
	}
	e := newError(status, "the request is not valid: %s", strings.Join(said, "; "))
	e.Errors = faults
	return e
}

func noSuchJob(id string) *api.Error {
	return newError(http.StatusNotFound, "no such job: %s", job.Shorten(id, 80))
}

// reasonStatus is the HTTP status of a Reason. What a platform refuses is not 401: that would be about
// the caller of this API.
var reasonStatus = map[providers.Reason]int{
	providers.Invalid: http.StatusUnprocessableEntity, providers.Unsupported: http.StatusUnprocessableEntity,
	providers.NotFound: http.StatusNotFound, providers.Exists: http.StatusConflict,
	providers.Auth: http.StatusForbidden, providers.Denied: http.StatusForbidden,
	providers.Corrupt: http.StatusBadGateway, providers.TrackingLost: http.StatusConflict,
	providers.Precondition: http.StatusConflict, providers.Throttled: http.StatusServiceUnavailable,
	providers.Exhausted: http.StatusInsufficientStorage, providers.Unavailable: http.StatusBadGateway,
	providers.Canceled: http.StatusServiceUnavailable,
}

// fail turns whatever went wrong into an answer. What nobody classified is told to the log, under the
// id of the request, and not to the caller.
func fail(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return answerOf(ctx, err)
}

// answerOf is fail for an error that is one.
func answerOf(ctx context.Context, err error) *api.Error {
	var (
		answer    *api.Error
		known     *providers.Error
		notFound  *serviceerror.NotFound
		exhausted *serviceerror.ResourceExhausted
		down      *serviceerror.Unavailable
		late      *serviceerror.DeadlineExceeded
	)
	switch {
	case errors.As(err, &answer):
		return answer
	case errors.As(err, &known):
		note(ctx, err)
		return newError(reasonStatus[known.Reason], "%s", err.Error())
	case errors.As(err, &notFound):
		note(ctx, err)
		return newError(http.StatusNotFound, "no such job")
	case errors.As(err, &exhausted):
		note(ctx, err)
		return newError(http.StatusServiceUnavailable, "the workflow engine has too much to do; try again in a moment")
	case errors.As(err, &late), errors.Is(err, context.DeadlineExceeded):
		note(ctx, err)
		return newError(http.StatusGatewayTimeout, "the answer took too long; try again in a moment")
	case errors.As(err, &down):
		note(ctx, err)
		return newError(http.StatusServiceUnavailable, "the workflow engine does not answer; try again in a moment")
	case errors.Is(err, context.Canceled):
		return newError(http.StatusServiceUnavailable, "the request was given up")
	default:
		note(ctx, err)
		return newError(http.StatusInternalServerError, serverFailed)
	}
}

// installErrors makes huma answer with Error. huma keeps this in package variables; setting them
// once, to the same values whatever the server, is all that can be done about it.
var installErrors = sync.OnceFunc(func() {
	huma.DefaultArrayNullable = false // a list is never null here
	huma.NewErrorWithContext = func(ctx huma.Context, status int, msg string, errs ...error) huma.StatusError {
		if status >= http.StatusInternalServerError {
			return answerOf(ctx.Context(), errors.Join(append(errs, errors.New(msg))...))
		}
		return huma.NewError(status, msg, errs...)
	}
	huma.NewError = func(status int, msg string, errs ...error) huma.StatusError {
		var faults []job.FieldError
		for _, err := range errs {
			if err != nil {
				faults = append(faults, faultOf(err))
			}
		}
		if len(faults) > 0 {
			return invalid(status, faults)
		}
		if status == http.StatusRequestEntityTooLarge {
			msg = fmt.Sprintf("the body is too large: it may have %d bytes", maxBody)
		}
		return newError(status, "%s", msg)
	}
})

var required = regexp.MustCompile(`^expected required property (\S+) to be present$`)

// faultOf names the field that one of huma's complaints is about. It takes over the message, never the
// value, which may be a password.
func faultOf(err error) job.FieldError {
	var d *huma.ErrorDetail
	if !errors.As(err, &d) {
		return job.FieldError{Message: err.Error()}
	}
	_, field, _ := strings.Cut(d.Location, ".")
	if m := required.FindStringSubmatch(d.Message); m != nil {
		return job.FieldError{Field: strings.TrimPrefix(field+"."+m[1], "."), Message: "is required"}
	}
	switch msg := d.Message; {
	case msg == "unexpected property":
		return job.FieldError{Field: field, Message: "is not known"}
	case strings.HasPrefix(msg, "expected "):
		return job.FieldError{Field: field, Message: "must be " + strings.TrimPrefix(strings.TrimPrefix(msg, "expected "), "value to be ")}
	case field == "":
		return job.FieldError{Field: "body", Message: "cannot be read: " + msg}
	default:
		return job.FieldError{Field: field, Message: msg}
	}
}

// echoError answers what the router has to say: no such path, wrong method.
func echoError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	var he *echo.HTTPError
	status := http.StatusInternalServerError
	if errors.As(err, &he) {
		status = he.Code
	}
	r := c.Request()
	answer := newError(status, "%s", strings.ToLower(http.StatusText(status)))
	switch status {
	case http.StatusNotFound:
		answer.Message = fmt.Sprintf("there is nothing at %s; /docs lists what there is", job.Shorten(r.URL.Path, 80))
	case http.StatusMethodNotAllowed:
		answer.Message = fmt.Sprintf("%s is not possible on %s; possible: %s", job.Shorten(r.Method, 20),
			job.Shorten(r.URL.Path, 80), c.Response().Header().Get("Allow"))
	case http.StatusInternalServerError:
		answer = answerOf(r.Context(), err)
	}
	if err := c.JSON(status, answer); err != nil {
		note(r.Context(), err)
	}
}

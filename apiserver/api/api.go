// Package api is the shapes of the HTTP API: the bodies of requests and answers that are not those of
// [hypersdk/workflows/job] or [hypersdk/providers] themselves. The server and its clients share them.
//
// The tags doc, example and the like go into the OpenAPI document, and bound what the server accepts.
package api

import (
	"hypersdk/workflows/job"
)

// Error is the body of every answer that is not a success.
type Error struct {
	Message   string           `json:"error" doc:"What went wrong, in one sentence" example:"no such job: 7d1f"`
	Timestamp job.Time         `json:"timestamp"`
	Errors    []job.FieldError `json:"errors,omitempty" doc:"Every fault of the request, by field"`

	// Status is the HTTP status that the body comes with.
	Status int `json:"-"`
}

func (e *Error) Error() string { return e.Message }

// GetStatus is Status.
func (e *Error) GetStatus() int { return e.Status }

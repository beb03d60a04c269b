package embedded

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"

	"go.temporal.io/server/common/log/tag"
)

// logger hands the server's log to slog, from warnings on: at info the server tells of every step.
type logger struct {
	log      *slog.Logger
	starting atomic.Bool
	stopping atomic.Bool // its parts then complain of one another's absence
}

// fatal is what the server panics with while it starts.
type fatal struct{ err error }

func (*logger) Debug(string, ...tag.Tag) {}
func (*logger) Info(string, ...tag.Tag)  {}

func (l *logger) Warn(msg string, tags ...tag.Tag) {
	// That the server offers no HTTP beside gRPC is meant: any web page could call it.
	if !strings.HasPrefix(msg, "HTTP API port has not been set") {
		l.write(slog.LevelWarn, msg, tags)
	}
}

func (l *logger) Error(msg string, tags ...tag.Tag) { l.write(slog.LevelError, msg, tags) }

func (l *logger) DPanic(msg string, tags ...tag.Tag) { l.write(slog.LevelError, msg, tags) }

func (l *logger) Panic(msg string, tags ...tag.Tag) {
	l.write(slog.LevelError, msg, tags)
	panic(msg)
}

// Fatal does not return, as its callers expect. While the server starts it becomes the error of Start;
// later it ends the process: nothing is lost by that, and what goes on without a part of the server
// would only hang.
func (l *logger) Fatal(msg string, tags ...tag.Tag) {
	if l.starting.Load() {
		err := errors.New(msg)
		for _, t := range tags {
			if cause := asError(t); cause != nil {
				err = cause
			}
		}
		panic(fatal{err})
	}
	l.write(slog.LevelError, msg, tags)
	os.Exit(1)
}

func (l *logger) write(level slog.Level, msg string, tags []tag.Tag) {
	if l.stopping.Load() {
		level = slog.LevelDebug
	}
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, len(tags)+1)
	attrs = append(attrs, slog.String("part", "temporal"))
	for _, t := range tags {
		attrs = append(attrs, slog.Any(t.Key(), t.Value()))
		// A caller that hung up, such as a worker that stops, is no failure of the server.
		if err := asError(t); err != nil && strings.Contains(err.Error(), context.Canceled.Error()) {
			level = slog.LevelDebug
		}
	}
	l.log.LogAttrs(context.Background(), level, msg, attrs...)
}

// asError is the error in a tag, whose Value would be a text; nil: it holds none.
func asError(t tag.Tag) error {
	z, ok := t.(tag.ZapTag)
	if !ok {
		return nil
	}
	err, _ := z.Field().Interface.(error)
	return err
}

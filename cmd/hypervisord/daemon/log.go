package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"

	"golang.org/x/term"
)

// NewLog writes the log to w: as text where somebody reads it on a terminal, else as JSON lines.
func NewLog(w io.Writer, cfg Config) *slog.Logger {
	opt := &slog.HandlerOptions{Level: cfg.LogLevel}
	text := cfg.LogFormat == "text"
	if f, ok := w.(*os.File); ok && cfg.LogFormat == "auto" {
		text = term.IsTerminal(int(f.Fd()))
	}
	if text {
		return slog.New(slog.NewTextHandler(w, opt))
	}
	return slog.New(slog.NewJSONHandler(w, opt))
}

// warnings is a handler that takes no less than warnings: for libraries that tell of every step.
type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// Handle leaves out what the SDK warns of whenever an attempt is cut off or its job cancelled: the
// attempt itself says so better.
func (w warnings) Handle(ctx context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn && r.Message == "RecordActivityHeartbeat with error" {
		return nil
	}
	return w.Handler.Handle(ctx, r)
}

func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }
func (w warnings) WithGroup(name string) slog.Handler   { return warnings{w.Handler.WithGroup(name)} }

// notify tells systemd how the service is; without systemd it does nothing.
func notify(state string) error {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

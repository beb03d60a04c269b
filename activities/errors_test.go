package activities

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/temporal"

	"hypersdk/formats"
	"hypersdk/providers"
)

// The table of reasons and what becomes of them.
func TestFail(t *testing.T) {
	paces := Paces{Again: 1, Precondition: 2, Throttled: 3, Exhausted: 4}
	of := func(r providers.Reason) error {
		return &providers.Error{Op: "fake: work", Object: "vm-42", Reason: r, Msg: "so it is"}
	}
	for _, c := range []struct {
		name   string
		err    error
		reason providers.Reason
		final  bool
		delay  time.Duration
	}{
		{"invalid", of(providers.Invalid), providers.Invalid, true, 0},
		{"unsupported", of(providers.Unsupported), providers.Unsupported, true, 0},
		{"not found", of(providers.NotFound), providers.NotFound, true, 0},
		{"exists", of(providers.Exists), providers.Exists, true, 0},
		{"auth", of(providers.Auth), providers.Auth, true, 0},
		{"denied", of(providers.Denied), providers.Denied, true, 0},
		{"corrupt", of(providers.Corrupt), providers.Corrupt, true, 0},
		{"tracking lost", of(providers.TrackingLost), providers.TrackingLost, true, 0},
		{"precondition", of(providers.Precondition), providers.Precondition, false, 2},
		{"throttled", of(providers.Throttled), providers.Throttled, false, 3},
		{"throttled, and told how long", &providers.Error{Op: "x", Reason: providers.Throttled, Retry: time.Minute}, providers.Throttled, false, time.Minute},
		{"throttled, and told nonsense", &providers.Error{Op: "x", Reason: providers.Throttled, Retry: 1000 * time.Hour}, providers.Throttled, false, time.Hour},
		{"exhausted", of(providers.Exhausted), providers.Exhausted, false, 4},
		{"unavailable", of(providers.Unavailable), providers.Unavailable, false, 0},
		{"unknown", errors.New("what?"), providers.Unavailable, false, 0},
		{"canceled by somebody else", context.Canceled, providers.Unavailable, false, 1},
		{"corrupt image", fmt.Errorf("qcow2: %w", formats.ErrCorrupt), providers.Corrupt, true, 0},
		{"unsupported image", fmt.Errorf("qcow2: %w", formats.ErrFormat), providers.Unsupported, true, 0},
		{"disk full", &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, providers.Exhausted, false, 4},
		{"quota", syscall.EDQUOT, providers.Exhausted, false, 4},
		{"read-only", syscall.EROFS, providers.Denied, true, 0},
		{"wrapped", fmt.Errorf("disk 1: %w", of(providers.Auth)), providers.Auth, true, 0},
		{"one of ours", refuse(providers.Exists, "it is there"), providers.Exists, true, 0},
		{"decided already", final(of(providers.Exhausted)), providers.Exhausted, true, 0},
		{"decided already, and wrapped", errors.Join(final(of(providers.Exhausted)), nil), providers.Exhausted, true, 0},
		{"decided to go on", paces.soon(of(providers.Unavailable)), providers.Unavailable, false, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := failure(t, paces.fail(t.Context(), c.err))
			require.Equal(t, string(c.reason), app.Type())
			require.Equal(t, c.final, app.NonRetryable())
			require.Equal(t, c.delay, app.NextRetryDelay())
			require.Equal(t, temporal.ApplicationErrorCategoryBenign, app.Category())
		})
	}
	require.NoError(t, paces.fail(t.Context(), nil))
}

func TestFailOfACancelledActivity(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(temporal.NewCanceledError())
	require.True(t, temporal.IsCanceledError(DefaultPaces().fail(ctx, ctx.Err())))

	// The worker stops: that is not the user's wish.
	ctx, cancel = context.WithCancelCause(t.Context())
	cancel(errors.New("worker is now shutdown"))
	require.Equal(t, string(providers.Unavailable), failure(t, DefaultPaces().fail(ctx, ctx.Err())).Type())
}

func TestMessagesAreShort(t *testing.T) {
	app := failure(t, DefaultPaces().fail(t.Context(), errors.New(strings.Repeat("x", 1<<20))))
	require.Less(t, len(app.Message()), 4096)
}

func TestSentences(t *testing.T) {
	err := refuse(providers.Exists, "%s is there: %w", "x", fs.ErrExist)
	require.ErrorIs(t, err, providers.Exists)
	require.ErrorIs(t, err, fs.ErrExist)
	require.NotErrorIs(t, err, providers.NotFound)
	require.EqualError(t, err, "x is there: file already exists")
}

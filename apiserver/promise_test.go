package apiserver_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
)

// Nothing is promised before it is on the disk.
func TestAnAnswerIsAPromise(t *testing.T) {
	var asked atomic.Int64
	fault := atomic.Pointer[error]{}
	b := start(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Durable = func(context.Context) error {
			asked.Add(1)
			if err := fault.Load(); err != nil {
				return *err
			}
			return nil
		}
	})
	submit := func() *http.Response {
		r, err := http.Post(b.URL+"/jobs/submit", "application/json", strings.NewReader(`{"vm_path":"web-01","output_path":"/exports"}`))
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		return r
	}
	require.Equal(t, http.StatusOK, submit().StatusCode)
	require.EqualValues(t, 1, asked.Load())
	full := errors.New("no space left on device")
	fault.Store(&full)
	require.GreaterOrEqual(t, submit().StatusCode, 500, "a job that may be forgotten is not accepted")
	before := asked.Load()
	r, err := http.Get(b.URL + "/jobs/query?all=true")
	require.NoError(t, err)
	require.NoError(t, r.Body.Close())
	require.Equal(t, http.StatusOK, r.StatusCode)
	require.Equal(t, before, asked.Load(), "who only asks is promised nothing")
}

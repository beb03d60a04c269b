package client_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver/api"
	"hypersdk/apiserver/client"
)

// A server that goes in the middle of an answer is away, and not another program.
func TestAnAnswerThatBreaksOff(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"jobs":[`)
	}))
	defer s.Close()
	c, err := client.New(s.URL, "test")
	require.NoError(t, err)
	var away *client.UnreachableError
	_, err = c.Jobs(t.Context(), api.Query{})
	require.ErrorAs(t, err, &away)
	require.ErrorContains(t, err, "its answer broke off")
	_, err = c.Log(t.Context(), "j", client.LogOptions{}, io.Discard)
	require.ErrorAs(t, err, &away)
}

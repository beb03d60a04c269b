package apiserver_test

import (
	"flag"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/apiserver"
)

var update = flag.Bool("update", false, "write openapi.json and the golden files anew")

// The document that is committed is the one that the code makes: whoever changes the API sees it in the
// diff. `go generate ./apiserver` writes it.
func TestOpenAPIDocument(t *testing.T) {
	now, err := apiserver.OpenAPI()
	require.NoError(t, err)
	if *update {
		require.NoError(t, os.WriteFile("openapi.json", now, 0o644))
	}
	committed, err := os.ReadFile("openapi.json")
	require.NoError(t, err)
	require.Equal(t, string(committed), string(now), "run: go generate ./apiserver")
}

package apiserver_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
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
	if !bytes.Equal(committed, now) {
		t.Fatalf("openapi.json is not what the code makes; run: go generate ./apiserver\nfirst difference: %s", difference(committed, now))
	}
}

// difference is the first line in which two texts differ.
func difference(a, b []byte) string {
	la, lb := bytes.Split(a, []byte("\n")), bytes.Split(b, []byte("\n"))
	for i := range min(len(la), len(lb)) {
		if !bytes.Equal(la[i], lb[i]) {
			return fmt.Sprintf("line %d: %s | %s", i+1, la[i], lb[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(la), len(lb))
}

type openAPI struct {
	OpenAPI string `json:"openapi"`
	Paths   map[string]map[string]struct {
		OperationID string   `json:"operationId"`
		Summary     string   `json:"summary"`
		Tags        []string `json:"tags"`
		RequestBody *struct {
			Content map[string]map[string]any `json:"content"`
		} `json:"requestBody"`
		Responses map[string]struct {
			Content map[string]map[string]any `json:"content"`
		} `json:"responses"`
	} `json:"paths"`
}

// Every operation says what it is, and shows what goes in, what comes out, and what errors look like.
func TestOpenAPIIsComplete(t *testing.T) {
	raw, err := apiserver.OpenAPI()
	require.NoError(t, err)
	require.NotContains(t, string(raw), "$schema")
	var doc openAPI
	require.NoError(t, json.Unmarshal(raw, &doc))
	require.Equal(t, "3.1.0", doc.OpenAPI)
	var paths []string
	for path, item := range doc.Paths {
		for method, op := range item {
			paths = append(paths, method+" "+path)
			require.NotEmpty(t, op.OperationID, path)
			require.NotEmpty(t, op.Summary, path)
			require.Len(t, op.Tags, 1, path)
			failures := 0
			for status, r := range op.Responses {
				for kind, media := range r.Content {
					require.Contains(t, media, "example", "%s %s %s %s", method, path, status, kind)
				}
				if status >= "400" || status == "default" {
					failures++
				}
			}
			require.NotZero(t, failures, path)
			if op.RequestBody != nil {
				for kind, media := range op.RequestBody.Content {
					require.True(t, media["example"] != nil || media["examples"] != nil, "%s %s %s", method, path, kind)
				}
			}
		}
	}
	require.ElementsMatch(t, []string{
		"get /health", "get /status", "get /capabilities", "post /jobs/submit", "post /jobs/query", "get /jobs/query", "get /jobs/{id}",
		"post /jobs/cancel", "get /jobs/progress/{id}", "get /jobs/eta/{id}", "get /jobs/logs/{id}", "post /jobs/{id}/pause",
		"post /jobs/{id}/resume", "put /jobs/{id}/limit", "post /convert/format", "get /convert/status", "get /vms/list", "post /vms/list", "post /vms/info", "get /ws",
		"post /vms/poweron", "post /vms/poweroff", "post /vms/shutdown", "post /vms/remove-cdrom", "post /vms/snapshots", "post /vms/snapshots/create",
		"post /vms/snapshots/delete", "post /vms/clone", "post /vms/template", "get /vms/operations/{id}",
		"post /cbt/enable", "post /cbt/disable", "post /cbt/status", "post /incremental/analyze", "post /incremental/list", "post /incremental/check",
		"post /incremental/merge", "post /incremental/flatten", "post /incremental/delete", "post /sync/submit", "post /sync/cutover",
		"post /vms/import", "get /inventory/datacenters", "get /inventory/clusters", "get /inventory/hosts", "get /inventory/datastores",
		"get /inventory/networks", "get /inventory/pools", "get /inventory/folders", "get /inventory/events", "get /inventory/tasks",
		"get /inventory/metrics",
	}, paths)
}

// Both documents and the page that shows them are served, and load nothing from elsewhere.
func TestDocumentation(t *testing.T) {
	b := start(t)
	require.Equal(t, "3.1.0", b.get("/openapi.json").ok()["openapi"])
	require.Equal(t, "3.0.3", b.get("/openapi-3.0.json").ok()["openapi"])
	for path, kind := range map[string]string{"/docs": "text/html", "/docs.js": "text/javascript", "/docs.css": "text/css"} {
		a := b.get(path)
		require.Equal(t, http.StatusOK, a.status)
		require.Contains(t, a.header.Get("Content-Type"), kind)
		require.NotRegexp(t, `(src|href)="(https?:)?//|\burl\(|@import`, a.body)
		require.Contains(t, a.header.Get("Content-Security-Policy"), "default-src 'none'")
	}
	a := b.get("/")
	require.Equal(t, http.StatusFound, a.status)
	require.Equal(t, "/docs", a.header.Get("Location"))
}

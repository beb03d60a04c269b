package apiserver

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humaecho"
	"github.com/labstack/echo/v4"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

//go:generate go test -run TestOpenAPIDocument -update .

// The page is our own: it loads nothing from anywhere, so that it works where there is no internet.
var (
	//go:embed docs.html
	docsPage []byte
	//go:embed docs.js
	docsScript []byte
	//go:embed docs.css
	docsStyle []byte
)

const about = `Exports virtual machines by durable jobs.

A job is submitted, waits for its turn, and is carried out by a workflow that survives restarts of
everything. Times are RFC 3339 in UTC with three fractional digits, sizes are in bytes, rates in MB/s
(1,000,000 bytes a second). An answer that is not a success always has ` + "`error`" + `, one sentence, and
` + "`timestamp`" + `; where the request was at fault, ` + "`errors`" + ` names every fault by field.

Bodies are JSON; ` + "`/jobs/submit`" + ` takes YAML as well. A body may have 10 MiB.`

// newAPI is an API without operations.
func newAPI(e *echo.Echo, version string) huma.API {
	installErrors()
	cfg := huma.DefaultConfig("HyperSDK", version)
	cfg.Info.Description = about
	cfg.CreateHooks = nil // no $schema in the answers
	cfg.SchemasPath, cfg.DocsPath, cfg.OpenAPIPath = "", "", ""
	cfg.RejectUnknownQueryParameters = true
	cfg.Tags = []*huma.Tag{
		{Name: "jobs", Description: "Submit exports, follow them, steer them"},
		{Name: "vms", Description: "What there is to export"},
		{Name: "inventory", Description: "What VMs run on, and what happened there"},
		{Name: "images", Description: "Convert disk images that lie on a worker's host"},
		{Name: "incremental", Description: "Chains of incremental copies: what the next one would do, and work on chains that are there"},
		{Name: "sync", Description: "Warm copies: the disks of VMs that run, kept in sync until the cutover"},
		{Name: "server", Description: "The server itself"},
	}
	h := humaecho.New(e, cfg)
	h.OpenAPI().Components.Schemas.RegisterTypeAlias(reflect.TypeFor[job.Time](), reflect.TypeFor[time.Time]())
	h.OpenAPI().Components.Schemas.RegisterTypeAlias(reflect.TypeFor[job.Duration](), reflect.TypeFor[durationText]())
	h.OpenAPI().Components.Schemas.RegisterTypeAlias(reflect.TypeFor[api.States](), reflect.TypeFor[stateList]())
	return h
}

// OpenAPI is the OpenAPI 3.1 document, indented. The version is left out: the document changes when
// the API does.
func OpenAPI() ([]byte, error) {
	h := newAPI(echo.New(), "1")
	(&Server{}).register(h)
	raw, err := json.Marshal(h.OpenAPI())
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// operation is an operation with what all of them have.
func operation(method, path, id, tag, summary, description string, errors ...int) huma.Operation {
	return huma.Operation{
		Method: method, Path: path, OperationID: id, Tags: []string{tag}, Summary: summary,
		Description: description, Errors: errors, MaxBodyBytes: maxBody + 1, BodyReadTimeout: defaultPatience().read,
	}
}

// documentation serves the document and a page that shows it.
func documentation(e *echo.Echo, h huma.API) {
	raw := func(contentType string, body []byte, err error) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err != nil {
				return err
			}
			c.Response().Header().Set("Content-Security-Policy",
				"default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; frame-ancestors 'none'")
			return c.Blob(http.StatusOK, contentType, body)
		}
	}
	v31, err := json.Marshal(h.OpenAPI())
	e.GET("/openapi.json", raw("application/json", v31, err))
	v30, err := h.OpenAPI().Downgrade()
	e.GET("/openapi-3.0.json", raw("application/json", v30, err))
	e.GET("/docs", raw("text/html; charset=utf-8", docsPage, nil))
	e.GET("/docs.js", raw("text/javascript; charset=utf-8", docsScript, nil))
	e.GET("/docs.css", raw("text/css; charset=utf-8", docsStyle, nil))
	e.GET("/", func(c echo.Context) error { return c.Redirect(http.StatusFound, "/docs") })
}

package apiserver

import (
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"hypersdk/apiserver/api"
)

// documentSubmit describes the body of /jobs/submit, which the operation reads by itself.
func documentSubmit(h huma.API) {
	doc := h.OpenAPI()
	op := doc.Paths["/jobs/submit"].Post
	op.Description += " Accepted and ignored, because older clients send them: " + strings.Join(ignoredNames(), ", ") + "."
	reg := doc.Components.Schemas
	one := reg.Schema(reflect.TypeFor[api.Submission](), true, "Submission")

	s := reg.SchemaFromRef(one.Ref)
	compress := func(description string) *huma.Schema {
		return &huma.Schema{
			AnyOf:       []*huma.Schema{{Type: huma.TypeBoolean}, {Type: huma.TypeString, Enum: []any{"zlib", "none"}}},
			Description: description,
		}
	}
	s.Properties["compress"] = compress(s.Properties["compress"].Description)
	s.Properties["compression"] = compress(s.Properties["compression"].Description)
	s.Required = slices.DeleteFunc(s.Required, func(name string) bool { return name == "output_path" })
	s.AnyOf = []*huma.Schema{{Required: []string{"output_path"}}, {Required: []string{"output_dir"}}}
	s.AdditionalProperties = nil // fields of older clients

	list := &huma.Schema{Type: huma.TypeArray, Items: one}
	batch := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{"jobs": list}, Required: []string{"jobs"}}
	body := &huma.Schema{OneOf: []*huma.Schema{one, list, batch}}

	web := map[string]any{"vm_path": "/datacenter/vm/web-01", "output_path": "/exports", "format": "qcow2", "compress": true}
	op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
		"application/json": {Schema: body, Examples: map[string]*huma.Example{
			"one job":      {Value: web},
			"several jobs": {Value: map[string]any{"jobs": []any{web, map[string]any{"vm_path": "db-01", "output_path": "/exports"}}}},
		}},
		"application/yaml": {Schema: body, Example: "jobs:\n  - vm_path: /datacenter/vm/web-01\n    output_path: /exports\n    format: qcow2\n"},
	}}
	op.Responses["422"] = &huma.Response{
		Description: "No job was accepted; the answer is that of a success with `error` set",
		Content: map[string]*huma.MediaType{"application/json": {
			Schema: op.Responses["200"].Content["application/json"].Schema, Example: exampleRejection(),
		}},
	}
	op.Responses["200"].Description = "At least one job was accepted"
}

// documentSocket describes /ws, of which OpenAPI knows only the beginning.
func documentSocket(h huma.API) {
	doc := h.OpenAPI()
	frame := doc.Components.Schemas.Schema(reflect.TypeFor[api.Frame](), true, "Frame")
	failed := doc.Components.Schemas.Schema(reflect.TypeFor[api.Error](), true, "Error")
	refused := func(description string) *huma.Response {
		return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: failed}}}
	}
	doc.AddOperation(&huma.Operation{
		Method: http.MethodGet, Path: "/ws", OperationID: "watch-jobs", Tags: []string{"jobs"},
		Summary: "Watch jobs over a web socket",
		Description: "The first frame is a snapshot: all running jobs, and the newest 100. After it comes a frame for " +
			"every job that changes, at most one a second for a job. Frames are sent by the server only.",
		Parameters: []*huma.Param{{
			Name: "job_id", In: "query", Description: "Only this job", Schema: &huma.Schema{Type: huma.TypeString},
		}},
		Responses: map[string]*huma.Response{
			"101":     {Description: "The web socket is open; its messages are Frames", Content: map[string]*huma.MediaType{"application/json": {Schema: frame}}},
			"404":     refused("There is no such job"),
			"403":     refused("The page is of an origin that is not allowed"),
			"default": refused("Error"),
		},
	})
}

// stateList is the schema of api.States: a state, or a list of them.
type stateList struct{}

func (stateList) Schema(huma.Registry) *huma.Schema {
	one := &huma.Schema{Type: huma.TypeString, Enum: []any{"pending", "running", "completed", "failed", "cancelled"}}
	one.PrecomputeMessages()
	list := &huma.Schema{Type: huma.TypeArray, Items: one}
	list.PrecomputeMessages()
	return &huma.Schema{AnyOf: []*huma.Schema{list, one}}
}

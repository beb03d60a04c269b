package apiserver

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"hypersdk/apiserver/api"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// ConvertInput is a request for a conversion. It is exported for huma, which looks no further else.
type ConvertInput struct {
	Key  string `header:"Idempotency-Key" maxLength:"200" doc:"Sending the same request again under the same key starts nothing and answers the same id" example:"web-01-to-qcow2"`
	Body api.ConvertRequest
}

func (s *Server) convertOperations(h huma.API) {
	huma.Register(h, operation(http.MethodPost, "/convert/format", "convert-format", "images", "Convert disk images",
		"Starts a durable job that converts disk images which lie on a worker's host: one, or all of `disks` at once. The job "+
			"is found at /jobs/{id} too, and is steered as every job. Nothing has its final name before it is whole, and "+
			"nothing is replaced without `overwrite`.",
		http.StatusBadRequest, http.StatusConflict, http.StatusServiceUnavailable),
		func(ctx context.Context, in *ConvertInput) (*struct{ Body api.ConvertStarted }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			id, err := s.convert(ctx, in.Key, in.Body)
			if err != nil {
				return nil, fail(ctx, err)
			}
			return &struct{ Body api.ConvertStarted }{api.ConvertStarted{ConversionID: id, JobID: id, Status: job.Pending, Timestamp: job.Now()}}, nil
		})
	huma.Register(h, operation(http.MethodGet, "/convert/status", "convert-status", "images", "Where a conversion stands", "",
		http.StatusNotFound, http.StatusServiceUnavailable),
		func(ctx context.Context, in *struct {
			ID string `query:"conversion_id" required:"true" maxLength:"200" doc:"Id of the conversion" example:"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11"`
		}) (*struct{ Body api.ConvertStatus }, error) {
			ctx, cancel := context.WithTimeout(ctx, quickTimeout)
			defer cancel()
			j, err := s.job(ctx, in.ID)
			var answer *api.Error
			if errors.As(err, &answer) && answer.Status == http.StatusNotFound || err == nil && j.Kind != job.Convert {
				err = newError(http.StatusNotFound, "no such conversion: %s", job.Shorten(in.ID, 80))
			}
			if err != nil {
				return nil, fail(ctx, err)
			}
			return &struct{ Body api.ConvertStatus }{convertStatus(j)}, nil
		})
}

// conversionSpace is the name space of the ids of conversions with an idempotency key.
var conversionSpace = uuid.MustParse("0c6a4f0e-51c8-4d4e-9a49-8b6a3f1f6e52")

// convert starts the workflow of a conversion, or finds the one that was started under the same key.
func (s *Server) convert(ctx context.Context, key string, r api.ConvertRequest) (id string, err error) {
	spec, err := s.conversion(r)
	if err != nil {
		return "", err
	}
	return s.startJob(ctx, newJob{
		what: "conversion", workflow: workflows.ConvertWorkflow, spec: spec, memo: workflows.MemoConversion,
		definition: spec.Definition(), title: spec.Title(), key: key, space: conversionSpace,
	})
}

// conversion is a request in its one form, or all its faults.
func (s *Server) conversion(r api.ConvertRequest) (job.Conversion, error) {
	c := r.Conversion
	one := r.SourcePath != "" || r.OutputPath != "" || r.SourceFormat != "" || len(c.Disks) == 0
	if one && len(c.Disks) > 0 {
		return c, invalid(http.StatusUnprocessableEntity, []job.FieldError{{Field: "disks", Message: "must not be given together with source_path and output_path"}})
	}
	if one {
		c.Disks = []job.ConversionDisk{{SourcePath: r.SourcePath, SourceFormat: r.SourceFormat, OutputPath: r.OutputPath}}
	}
	c.TargetFormat = s.formatName(c.TargetFormat)
	for i := range c.Disks {
		c.Disks[i].SourceFormat = s.formatName(c.Disks[i].SourceFormat)
	}
	faults := c.Validate(s.caps)
	if len(faults) == 0 {
		return c, nil
	}
	for i := range faults {
		if one { // under the name that it was given by
			faults[i].Field = strings.TrimPrefix(faults[i].Field, "disks[0].")
		}
	}
	return c, invalid(http.StatusUnprocessableEntity, faults)
}

// formatName is the name of a format as the jobs have it: in lower case, and "vpc", which some tools say,
// is "vhd".
func (s *Server) formatName(name string) string {
	name = strings.ToLower(name)
	return cmp.Or(map[string]string{"vpc": "vhd"}[name], name)
}

func convertStatus(j job.Job) api.ConvertStatus {
	out := api.ConvertStatus{
		ConversionID: j.ID, JobID: j.ID, Status: j.Status, TargetFormat: j.Definition.Format,
		Conversion: job.Conversion{Disks: []job.ConversionDisk{}}, Progress: j.Progress, Result: j.Result, Error: j.Error,
		CreatedAt: j.CreatedAt, StartedAt: j.StartedAt, CompletedAt: j.CompletedAt, UpdatedAt: j.UpdatedAt, Timestamp: job.Now(),
	}
	if j.Conversion != nil && len(j.Conversion.Disks) > 0 {
		out.Conversion = *j.Conversion
		out.SourcePath, out.OutputPath = j.Conversion.Disks[0].SourcePath, j.Conversion.Disks[0].OutputPath
	}
	if j.Progress != nil {
		out.Percentage = j.Progress.PercentComplete
	}
	return out
}

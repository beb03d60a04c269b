package apiserver

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"unicode/utf8"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

// Whatever a body is, it is jobs with their faults or one refusal; what is accepted is sound.
func FuzzSubmit(f *testing.F) {
	for _, s := range []string{
		`{"vm_path": "v", "output_path": "/o"}`, `[{"vm_path": 1}]`, `{"jobs": [{"options": {"priority": 1e99}}]}`, "- vm_path: v\n  output_path: /o\n",
		`{"vm_path": "\ud800", "output_path": "/o/../p"}`, "a: &a [*a]", "\xef\xbb\xbf{}", `{"vcenter": {"server": "s", "password": []}}`, `{"compress": "zlib", "thin": null}`,
		`{"metadata": {"a": {"b": [1, 2, {"c": null}]}}}`, "jobs: !!binary aGVsbG8=", "? {a: b}\n: c", `{"vm_path": "v", "vm_path": "w", "output_dir": "/"}`,
	} {
		for _, ct := range []string{"application/json", "application/yaml", ""} {
			f.Add(ct, []byte(s))
		}
	}
	s := &Server{caps: job.Caps{Formats: []string{"qcow2", "raw"}, Transports: []string{"datastore"}}, cfg: Config{DefaultFormat: "qcow2"},
		deps: Deps{CanStoreCredentials: true}}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		jobs, err := decodeJobs(contentType, body)
		if err != nil {
			var e *api.Error
			if !errors.As(err, &e) || e.Status < 400 || e.Status >= 500 || e.Message == "" {
				t.Fatalf("%v is no refusal", err)
			}
			return
		}
		if len(jobs) == 0 || len(jobs) > maxJobs {
			t.Fatalf("%d jobs", len(jobs))
		}
		if before := digest(jobs); digest(slices.Clone(jobs)) != before {
			t.Fatal("the digest is not stable")
		}
		for i := range jobs {
			s.check(&jobs[i])
			if len(jobs[i].faults) > 0 {
				continue
			}
			spec := jobs[i].Spec
			if spec.VMPath == "" || spec.OutputPath == "" || spec.OutputPath[0] != '/' || !utf8.ValidString(spec.VMPath) {
				t.Fatalf("accepted: %+v", spec)
			}
			if _, err := json.Marshal(spec); err != nil {
				t.Fatal(err)
			}
		}
	})
}

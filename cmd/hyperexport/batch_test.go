package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/workflows/job"
)

func TestBatchFiles(t *testing.T) {
	base := job.Spec{OutputPath: "/exports", Format: "qcow2", Compress: true, Metadata: map[string]any{"a": "b"}}
	one := func(vm string) job.Spec { s := base; s.VMPath = vm; return s }
	other := one("db-01")
	other.OutputPath, other.Format, other.Compress, other.Options.LimitMBps = "/other", "raw", false, 20
	for name, c := range map[string]struct {
		text string
		want []job.Spec
	}{
		"names":             {"web-01\n\n# not this one\n  /DC0/vm/web 02  \n", []job.Spec{one("web-01"), one("/DC0/vm/web 02")}},
		"one name":          {"web-01", []job.Spec{one("web-01")}},
		"windows lines":     {"web-01\r\ndb-01\r\n", []job.Spec{one("web-01"), one("db-01")}},
		"a list of names":   {"- web-01\n- db-01\n", []job.Spec{one("web-01"), one("db-01")}},
		"a list of jobs":    {"- {vm: web-01}\n- vm: db-01\n  output: /other\n  format: raw\n  compress: false\n  options: {limit_mbps: 20}\n", []job.Spec{one("web-01"), other}},
		"the fields of API": {"- {vm_path: db-01, output_path: /other, format: raw, compress: false, options: {limit_mbps: 20}}", []job.Spec{other}},
		"jobs":              {"jobs:\n- vm: web-01\n", []job.Spec{one("web-01")}},
		"one job":           {"vm: web-01", []job.Spec{one("web-01")}},
		"JSON":              {`{"jobs":[{"vm_path":"web-01"},"db-01"]}`, []job.Spec{one("web-01"), one("db-01")}},
		"a list in JSON":    {`["web-01"]`, []job.Spec{one("web-01")}},
		"nothing":           {"# nothing\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseBatch([]byte(c.text), base)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestWhatIsWrongWithABatchFileIsSaid(t *testing.T) {
	for text, want := range map[string]string{
		"- web-01\n- {vm: db-01, formt: raw}":          `export 2 (line 2): there is no field "formt"`,
		"- {format: raw}":                              "names no VM",
		"- [a, b]":                                     "neither the name of a VM nor a job",
		"- {vm: a, compress: perhaps}":                 "cannot unmarshal",
		"jobs: [a]\nmore: b":                           `beside "jobs"`,
		"- {vm: a, password: x}":                       `there is no field "password"`,
		"- {vm: a, options: {limit_mbps: [1]}}":        "cannot unmarshal",
		"- &a [*a]":                                    "",
		"{\"jobs\": [{\"vm\": \"a\",}":                 "",
		strings.Repeat("[", 3000):                      "",
		"a: &a [x,x]\nb: &b [*a,*a]\njobs: [*b, *b]\n": `beside "jobs"`,
	} {
		_, err := parseBatch([]byte(text), job.Spec{})
		require.ErrorContains(t, err, want, text)
	}
}

func FuzzBatch(f *testing.F) {
	f.Add("web-01\n")
	f.Add("- {vm: a}")
	f.Fuzz(func(t *testing.T, text string) {
		specs, err := parseBatch([]byte(text), job.Spec{OutputPath: "/exports"})
		for _, s := range specs {
			require.NoError(t, err)
			require.NotEmpty(t, s.VMPath)
		}
	})
}

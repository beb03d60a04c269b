package job_test

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/workflows/job"
)

var caps = job.Caps{Formats: []string{"qcow2", "raw"}, Transports: []string{"datastore"}}

func good() job.Spec { return job.Spec{VMPath: "/dc/vm/web-01", OutputPath: "/exports"} }

func TestGoodSpecs(t *testing.T) {
	yes, no := true, false
	for name, change := range map[string]func(*job.Spec){
		"least": func(*job.Spec) {},
		"root":  func(s *job.Spec) { s.OutputPath = "/" },
		"names": func(s *job.Spec) {
			s.Name, s.VMPath, s.OutputPath = "日本 'n' \"q\"", "/dc/vm/a b's ‘x’ %2f", "/exports/…/a b"
		},
		"dots":   func(s *job.Spec) { s.OutputPath = "/exports/..hidden/a..b" },
		"thick":  func(s *job.Spec) { s.Thin = &no },
		"sparse": func(s *job.Spec) { s.Compress, s.Thin = true, &yes },
		"limits": func(s *job.Spec) {
			s.Options = job.Options{ParallelDownloads: 64, Priority: 100, LimitMBps: job.MaxMBps}
		},
		"transport": func(s *job.Spec) { s.Options.Transport = "datastore" },
		"metadata":  func(s *job.Spec) { s.Metadata = map[string]any{"a": []any{1, "b", nil}} },
	} {
		s := good()
		change(&s)
		require.Empty(t, s.Validate(caps), name)
	}
}

func TestFaultySpecs(t *testing.T) {
	no := false
	for _, c := range []struct {
		change func(*job.Spec)
		field  string
		says   string
	}{
		{func(s *job.Spec) { s.VMPath = " " }, "vm_path", "is required"},
		{func(s *job.Spec) { s.VMPath = strings.Repeat("v", 2049) }, "vm_path", "is too long"},
		{func(s *job.Spec) { s.VMPath = "a\xff" }, "vm_path", "UTF-8"},
		{func(s *job.Spec) { s.Name = "a\x1b[31m" }, "name", "control characters"},
		{func(s *job.Spec) { s.Name = strings.Repeat("n", 201) }, "name", "is too long"},
		{func(s *job.Spec) { s.Connection = "a\nb" }, "connection", "control characters"},
		{func(s *job.Spec) { s.OutputPath = "" }, "output_path", "is required"},
		{func(s *job.Spec) { s.OutputPath = "exports" }, "output_path", "absolute"},
		{func(s *job.Spec) { s.OutputPath = "/a/.." }, "output_path", `".."`},
		{func(s *job.Spec) { s.OutputPath = "/a/../../etc" }, "output_path", `".."`},
		{func(s *job.Spec) { s.OutputPath = "/a/" }, "output_path", `must be written as "/a"`},
		{func(s *job.Spec) { s.OutputPath = "/a/./b" }, "output_path", `must be written as "/a/b"`},
		{func(s *job.Spec) { s.OutputPath = "/a\x00b" }, "output_path", "control characters"},
		{func(s *job.Spec) { s.OutputPath = "/" + strings.Repeat("o", 4000) }, "output_path", "is too long"},
		{func(s *job.Spec) { s.Format = "ova" }, "format", "it has: qcow2, raw"},
		{func(s *job.Spec) { s.Format = strings.Repeat("x", 1000) }, "format", "…"},
		{func(s *job.Spec) { s.Incremental = true }, "incremental", "not available in this build"},
		{func(s *job.Spec) { s.Options.RemoveCDROM = true }, "options.remove_cdrom", "not available in this build"},
		{func(s *job.Spec) { s.Compress, s.Thin = true, &no }, "thin", "together with compress"},
		{func(s *job.Spec) { s.Options.ParallelDownloads = 65 }, "options.parallel_downloads", "between 0 and 64"},
		{func(s *job.Spec) { s.Options.Priority = -1 }, "options.priority", "between 0 and 100"},
		{func(s *job.Spec) { s.Options.Transport = "nbd" }, "options.transport", "it has: datastore"},
		{func(s *job.Spec) { s.Options.LimitMBps = -0.5 }, "options.limit_mbps", "negative"},
		{func(s *job.Spec) { s.Options.LimitMBps = math.NaN() }, "options.limit_mbps", "must be a number"},
		{func(s *job.Spec) { s.Options.LimitMBps = 2e6 }, "options.limit_mbps", "more than 1000000"},
		{func(s *job.Spec) { s.Metadata = map[string]any{"a": strings.Repeat("m", 17<<10)} }, "metadata", "too large"},
		{func(s *job.Spec) { s.Metadata = map[string]any{"a": func() {}} }, "metadata", "JSON"},
	} {
		s := good()
		c.change(&s)
		faults := s.Validate(caps)
		require.Len(t, faults, 1, "%+v", s)
		require.Equal(t, c.field, faults[0].Field)
		require.Contains(t, faults[0].Message, c.says)
		require.Equal(t, c.field+" "+faults[0].Message, faults[0].Error())
	}
}

// A chain is in one format, and is added to; what is about chains means nothing without one.
func TestIncrementalSpecs(t *testing.T) {
	yes, no := true, false
	with := caps
	with.Features = []string{job.FeatureIncremental}
	for _, c := range []struct {
		change func(*job.Spec)
		field  string
	}{
		{func(s *job.Spec) {
			s.Format, s.Compress, s.Thin, s.Options.Full, s.Options.VerifyTracking = "qcow2", true, &yes, true, true
		}, ""},
		{func(s *job.Spec) { s.Format = "raw" }, "format"},
		{func(s *job.Spec) { s.Thin = &no }, "thin"},
		{func(s *job.Spec) { s.Options.Overwrite = true }, "options.overwrite"},
		{func(s *job.Spec) { s.Incremental, s.Options.Full = false, true }, "options.full"},
		{func(s *job.Spec) { s.Incremental, s.Options.VerifyTracking = false, true }, "options.verify_tracking"},
	} {
		s := good()
		s.Incremental = true
		c.change(&s)
		faults := s.Validate(with)
		if c.field == "" {
			require.Empty(t, faults)
			continue
		}
		require.Len(t, faults, 1, c.field)
		require.Equal(t, c.field, faults[0].Field)
		require.Contains(t, faults[0].Message, "incremental")
	}
}

// A feature that a build has may be asked for.
func TestFeatures(t *testing.T) {
	s := good()
	s.Incremental, s.Options.RemoveCDROM = true, true
	require.Len(t, s.Validate(caps), 2)
	with := caps
	with.Features = []string{job.FeatureIncremental, job.FeatureRemoveCDROM}
	require.Empty(t, s.Validate(with))
}

func TestShorten(t *testing.T) {
	require.Equal(t, "日本…", job.Shorten("日本語テキスト", 3))
	require.Equal(t, "日本語", job.Shorten("日本語", 3))
}

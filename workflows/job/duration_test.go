package job_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/workflows/job"
)

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`90`: 90 * time.Second, `"90"`: 90 * time.Second, `"90s"`: 90 * time.Second, `"1m30s"`: 90 * time.Second, `0.5`: 500 * time.Millisecond, `0`: 0,
	} {
		var d job.Duration
		require.NoError(t, json.Unmarshal([]byte(text), &d), text)
		require.Equal(t, want, time.Duration(d), text)
		b, err := json.Marshal(d)
		require.NoError(t, err)
		var again job.Duration
		require.NoError(t, json.Unmarshal(b, &again))
		require.Equal(t, d, again)
	}
	for _, text := range []string{`""`, `"soon"`, `true`, `[]`, `{}`, `1e300`, `"1e300"`, `-1e300`} {
		var d job.Duration
		require.Error(t, json.Unmarshal([]byte(text), &d), text)
	}
	require.Equal(t, time.Minute, job.Duration(0).Or(time.Minute))
	require.Equal(t, time.Second, job.Duration(time.Second).Or(time.Minute))
}

func TestSourceOptions(t *testing.T) {
	with := caps
	with.Features = []string{job.FeatureRemoveCDROM}
	for _, c := range []struct {
		opt   job.Options
		field string
	}{
		{job.Options{Shutdown: true, ShutdownTimeout: job.Duration(time.Minute), ShutdownThen: job.ThenPowerOff, PowerOn: job.PowerOnNever}, ""},
		{job.Options{RemoveCDROM: true, KeepCDROMRemoved: true}, ""},
		{job.Options{KeepCDROMRemoved: true}, "options.keep_cdrom_removed"},
		{job.Options{ShutdownTimeout: job.Duration(time.Minute)}, "options.shutdown_timeout"},
		{job.Options{ShutdownThen: job.ThenFail}, "options.shutdown_then"},
		{job.Options{PowerOn: job.PowerOnNever}, "options.power_on"},
		{job.Options{Shutdown: true, ShutdownTimeout: -1}, "options.shutdown_timeout"},
		{job.Options{Shutdown: true, ShutdownTimeout: job.Duration(time.Millisecond)}, "options.shutdown_timeout"},
		{job.Options{Shutdown: true, ShutdownTimeout: job.Duration(25 * time.Hour)}, "options.shutdown_timeout"},
		{job.Options{Shutdown: true, ShutdownThen: "explode"}, "options.shutdown_then"},
		{job.Options{Shutdown: true, PowerOn: "maybe"}, "options.power_on"},
	} {
		s := good()
		s.Options = c.opt
		faults := s.Validate(with)
		if c.field == "" {
			require.Empty(t, faults)
			continue
		}
		require.Len(t, faults, 1, "%+v", c.opt)
		require.Equal(t, c.field, faults[0].Field)
	}
}

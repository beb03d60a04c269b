package job

import (
	"encoding/json"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Features are parts of a Spec that not every build can honour; one that it cannot is refused, never
// ignored. The names are those of the fields.
const (
	FeatureIncremental = "incremental"
	FeatureRemoveCDROM = "remove_cdrom"
)

const (
	maxName     = 200
	maxRef      = 2048 // of a VM or a connection, bytes
	maxPath     = 4000 // of the output folder, bytes: room for the names below it within PATH_MAX
	maxMetadata = 16 << 10
)

// Caps is what a build can do, as far as a Spec can ask for it.
type Caps struct {
	Formats    []string // disk formats that it writes
	Transports []string // ways to read disks; empty: whatever is asked for is left to the provider
	Features   []string // the Feature… that it has
}

// FieldError is one fault of a request.
type FieldError struct {
	Field   string `json:"field" doc:"Path of the field" example:"options.limit_mbps"`
	Message string `json:"message" doc:"What is wrong with it" example:"must not be negative"`
}

func (e FieldError) Error() string {
	if e.Field == "" {
		return e.Message
	}
	return e.Field + " " + e.Message
}

// Validate lists every fault of s that can be seen without asking anybody; none for a good one.
func (s Spec) Validate(c Caps) []FieldError {
	var v faults
	v.text("name", s.Name, maxName)
	v.required("vm_path", s.VMPath)
	v.text("vm_path", s.VMPath, maxRef)
	v.text("connection", s.Connection, maxRef)
	v.folder("output_path", s.OutputPath)
	v.oneOf("format", "disk format", s.Format, c.Formats)
	v.feature("incremental", s.Incremental, FeatureIncremental, c.Features)
	v = append(v, Unchainable(s)...)
	v.metadata(s.Metadata)
	if s.Compress && s.Thin != nil && !*s.Thin {
		v.add("thin", "must not be false together with compress: a compressed disk cannot be allocated in full")
	}

	o := s.Options
	v.within("options.parallel_downloads", o.ParallelDownloads, 0, 64)
	v.within("options.priority", o.Priority, 0, 100)
	v.feature("options.remove_cdrom", o.RemoveCDROM, FeatureRemoveCDROM, c.Features)
	v.source(o)
	if len(c.Transports) > 0 {
		v.oneOf("options.transport", "transport", o.Transport, c.Transports)
	}
	v.text("options.transport", o.Transport, maxName)
	if e := CheckLimit(o.LimitMBps); e != "" {
		v.add("options.limit_mbps", "%s", e)
	}
	return v
}

// Unchainable lists what a Spec that is incremental asks for and no chain can give, and of one that is not
// what only a chain can.
func Unchainable(s Spec) []FieldError {
	var v faults
	if !s.Incremental {
		for _, f := range []struct {
			field string
			said  bool
		}{{"full", s.Options.Full}, {"verify_tracking", s.Options.VerifyTracking}} {
			if f.said {
				v.add("options."+f.field, "means nothing without incremental")
			}
		}
		return v
	}
	if s.Format != "" && s.Format != chainFormat {
		v.add("format", "must be %s, or left out, with incremental: a chain is kept in it", chainFormat)
	}
	if s.Thin != nil && !*s.Thin {
		v.add("thin", "must not be false with incremental: a delta holds only what changed")
	}
	if s.Options.Overwrite {
		v.add("options.overwrite", "must not be set with incremental: a chain is added to, and never replaced")
	}
	return v
}

// chainFormat is the format of the disks of a chain.
const chainFormat = "qcow2"

// source finds what is wrong with what is asked to be done to the VM itself.
func (v *faults) source(o Options) {
	if o.KeepCDROMRemoved && !o.RemoveCDROM {
		v.add("options.keep_cdrom_removed", "means nothing without remove_cdrom")
	}
	for _, f := range []struct {
		field string
		said  bool
	}{{"shutdown_timeout", o.ShutdownTimeout != 0}, {"shutdown_then", o.ShutdownThen != ""}, {"power_on", o.PowerOn != ""}} {
		if f.said && !o.Shutdown {
			v.add("options."+f.field, "means nothing without shutdown")
		}
	}
	if e := CheckShutdownTimeout(o.ShutdownTimeout); e != "" {
		v.add("options.shutdown_timeout", "%s", e)
	}
	if t := o.ShutdownThen; t != "" && t != ThenFail && t != ThenPowerOff {
		v.add("options.shutdown_then", `must be "fail" or "poweroff"`)
	}
	if !slices.Contains([]string{"", PowerOnAfterExport, PowerOnAfterSnapshot, PowerOnNever}, o.PowerOn) {
		v.add("options.power_on", `must be "after_export", "after_snapshot" or "never"`)
	}
}

// CheckShutdownTimeout says what is wrong with the time that a guest is given; "" for a good one. 0 is
// the default.
func CheckShutdownTimeout(d Duration) string {
	switch t := time.Duration(d); {
	case t < 0:
		return "must not be negative"
	case t != 0 && t < time.Second:
		return "must be at least a second"
	case t > MaxShutdownTimeout:
		return "must not be more than a day"
	}
	return ""
}

// CheckFolder lists what is wrong with the path of a folder, which was given as a field.
func CheckFolder(field, path string) []FieldError {
	var v faults
	v.folder(field, path)
	return v
}

// CheckLimit says what is wrong with a bandwidth limit in MB/s; "" for a good one. 0 is no limit.
func CheckLimit(mbps float64) string {
	switch {
	case math.IsNaN(mbps) || math.IsInf(mbps, 0):
		return "must be a number"
	case mbps < 0:
		return "must not be negative; 0 is no limit"
	case mbps > MaxMBps:
		return "must not be more than 1000000 MB/s"
	}
	return ""
}

type faults []FieldError

func (v *faults) add(field, format string, args ...any) {
	*v = append(*v, FieldError{field, fmt.Sprintf(format, args...)})
}

func (v *faults) required(field, s string) {
	if strings.TrimSpace(s) == "" {
		v.add(field, "is required")
	}
}

func (v *faults) text(field, s string, limit int) {
	switch {
	case len(s) > limit:
		v.add(field, "is too long: %d bytes, %d are allowed", len(s), limit)
	case !utf8.ValidString(s):
		v.add(field, "is not valid UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		v.add(field, "must not contain control characters")
	}
}

func (v *faults) folder(field, p string) {
	switch {
	case strings.TrimSpace(p) == "":
		v.add(field, "is required")
	case len(p) > maxPath || !utf8.ValidString(p) || strings.ContainsFunc(p, unicode.IsControl):
		v.text(field, p, maxPath)
	case !path.IsAbs(p):
		v.add(field, "must be an absolute path")
	case slices.Contains(strings.Split(p, "/"), ".."):
		v.add(field, `must not contain ".."`)
	case path.Clean(p) != p:
		v.add(field, "must be written as %q", path.Clean(p))
	}
}

func (v *faults) oneOf(field, what, s string, known []string) {
	if s != "" && !slices.Contains(known, s) {
		v.add(field, "%q is not a %s that this build has; it has: %s", Shorten(s, 40), what, strings.Join(known, ", "))
	}
}

func (v *faults) feature(field string, asked bool, name string, have []string) {
	if asked && !slices.Contains(have, name) {
		v.add(field, "is not available in this build; leave it out")
	}
}

func (v *faults) within(field string, n, low, high int) {
	if n < low || n > high {
		v.add(field, "must be between %d and %d", low, high)
	}
}

func (v *faults) metadata(m map[string]any) {
	if len(m) == 0 {
		return
	}
	b, err := json.Marshal(m)
	switch {
	case err != nil:
		v.add("metadata", "cannot be written as JSON")
	case len(b) > maxMetadata:
		v.add("metadata", "is too large: %d bytes as JSON, %d are allowed", len(b), maxMetadata)
	}
}

// Shorten cuts s to at most n characters, with an ellipsis where something is missing.
func Shorten(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}

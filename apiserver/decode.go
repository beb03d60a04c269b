package apiserver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const (
	maxJobs = 1000
	// maxYAML is less than maxBody: a node of YAML takes a hundred times its text in memory.
	maxYAML = 1 << 20
)

// ignored are fields that older clients send and that mean nothing here: the server gives ids and
// times, chooses how to read disks, and has no other tool behind it.
var ignored = map[string][]string{
	"": {"id", "created_at", "datacenter", "export_method", "method"},
	"options.": {
		"show_individual_progress", "compress_level",
		"enable_pipeline", "pipeline_inspect", "pipeline_fix", "pipeline_convert", "pipeline_validate", "pipeline_compress",
		"hyper2kvm_path", "hyper2kvm_daemon", "hyper2kvm_instance", "hyper2kvm_watch_dir", "hyper2kvm_output_dir",
		"hyper2kvm_poll_interval", "hyper2kvm_daemon_timeout",
		"libvirt_integration", "libvirt_uri", "libvirt_autostart", "libvirt_bridge", "libvirt_pool",
	},
}

// ignoredNames are the paths of all ignored fields, sorted.
func ignoredNames() []string {
	var names []string
	for prefix, fields := range ignored {
		for _, f := range fields {
			names = append(names, prefix+f)
		}
	}
	slices.Sort(names)
	return names
}

// submitted is a job of a request and what is wrong with it.
type submitted struct {
	api.Submission
	faults []job.FieldError
}

// decodeJobs reads one job, a list of them, or {"jobs": […]}, in JSON or YAML. An error is about the
// body as a whole; what is wrong with a job is told with the job.
func decodeJobs(contentType string, body []byte) ([]submitted, error) {
	raw, err := asJSON(mediaType(contentType), body)
	if err != nil {
		return nil, err
	}
	list, err := jobList(raw)
	if err != nil {
		return nil, err
	}
	jobs := make([]submitted, len(list))
	for i, r := range list {
		jobs[i] = decodeJob(r)
	}
	return jobs, nil
}

// asJSON is the body as one JSON value. JSON is YAML too, so that a body of unknown type is JSON if it
// can be, and YAML else.
func asJSON(contentType string, body []byte) (json.RawMessage, error) {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	trimmed := bytes.TrimSpace(body)
	if len(trimmed) == 0 {
		return nil, newError(http.StatusBadRequest, "the body is empty: it should be a job, a list of jobs, or {\"jobs\": […]}")
	}
	var whole json.RawMessage
	jsonErr := json.Unmarshal(trimmed, &whole)
	if jsonErr == nil {
		return whole, nil
	}
	if strings.HasSuffix(contentType, "json") || (!strings.HasSuffix(contentType, "yaml") && (trimmed[0] == '{' || trimmed[0] == '[')) {
		return nil, newError(http.StatusBadRequest, "the body is not valid JSON: %s", jsonErr)
	}
	if len(body) > maxYAML {
		return nil, newError(http.StatusRequestEntityTooLarge, "the body is too large: YAML may have %d bytes; JSON may have more", maxYAML)
	}
	var unread any
	d := yaml.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&unread); err != nil {
		return nil, newError(http.StatusBadRequest, "the body is not valid YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(any)); !errors.Is(err, io.EOF) {
		return nil, newError(http.StatusBadRequest, "the body holds more than one YAML document: write several jobs as a list")
	}
	raw, err := json.Marshal(unread)
	if err != nil {
		return nil, newError(http.StatusBadRequest, "the body cannot be read as jobs: it has keys or numbers that JSON does not know")
	}
	return raw, nil
}

// jobList takes a body apart into jobs.
func jobList(raw json.RawMessage) ([]json.RawMessage, error) {
	switch raw[0] {
	case '[':
		return elements(raw)
	case '{':
		keys, values, err := members(raw)
		if err != nil {
			return nil, newError(http.StatusBadRequest, "the body is not valid JSON: %s", err)
		}
		list, ok := values["jobs"]
		if !ok {
			return []json.RawMessage{raw}, nil
		}
		if i := slices.IndexFunc(keys, func(k string) bool { return k != "jobs" }); i >= 0 {
			return nil, invalid(http.StatusUnprocessableEntity, []job.FieldError{{Field: job.Shorten(keys[i], 60), Message: `is not known beside "jobs"`}})
		}
		if list[0] != '[' {
			return nil, invalid(http.StatusUnprocessableEntity, []job.FieldError{{Field: "jobs", Message: "must be a list"}})
		}
		return elements(list)
	}
	return nil, newError(http.StatusBadRequest, "the body should be a job, a list of jobs, or {\"jobs\": […]}")
}

// elements takes a list apart, and stops where it is too long.
func elements(raw json.RawMessage) ([]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil {
		return nil, newError(http.StatusBadRequest, "the body is not valid JSON: %s", err)
	}
	var list []json.RawMessage
	for d.More() {
		if len(list) == maxJobs {
			return nil, invalid(http.StatusUnprocessableEntity, []job.FieldError{{Field: "jobs", Message: fmt.Sprintf("are too many: one request may have %d", maxJobs)}})
		}
		var e json.RawMessage
		if err := d.Decode(&e); err != nil {
			return nil, newError(http.StatusBadRequest, "the body is not valid JSON: %s", err)
		}
		list = append(list, e)
	}
	if len(list) == 0 {
		return nil, invalid(http.StatusUnprocessableEntity, []job.FieldError{{Field: "jobs", Message: "must not be empty"}})
	}
	return list, nil
}

// members takes an object apart: its keys in the order in which they were written, and their values.
func members(raw json.RawMessage) (keys []string, values map[string]json.RawMessage, err error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if _, err := d.Token(); err != nil {
		return nil, nil, err
	}
	values = map[string]json.RawMessage{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, nil, err
		}
		key, _ := t.(string) // a key is always a string
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, nil, err
		}
		if _, twice := values[key]; !twice {
			keys = append(keys, key)
		}
		values[key] = v
	}
	return keys, values, nil
}

func decodeJob(raw json.RawMessage) submitted {
	s := submitted{}
	if len(raw) == 0 || raw[0] != '{' {
		s.fault("", "must be an object")
		return s
	}
	s.object("", raw, reflect.ValueOf(&s.Submission).Elem())
	s.unify()
	return s
}

func (s *submitted) fault(field, format string, args ...any) {
	s.faults = append(s.faults, job.FieldError{Field: field, Message: fmt.Sprintf(format, args...)})
}

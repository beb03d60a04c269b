package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"gopkg.in/yaml.v3"

	"hypersdk/workflows/job"
)

const (
	maxBatch     = 10 << 20 // bytes
	maxBatchJobs = 10_000
)

// entry is an export of a batch file: the fields of a job, and short names for two of them.
type entry struct {
	VM       string `yaml:"vm"`
	Output   string `yaml:"output"`
	job.Spec `yaml:",inline"`
}

// readBatch reads a batch file: a list of VMs or jobs, or {jobs: […]}, in YAML or JSON; or the name of a
// VM on every line, with comments after a #. What an entry does not say it has of base.
func (a *app) readBatch(base job.Spec) ([]job.Spec, error) {
	r := a.In
	if a.opt.batch != "-" {
		f, err := os.Open(a.opt.batch)
		if err != nil {
			return nil, usageError("batch file: %w", err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, maxBatch+1))
	if err != nil {
		return nil, usageError("batch file: %w", err)
	}
	if len(b) > maxBatch {
		return nil, usageError("batch file %s is larger than %d bytes", a.opt.batch, maxBatch)
	}
	specs, err := parseBatch(b, base)
	if err == nil && len(specs) == 0 {
		err = errors.New("there is no VM in it")
	}
	if err == nil && len(specs) > maxBatchJobs {
		err = fmt.Errorf("it has %d exports; at most %d are possible", len(specs), maxBatchJobs)
	}
	if err != nil {
		return nil, usageError("batch file %s: %w", a.opt.batch, err)
	}
	return specs, nil
}

func parseBatch(b []byte, base job.Spec) ([]job.Spec, error) {
	var doc yaml.Node
	err := yaml.Unmarshal(b, &doc)
	if len(doc.Content) == 0 && err == nil {
		return nil, nil
	}
	if err != nil || doc.Content[0].Kind == yaml.ScalarNode {
		return parseNames(b, base, err)
	}
	list := doc.Content[0]
	if list.Kind == yaml.MappingNode {
		jobs := list
		for i := 0; i+1 < len(list.Content); i += 2 {
			if list.Content[i].Value == "jobs" {
				jobs = list.Content[i+1]
			}
		}
		if jobs != list && len(list.Content) != 2 {
			return nil, errors.New(`there is something beside "jobs"`)
		}
		list = jobs
	}
	entries := []*yaml.Node{list}
	if list.Kind == yaml.SequenceNode {
		entries = list.Content
	}
	var out []job.Spec
	for i, n := range entries {
		s, err := parseEntry(n, base)
		if err != nil {
			return nil, fmt.Errorf("export %d (line %d): %w", i+1, n.Line, err)
		}
		out = append(out, s)
	}
	return out, nil
}

func parseEntry(n *yaml.Node, base job.Spec) (job.Spec, error) {
	e := entry{Spec: base}
	e.Metadata = nil // maps are merged by the decoder: the base must not be
	switch n.Kind {
	case yaml.ScalarNode:
		e.VM = n.Value
	case yaml.MappingNode:
		// Only an encoder at the start of a stream knows how to be strict.
		b, err := yaml.Marshal(n)
		if err != nil {
			return e.Spec, err
		}
		d := yaml.NewDecoder(bytes.NewReader(b))
		d.KnownFields(true)
		if err := d.Decode(&e); err != nil {
			return e.Spec, errors.New(plainYAML(err))
		}
	default:
		return e.Spec, errors.New("it is neither the name of a VM nor a job")
	}
	if e.Metadata == nil {
		e.Metadata = base.Metadata
	}
	if e.VM != "" {
		e.VMPath = e.VM
	}
	if e.Output != "" {
		e.OutputPath = e.Output
	}
	if e.VMPath == "" {
		return e.Spec, errors.New("it names no VM (vm)")
	}
	return e.Spec, nil
}

// plainYAML is an error of the decoder without what only its author understands.
func plainYAML(err error) string {
	var te *yaml.TypeError
	if !errors.As(err, &te) {
		return strings.TrimPrefix(err.Error(), "yaml: ")
	}
	var out []string
	for _, e := range te.Errors {
		_, what, ok := strings.Cut(e, ": ")
		if !ok {
			what = e
		}
		if field, _, ok := strings.Cut(strings.TrimPrefix(what, "field "), " not found in type"); ok {
			what = fmt.Sprintf("there is no field %q", field)
		}
		out = append(out, what)
	}
	return strings.Join(out, "; ")
}

// parseNames takes every line as the name of a VM. cause is why it is not YAML, if it is not.
func parseNames(b []byte, base job.Spec, cause error) ([]job.Spec, error) {
	var out []job.Spec
	for line := range strings.Lines(string(b)) {
		if name := strings.TrimSpace(line); name != "" && !strings.HasPrefix(name, "#") {
			if cause != nil && (strings.HasPrefix(name, "- ") || strings.HasPrefix(name, "{") || strings.HasPrefix(name, "[")) {
				return nil, errors.New(plainYAML(cause)) // it was meant to be
			}
			s := base
			s.VMPath = name
			out = append(out, s)
		}
	}
	return out, nil
}

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"hypersdk/providers/connections"
)

const (
	connectionsKey = "Connections"
	maxConfigFile  = 1 << 20
)

// source is where the configuration comes from beside the flags.
type source struct {
	file   string // "": the first of the usual places that is there
	lookup func(name string) (value string, set bool)
}

// load lays file, environment and flags over the defaults that c holds: all writes into it. Flags have
// been parsed into c already; what they did not change is taken from the environment, and what that
// does not say from the file.
func load(c *Config, all []setting, flags *pflag.FlagSet, src source) error {
	done := map[string]bool{}
	for _, s := range all {
		if f := flags.Lookup(s.flag); f != nil && f.Changed {
			c.origin[s.key], done[s.key] = "flag --"+s.flag, true
		}
	}
	var errs []error
	for _, s := range all {
		for _, name := range s.variables() {
			v, _ := src.lookup(name)
			if done[s.key] || strings.TrimSpace(v) == "" {
				continue
			}
			c.origin[s.key], done[s.key] = "environment "+name, true
			if err := s.set(v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
			}
		}
	}
	for _, name := range []string{"TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE"} {
		if v, _ := src.lookup(name); v != "" {
			c.origin["TemporalProfile"] = "environment " + name
		}
	}
	file, content, err := findFile(src)
	if err != nil {
		return err
	}
	c.file = file
	errs = append(errs, loadFile(c, all, done, file, content)...)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.makeAbsolute()
}

// makeAbsolute lets relative paths start at the working folder.
func (c *Config) makeAbsolute() error {
	paths := []*string{&c.DataDir, &c.KeyFile}
	for i := range c.OutputRoots {
		paths = append(paths, &c.OutputRoots[i])
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return fmt.Errorf("path %s: %w", *p, err)
		}
		*p = abs
	}
	return nil
}

// usualFiles are where the configuration file is looked for.
func usualFiles(lookup func(string) (string, bool)) []string {
	var files []string
	if d, _ := lookup("XDG_CONFIG_HOME"); filepath.IsAbs(d) {
		files = append(files, filepath.Join(d, "hypersdk", "config.yaml"))
	} else if d, _ := lookup("HOME"); filepath.IsAbs(d) {
		files = append(files, filepath.Join(d, ".config", "hypersdk", "config.yaml"))
	}
	return append(files, "/etc/hypersdk/config.yaml")
}

func findFile(src source) (name string, content []byte, err error) {
	files := []string{src.file}
	if src.file == "" {
		files = usualFiles(src.lookup)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) && src.file == "" {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("configuration file: %w", err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
		if err != nil {
			return "", nil, fmt.Errorf("configuration file: %w", err)
		}
		if len(b) > maxConfigFile {
			return "", nil, fmt.Errorf("configuration file %s is larger than %d bytes", name, maxConfigFile)
		}
		return name, b, nil
	}
	return "", nil, nil
}

// loadFile sets what is not done yet from a file in YAML, and says everything that is wrong in it.
func loadFile(c *Config, all []setting, done map[string]bool, file string, content []byte) []error {
	var doc yaml.Node
	err := yaml.NewDecoder(bytes.NewReader(content)).Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil // empty
	}
	if err != nil {
		return []error{fmt.Errorf("configuration file %s is not YAML: %s", file, strings.TrimPrefix(err.Error(), "yaml: "))}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return []error{fmt.Errorf("configuration file %s must be a list of keys and values", file)}
	}
	byName := map[string]setting{}
	for _, s := range all {
		byName[normal(s.key)] = s
	}
	var errs []error
	seen := map[string]bool{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		fail := func(err error) { errs = append(errs, fmt.Errorf("%s, line %d: %w", file, key.Line, err)) }
		name := normal(key.Value)
		s, known := byName[name]
		switch {
		case seen[name]:
			fail(fmt.Errorf("%s is given twice", key.Value))
		case name == normal(connectionsKey):
			c.origin[connectionsKey] = fmt.Sprintf("%s, line %d", file, key.Line)
			if c.Connections, err = decodeConnections(value); err != nil {
				fail(err)
			}
		case !known:
			fail(unknownKey(key.Value, all))
		case !done[s.key]:
			c.origin[s.key] = fmt.Sprintf("%s, line %d", file, key.Line)
			if err := s.setNode(value); err != nil {
				fail(err)
			}
		}
		seen[name] = true
	}
	return errs
}

// setNode gives a setting a value from a file.
func (s setting) setNode(n *yaml.Node) error {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	list, isList := s.value.(pflag.SliceValue)
	switch {
	case isList && n.Kind == yaml.SequenceNode:
		var items []string
		if n.Decode(&items) == nil {
			return list.Replace(items)
		}
	case n.Kind == yaml.ScalarNode && n.Tag != "!!null":
		var b bool
		if s.value.Type() == "bool" && n.Decode(&b) == nil { // as YAML spells it
			return s.set(strconv.FormatBool(b))
		}
		if isList {
			return list.Replace([]string{n.Value})
		}
		return s.set(n.Value)
	case n.Kind == yaml.ScalarNode:
		return fmt.Errorf("%s has no value; it must be %s", s.key, s.kind())
	}
	return fmt.Errorf("%s must be %s", s.key, s.kind())
}

// decodeConnections reads `name: {kind: …, …}`. The kind's driver checks the rest.
func decodeConnections(n *yaml.Node) (map[string]connections.Config, error) {
	var byName map[string]map[string]any
	if err := n.Decode(&byName); err != nil {
		return nil, errors.New("connections must be names, each with a kind and what that kind wants to know")
	}
	out := map[string]connections.Config{}
	for name, fields := range byName {
		kind, ok := fields["kind"].(string)
		if !ok || kind == "" {
			return nil, fmt.Errorf("connection %s has no kind", name)
		}
		delete(fields, "kind")
		b, err := json.Marshal(fields)
		if err != nil {
			return nil, fmt.Errorf("connection %s holds what cannot be", name) // err might quote a secret
		}
		out[name] = connections.Config{Kind: kind, Config: b}
	}
	return out, nil
}

// normal is a key in one spelling: VCenterURL, vcenter_url and vcenterurl are the same.
func normal(key string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(key))
}

func unknownKey(key string, all []setting) error {
	best, distance := "", 1+max(1, len(key)/3)
	names := []string{connectionsKey}
	for _, s := range all {
		names = append(names, s.key)
	}
	for _, name := range names {
		if d := editDistance(normal(key), normal(name)); d < distance {
			best, distance = name, d
		}
	}
	if best == "" {
		return fmt.Errorf("there is no key %q; `hypervisord config` shows all", key)
	}
	return fmt.Errorf("there is no key %q; did you mean %s?", key, best)
}

// editDistance is how many letters have to be changed, added, taken away or swapped with their
// neighbour to make b of a.
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// show writes the configuration as YAML, each line with where it comes from. Secrets are not shown.
func show(w io.Writer, c Config, all []setting) error {
	var b strings.Builder
	for _, s := range all {
		from := c.origin[s.key]
		if from == "" {
			from = "default"
		}
		fmt.Fprintf(&b, "%-60s # %s\n", s.key+": "+s.text(), from)
	}
	static, err := c.connections()
	if err != nil {
		return err
	}
	for i, name := range sortedKeys(static) {
		if i == 0 {
			b.WriteString("Connections: # without what is secret or the same as above\n")
		}
		fmt.Fprintf(&b, "  %s: {kind: %s}\n", name, static[name].Kind)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// text is the value of a setting as YAML.
func (s setting) text() string {
	var v any = s.value.String()
	switch {
	case s.secret:
		if v != "" {
			v = "[redacted]"
		}
	case s.value.Type() == "bool", s.value.Type() == "int":
		return s.value.String()
	case s.key == "VCenterURL" && v != "":
		v = withoutPassword(s.value.String())
	}
	if l, ok := s.value.(pflag.SliceValue); ok {
		v = append([]string{}, l.GetSlice()...) // nothing is [], not null
	}
	b, err := json.Marshal(v) // which is YAML
	if err != nil {
		return ""
	}
	return string(b)
}

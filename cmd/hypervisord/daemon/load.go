package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"gopkg.in/yaml.v3"

	"hypersdk/providers/connections"
)

const (
	connectionsKey = "Connections"
	profilesKey    = "Profiles"
	maxConfigFile  = 1 << 20
)

// load lays file, environment and flags over the defaults that c holds: mine writes into it, and all
// are known in the file. Viper says which of them counts for a setting, but not which it was: c.origin
// is kept beside it. An empty file is the first of the usual ones that is there.
func load(c *Config, mine, all []setting, flags *pflag.FlagSet, file string) error {
	file, content, err := findFile(file)
	if err != nil {
		return err
	}
	c.file = file
	said, errs := readFile(c, all, content)
	v := viper.New()
	if err := errors.Join(v.BindPFlags(flags), v.MergeConfigMap(said)); err != nil {
		return err
	}
	for _, s := range mine {
		v.MustBindEnv(append([]string{s.flag}, s.variables()...)...)
		if !v.IsSet(s.flag) {
			continue
		}
		where := c.origin[s.key] // in the file
		if flags.Changed(s.flag) {
			c.origin[s.key] = "flag --" + s.flag
		} else if name := firstSet(s.variables()...); name != "" {
			c.origin[s.key], where = "environment "+name, "environment variable "+name
		}
		if err := s.set(v.Get(s.flag)); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
		}
	}
	if name := firstSet("TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE"); name != "" {
		c.origin["TemporalProfile"] = "environment " + name
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.makeAbsolute()
}

// firstSet is the variable that says something, of several for the same: the one that viper takes, too.
func firstSet(names ...string) string {
	for _, name := range names {
		if os.Getenv(name) != "" {
			return name
		}
	}
	return ""
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
func usualFiles() []string {
	var files []string
	if d := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(d) {
		files = append(files, filepath.Join(d, "hypersdk", "config.yaml"))
	} else if d := os.Getenv("HOME"); filepath.IsAbs(d) {
		files = append(files, filepath.Join(d, ".config", "hypersdk", "config.yaml"))
	}
	return append(files, "/etc/hypersdk/config.yaml")
}

func findFile(file string) (name string, content []byte, err error) {
	files := []string{file}
	if file == "" {
		files = usualFiles()
	}
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) && file == "" {
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

// readFile finds the value of each setting in a file in YAML, by its flag, and says what is wrong with
// the keys. Values stay as they are written, for 007 may be a password; so do the names of connections,
// which viper would write small.
func readFile(c *Config, all []setting, content []byte) (said map[string]any, errs []error) {
	var doc yaml.Node
	err := yaml.NewDecoder(bytes.NewReader(content)).Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil, nil // empty
	}
	if err != nil {
		return nil, []error{fmt.Errorf("configuration file %s is not YAML: %s", c.file, strings.TrimPrefix(err.Error(), "yaml: "))}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, []error{fmt.Errorf("configuration file %s must be a list of keys and values", c.file)}
	}
	byName := map[string]setting{}
	for _, s := range all {
		byName[normal(s.key)] = s
	}
	said = map[string]any{}
	seen := map[string]bool{}
	for i := 0; i < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		name, line := normal(key.Value), fmt.Sprintf("%s, line %d", c.file, key.Line)
		s, known := byName[name]
		var err error
		switch {
		case seen[name]:
			err = fmt.Errorf("%s is given twice", key.Value)
		case name == normal(connectionsKey):
			c.origin[connectionsKey] = line
			c.Connections, err = decodeConnections(value)
		case name == normal(profilesKey):
			c.origin[profilesKey] = line
			c.Profiles, err = decodeProfiles(value)
		case known:
			c.origin[s.key], said[s.flag] = line, value
		default:
			err = unknownKey(key.Value, all)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", line, err))
		}
		seen[name] = true
	}
	return said, errs
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
			return s.set(b)
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

// Profile is flags by their names, as they are written on a command line; several values of one are
// given in order.
type Profile map[string][]string

// decodeProfiles reads `name: {flag: value, …}`. The program that has the flags checks them.
func decodeProfiles(n *yaml.Node) (map[string]Profile, error) {
	var byName map[string]map[string]yaml.Node
	if err := n.Decode(&byName); err != nil {
		return nil, errors.New("profiles must be names, each with flags and their values")
	}
	out := map[string]Profile{}
	for name, flags := range byName {
		p := Profile{}
		for flag, v := range flags {
			switch {
			case v.Kind == yaml.ScalarNode && v.Tag != "!!null":
				p[flag] = []string{v.Value}
			case v.Kind == yaml.SequenceNode:
				var items []string
				if err := v.Decode(&items); err != nil {
					return nil, fmt.Errorf("profile %s: %s must be a value or a list of them", name, flag)
				}
				p[flag] = items
			default:
				return nil, fmt.Errorf("profile %s: %s must be a value or a list of them", name, flag)
			}
		}
		out[name] = p
	}
	return out, nil
}

// normal is a key in one spelling: VCenterURL, vcenter_url and vcenterurl are the same.
func normal(key string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(key))
}

func unknownKey(key string, all []setting) error {
	best, distance := "", 1+max(1, len(key)/3)
	names := []string{connectionsKey, profilesKey}
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
	static, err := c.Named()
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

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

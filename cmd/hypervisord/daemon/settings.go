package daemon

import (
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// A setting is one thing that can be configured, by a flag, the environment, or a line of the
// configuration file. All three set the same value, in its textual form.
type setting struct {
	key    string   // as in the configuration file: VCenterURL
	flag   string   // as a flag: vcenter-url; the file also takes it as vcenter_url and vcenterurl
	env    []string // variables beside HYPERSDK_VCENTER_URL, which goes before them
	secret bool     // is not a flag, for everybody on the host sees those, and is never shown
	value  pflag.Value
	usage  string
}

// variables are the environment variables of a setting, the first one that is set counts.
func (s setting) variables() []string {
	return append([]string{"HYPERSDK_" + strings.ToUpper(strings.ReplaceAll(s.flag, "-", "_"))}, s.env...)
}

// Settings are what can be configured of a Config, and the ways to do it.
type Settings struct {
	c    *Config
	all  []setting
	only []string // keys that flags and the environment set; nil: all of them
}

// NewSettings are the settings of c, which holds the defaults. With keys, flags and the environment set
// only those of them, and so does the file, though it may hold the others: for a program that shares
// the daemon's configuration file and not its data folder, ports or cluster.
func NewSettings(c *Config, keys ...string) *Settings {
	c.apart = len(keys) > 0
	return &Settings{c: c, all: settings(c), only: keys}
}

// mine are the settings that count.
func (s *Settings) mine() []setting {
	if s.only == nil {
		return s.all
	}
	return slices.DeleteFunc(slices.Clone(s.all), func(x setting) bool { return !slices.Contains(s.only, x.key) })
}

// AddFlags makes the settings flags.
func (s *Settings) AddFlags(fs *pflag.FlagSet) { addFlags(fs, s.mine()) }

// Load lays file, environment and flags over the defaults. An empty file is the first of the usual ones
// that is there.
func (s *Settings) Load(fs *pflag.FlagSet, file string) error {
	return load(s.c, s.mine(), s.all, fs, file)
}

// Show writes the configuration as YAML, each line with where it comes from. Secrets are not shown.
func (s *Settings) Show(w io.Writer) error { return show(w, *s.c, s.all) }

// settings are all there are, in the order in which they are shown.
func settings(c *Config) []setting {
	str := func(p *string) pflag.Value { return value(func(fs *pflag.FlagSet) { fs.StringVar(p, "", *p, "") }) }
	list := func(p *[]string) pflag.Value {
		return value(func(fs *pflag.FlagSet) { fs.StringSliceVar(p, "", *p, "") })
	}
	number := func(p *int) pflag.Value { return value(func(fs *pflag.FlagSet) { fs.IntVar(p, "", *p, "") }) }
	boolean := func(p *bool) pflag.Value { return value(func(fs *pflag.FlagSet) { fs.BoolVar(p, "", *p, "") }) }
	duration := func(p *time.Duration) pflag.Value {
		return value(func(fs *pflag.FlagSet) { fs.DurationVar(p, "", *p, "") })
	}

	return []setting{
		{"VCenterURL", "vcenter-url", []string{"GOVC_URL"}, false, str(&c.VCenterURL),
			"vCenter or ESXi host of the connection \"default\": a host name or the URL of its SDK"},
		{"Username", "username", []string{"GOVC_USERNAME"}, false, str(&c.Username), "user of the connection \"default\""},
		{"Password", "password", []string{"GOVC_PASSWORD"}, true, str((*string)(&c.Password)), "password of the connection \"default\""},
		{"Insecure", "insecure", []string{"GOVC_INSECURE"}, false, boolean(&c.Insecure), "trust any certificate of the connection \"default\""},
		{"Thumbprint", "thumbprint", nil, false, str(&c.Thumbprint), "trust the certificate with this SHA-256 or SHA-1 of the connection \"default\""},
		{"CAFile", "ca-file", []string{"GOVC_TLS_CA_CERTS"}, false, str(&c.CAFile), "certificate authorities, in PEM, of the connection \"default\""},
		{"KnownHosts", "known-hosts", []string{"GOVC_TLS_KNOWN_HOSTS"}, false, str(&c.KnownHosts), "file with thumbprints of hosts, for the connection \"default\""},

		{"DaemonAddr", "daemon-addr", []string{"DAEMON_ADDR"}, false, str(&c.DaemonAddr), "address of the API"},
		{"InsecureListen", "insecure-listen", nil, false, boolean(&c.InsecureListen),
			"let the API listen where others can reach it, although it asks nobody who they are"},
		{"AllowedHosts", "allowed-hosts", nil, false, list(&c.AllowedHosts), "names of a proxy under which the API is reached"},
		{"AllowedOrigins", "allowed-origins", nil, false, list(&c.AllowedOrigins), "origins whose pages may call the API"},

		{"DataDir", "data-dir", nil, false, str(&c.DataDir), "folder for the database, keys, logs and credentials"},
		{"OutputRoots", "output-roots", nil, false, list(&c.OutputRoots), "folders below which jobs may write, and read disk images; none: anywhere"},
		{"KeyFile", "key-file", nil, false, str(&c.KeyFile), "keys that encrypt what goes through Temporal; those in the data folder where none is given"},

		{"DefaultFormat", "default-format", nil, false, str(&c.DefaultFormat), "disk format of a job that names none"},
		{"DownloadWorkers", "download-workers", nil, false, number(&c.DownloadWorkers), "ranges of one disk that are read at once; 0: as many as are good"},
		{"EnableCBT", "enable-cbt", nil, false, boolean(&c.EnableCBT), "let incremental exports switch changed block tracking of their VM on; it stays on"},
		{"MaxJobs", "max-jobs", nil, false, number(&c.MaxJobs), "jobs that run at once, on all hosts together"},
		{"HostJobs", "host-jobs", nil, false, number(&c.HostJobs), "jobs that this host takes at once"},
		{"HostAway", "host-away", nil, false, duration(&c.HostAway), "how long a host may be silent before its jobs begin anew on another; the same for all hosts"},
		{"SpacePace", "space-pace", nil, false, duration(&c.SpacePace), "how often a job that waits for room on its target looks again"},

		{"TemporalAddress", "temporal-address", []string{"TEMPORAL_ADDRESS"}, false, str(&c.TemporalAddress),
			"host:port of a Temporal cluster to join instead of the embedded server; the other TEMPORAL_* variables (TLS, API key, …) apply too"},
		{"TemporalNamespace", "temporal-namespace", []string{"TEMPORAL_NAMESPACE"}, false, str(&c.TemporalNamespace), "namespace on Temporal"},
		{"TemporalUI", "temporal-ui", nil, false, str(&c.TemporalUI), "URL of the Web UI of the cluster that is joined, for links"},
		{"FrontendAddr", "frontend-addr", nil, false, str(&c.FrontendAddr), "loopback address of the embedded Temporal server"},
		{"UIAddr", "ui-addr", nil, false, str(&c.UIAddr), "loopback address of the Temporal Web UI; \"off\": none"},

		{"LogLevel", "log-level", []string{"LOG_LEVEL"}, false, (*level)(&c.LogLevel), "debug, info, warn or error"},
		{"LogFormat", "log-format", nil, false, str(&c.LogFormat), "text, json, or auto: text on a terminal"},
	}
}

// value is the pflag.Value of a flag that is defined for its sake: pflag makes them in no other way.
func value(define func(*pflag.FlagSet)) pflag.Value {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	define(fs)
	return fs.Lookup("").Value
}

// addFlags makes the settings flags.
func addFlags(fs *pflag.FlagSet, all []setting) {
	for _, s := range all {
		if s.secret {
			continue
		}
		f := fs.VarPF(s.value, s.flag, "", s.usage+" ("+strings.Join(s.variables(), ", ")+")")
		if s.value.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
}

// kind says what a value of a setting looks like.
func (s setting) kind() string {
	switch s.value.Type() {
	case "bool":
		return "true or false"
	case "int":
		return "a whole number"
	case "stringSlice":
		return "a list of texts"
	case "duration":
		return "a duration such as 90s or 10m"
	case "level":
		return "debug, info, warn or error"
	}
	return "a text"
}

// set gives the setting a value: a text, what is one when it is written down, a list, or YAML.
func (s setting) set(value any) error {
	switch v := value.(type) {
	case *yaml.Node:
		return s.setNode(v)
	case []string:
		return s.value.(pflag.SliceValue).Replace(v)
	}
	text := fmt.Sprint(value)
	if s.value.Set(text) != nil {
		if s.secret {
			return fmt.Errorf("%s must be %s", s.key, s.kind())
		}
		return fmt.Errorf("%s must be %s, not %q", s.key, s.kind(), text)
	}
	return nil
}

// level is a slog.Level as a flag.
type level slog.Level

func (l *level) Type() string   { return "level" }
func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }

func (l *level) Set(s string) error {
	known := map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError,
	}
	v, ok := known[strings.ToLower(strings.TrimSpace(s))]
	if !ok {
		return fmt.Errorf("%q is none of debug, info, warn, error", s)
	}
	*l = level(v)
	return nil
}

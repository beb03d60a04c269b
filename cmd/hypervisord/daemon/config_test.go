package daemon

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

const password = "Sup3r-Secret"

func TestEveryKeyInEverySpelling(t *testing.T) {
	values := map[string]string{"bool": "true", "int": "7", "level": "debug", "string": "/a/b", "stringSlice": "/a", "duration": "7s"}
	def := Default()
	for _, s := range settings(&def) {
		snake := strings.ReplaceAll(s.flag, "-", "_")
		for _, spelling := range []string{s.key, snake, strings.ToLower(s.key), strings.ToUpper(snake), s.flag} {
			cfg, all, err := loadWith(t, spelling+": "+values[s.value.Type()]+"\n", nil)
			require.NoError(t, err, spelling)
			require.Equal(t, values[s.value.Type()], strings.Trim(find(all, s.key).value.String(), "[]"), spelling)
			require.Contains(t, cfg.origin[s.key], "line 1", spelling)
		}
	}
}

func TestEverySettingByFlagAndByVariable(t *testing.T) {
	values := map[string]string{"bool": "true", "int": "7", "level": "debug", "string": "/[a, b]", "stringSlice": `/a,"/b,c",/[d]`, "duration": "7s"}
	check := func(key, text, from string, env map[string]string, args ...string) {
		cfg, all, err := loadWith(t, "", env, args...)
		require.NoError(t, err, from)
		require.Equal(t, from, cfg.origin[key])
		value := find(all, key).value
		if list, ok := value.(pflag.SliceValue); ok {
			require.Equal(t, []string{"/a", "/b,c", "/[d]"}, list.GetSlice(), from)
			return
		}
		require.Equal(t, text, value.String(), from)
	}
	def := Default()
	for _, s := range settings(&def) {
		text := values[s.value.Type()]
		if !s.secret {
			check(s.key, text, "flag --"+s.flag, map[string]string{s.variables()[0]: "x"}, "--"+s.flag+"="+text)
		}
		for _, name := range s.variables() {
			check(s.key, text, "environment "+name, map[string]string{name: text})
		}
	}
}

func TestTextsStayAsTheyAreWritten(t *testing.T) {
	cfg, _, err := loadWith(t, "Password: 007\nUsername: yes\nThumbprint: 1e5\nAllowedHosts: [0x10, on]\nAllowedOrigins: a,b\n", nil)
	require.NoError(t, err)
	require.Equal(t, "007", cfg.Password.Reveal())
	require.Equal(t, "yes", cfg.Username)
	require.Equal(t, "1e5", cfg.Thumbprint)
	require.Equal(t, []string{"0x10", "on"}, cfg.AllowedHosts)
	require.Equal(t, []string{"a,b"}, cfg.AllowedOrigins)
}

func TestTheKeysThatUsersKnow(t *testing.T) {
	cfg, _, err := loadWith(t, `
VCenterURL: vc.example.com
Username: administrator@vsphere.local
Password: `+password+`
Insecure: yes
DaemonAddr: "localhost:8081"
LogLevel: WARNING
DownloadWorkers: 3
EnableCBT: true
DefaultFormat: raw
OutputRoots: [/exports, /more]
`, nil)
	require.NoError(t, err)
	require.NoError(t, cfg.Validate())
	require.Equal(t, "vc.example.com", cfg.VCenterURL)
	require.Equal(t, password, cfg.Password.Reveal())
	require.True(t, cfg.Insecure)
	require.Equal(t, slog.LevelWarn, cfg.LogLevel)
	require.Equal(t, 3, cfg.DownloadWorkers)
	require.Equal(t, []string{"/exports", "/more"}, cfg.OutputRoots)
	static, err := cfg.Named()
	require.NoError(t, err)
	require.JSONEq(t, `{"server":"vc.example.com","username":"administrator@vsphere.local","password":"`+password+`","insecure":true}`,
		string(static["default"].Config))
}

func TestFlagOverEnvironmentOverFileOverDefault(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		env  map[string]string
		args []string
		want string
		from string
	}{
		"default":                              {want: "127.0.0.1:8080"},
		"file over default":                    {file: "DaemonAddr: localhost:1", want: "localhost:1", from: "line 1"},
		"environment over file":                {file: "DaemonAddr: localhost:1", env: map[string]string{"DAEMON_ADDR": "localhost:2"}, want: "localhost:2", from: "DAEMON_ADDR"},
		"our own variable over the known one":  {env: map[string]string{"DAEMON_ADDR": "localhost:2", "HYPERSDK_DAEMON_ADDR": "localhost:3"}, want: "localhost:3", from: "HYPERSDK_DAEMON_ADDR"},
		"an empty variable says nothing":       {file: "DaemonAddr: localhost:1", env: map[string]string{"DAEMON_ADDR": ""}, want: "localhost:1", from: "line 1"},
		"flag over environment":                {file: "DaemonAddr: localhost:1", env: map[string]string{"DAEMON_ADDR": "localhost:2"}, args: []string{"--daemon-addr", "localhost:4"}, want: "localhost:4", from: "--daemon-addr"},
		"a flag that says the same as default": {file: "DaemonAddr: localhost:1", args: []string{"--daemon-addr=127.0.0.1:8080"}, want: "127.0.0.1:8080", from: "--daemon-addr"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _, err := loadWith(t, c.file, c.env, c.args...)
			require.NoError(t, err)
			require.Equal(t, c.want, cfg.DaemonAddr)
			require.Contains(t, cfg.origin["DaemonAddr"], c.from)
		})
	}
}

func TestEnvironmentOfOthers(t *testing.T) {
	cfg, _, err := loadWith(t, "", map[string]string{
		"GOVC_URL": "https://vc.example.com/sdk", "GOVC_USERNAME": "u", "GOVC_PASSWORD": password, "GOVC_INSECURE": "1",
		"GOVC_TLS_CA_CERTS": "/ca.pem", "GOVC_TLS_KNOWN_HOSTS": "/known", "LOG_LEVEL": "error",
		"TEMPORAL_ADDRESS": "temporal:7233", "TEMPORAL_NAMESPACE": "vms",
	})
	require.NoError(t, err)
	require.Equal(t, slog.LevelError, cfg.LogLevel)
	require.True(t, cfg.joins())
	require.Equal(t, "vms", cfg.TemporalNamespace)
	static, err := cfg.Named()
	require.NoError(t, err)
	require.JSONEq(t, `{"server":"https://vc.example.com/sdk","username":"u","password":"`+password+`","insecure":true,"ca_file":"/ca.pem","known_hosts":"/known"}`,
		string(static["default"].Config))
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		env  map[string]string
		args []string
		want []string
	}{
		"a near miss":              {file: "# x\nDaemonAdr: a:1", want: []string{"line 2", `"DaemonAdr"`, "did you mean DaemonAddr?"}},
		"a near miss in snake":     {file: "vcentre_url: a", want: []string{"did you mean VCenterURL?"}},
		"swapped letters":          {file: "pasword: a", want: []string{"did you mean Password?"}},
		"a near miss of a list":    {file: "conections: {}", want: []string{"did you mean Connections?"}},
		"a key of something else":  {file: "spark_master: a", want: []string{`no key "spark_master"`, "hypervisord config"}},
		"a key twice":              {file: "DataDir: /a\ndata_dir: /b", want: []string{"line 2", "given twice"}},
		"a word for a number":      {file: "DownloadWorkers: four", want: []string{"line 1", "DownloadWorkers must be a whole number", `"four"`}},
		"a fraction for a number":  {file: "DownloadWorkers: 1.5", want: []string{"whole number"}},
		"a list for a number":      {file: "DownloadWorkers: [1]", want: []string{"whole number"}},
		"a word for a boolean":     {file: "Insecure: maybe", want: []string{"Insecure must be true or false"}},
		"nothing":                  {file: "DaemonAddr:", want: []string{"DaemonAddr has no value"}},
		"a mapping for a text":     {file: "DaemonAddr: {a: b}", want: []string{"DaemonAddr must be a text"}},
		"lists in a list":          {file: "OutputRoots: [[/a]]", want: []string{"OutputRoots must be a list of texts"}},
		"an unknown level":         {file: "LogLevel: loud", want: []string{"LogLevel must be debug, info, warn or error"}},
		"no YAML":                  {file: "a: 1\n\tb: 2", want: []string{"is not YAML", "line 2"}},
		"no keys":                  {file: "- a", want: []string{"keys and values"}},
		"a wrong variable":         {env: map[string]string{"HYPERSDK_MAX_JOBS": "many"}, want: []string{"environment variable HYPERSDK_MAX_JOBS", "MaxJobs must be a whole number"}},
		"a connection of no kind":  {file: "connections: {a: {server: x}}", want: []string{"connection a has no kind"}},
		"connections as a list":    {file: "connections: [a]", want: []string{"connections must be names"}},
		"everything at once":       {file: "Insecure: maybe\nDaemonAdr: x", env: map[string]string{"LOG_LEVEL": "loud"}, want: []string{"Insecure", "DaemonAdr", "LOG_LEVEL"}},
		"an address without port":  {args: []string{"--daemon-addr", "localhost"}, want: []string{"DaemonAddr (flag --daemon-addr)", "host and a port"}},
		"an address that is open":  {file: "DaemonAddr: 0.0.0.0:8080", want: []string{"DaemonAddr", "line 1", "--insecure-listen"}},
		"an address of every host": {file: "DaemonAddr: ':8080'", want: []string{"--insecure-listen"}},
		"an unknown format":        {file: "DefaultFormat: docx", want: []string{"DefaultFormat", "qcow2"}},
		"too many workers":         {args: []string{"--download-workers=65"}, want: []string{"DownloadWorkers", "0 to 64"}},
		"no job at all":            {args: []string{"--max-jobs=0"}, want: []string{"MaxJobs", "1 to 10000"}},
		"a number for a duration":  {file: "HostAway: 600", want: []string{"line 1", "HostAway must be a duration such as 90s or 10m"}},
		"no time at all":           {args: []string{"--host-away=0s"}, want: []string{"HostAway", "1s to 24h"}},
		"a pace that never comes":  {args: []string{"--space-pace=48h"}, want: []string{"SpacePace", "1s to 24h"}},
		"an unknown log format":    {file: "LogFormat: xml", want: []string{"LogFormat", "auto, text or json"}},
		"no URL":                   {file: "TemporalUI: temporal", want: []string{"TemporalUI", "URL"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _, err := loadWith(t, c.file, c.env, c.args...)
			if err == nil {
				err = cfg.Validate()
			}
			require.Error(t, err)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
		})
	}
}

func TestListeningElsewhereTakesAWord(t *testing.T) {
	cfg, _, err := loadWith(t, "", nil, "--daemon-addr=0.0.0.0:8080", "--insecure-listen")
	require.NoError(t, err)
	require.NoError(t, cfg.Validate())
}

func TestConnections(t *testing.T) {
	const two = `
connections:
  Prod-VC:
    kind: vsphere
    server: prod.example.com
    keep_alive: 1m
  default: {kind: vsphere, server: default.example.com}
`
	cfg, _, err := loadWith(t, two, nil)
	require.NoError(t, err)
	static, err := cfg.Named()
	require.NoError(t, err)
	require.JSONEq(t, `{"server":"prod.example.com","keep_alive":"1m"}`, string(static["Prod-VC"].Config), "names keep their case")
	require.JSONEq(t, `{"server":"default.example.com"}`, string(static["default"].Config))

	cfg, _, err = loadWith(t, two, map[string]string{"GOVC_URL": "env.example.com"})
	require.NoError(t, err)
	static, err = cfg.Named()
	require.NoError(t, err)
	require.JSONEq(t, `{"server":"env.example.com"}`, string(static["default"].Config), "the environment goes before the file")

	cfg, _, err = loadWith(t, "VCenterURL: again.example.com\n"+two, nil)
	require.NoError(t, err)
	_, err = cfg.Named()
	require.ErrorContains(t, err, "given twice")
}

func TestTheFileIsLookedFor(t *testing.T) {
	home, xdg := t.TempDir(), t.TempDir()
	for _, f := range []string{filepath.Join(home, ".config"), xdg} {
		require.NoError(t, os.MkdirAll(filepath.Join(f, "hypersdk"), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(home, ".config", "hypersdk", "config.yaml"), []byte("DefaultFormat: raw"), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(xdg, "hypersdk", "config.yaml"), []byte("LogFormat: text"), 0o600))

	cfg, _, err := loadFrom(t, "", map[string]string{"HOME": home})
	require.NoError(t, err)
	require.Equal(t, "raw", cfg.DefaultFormat)
	cfg, _, err = loadFrom(t, "", map[string]string{"HOME": home, "XDG_CONFIG_HOME": xdg})
	require.NoError(t, err)
	require.Equal(t, "text", cfg.LogFormat)
	require.Equal(t, "qcow2", cfg.DefaultFormat)
	_, _, err = loadFrom(t, filepath.Join(home, "absent.yaml"), nil)
	require.ErrorContains(t, err, "absent.yaml", "a file that was asked for must be there")
}

func TestWhatIsShownHoldsNoSecrets(t *testing.T) {
	cfg, all, err := loadWith(t, `
Password: `+password+`
Username: root
OutputRoots: [/a, /b]
connections: {prod: {kind: vsphere, server: x, password: `+password+`}}
`, map[string]string{"GOVC_URL": "https://root:" + password + "@vc.example.com/sdk"}, "--log-level=debug")
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, show(&out, cfg, all))
	require.NotContains(t, out.String(), password)
	for _, line := range []string{
		`VCenterURL: "https://root:xxxxx@vc.example.com/sdk" # environment GOVC_URL`,
		`Password: "[redacted]" # `, `OutputRoots: ["/a","/b"] # `, `LogLevel: "debug" # flag --log-level`,
		`DefaultFormat: "qcow2" # default`, `prod: {kind: vsphere}`, `default: {kind: vsphere}`,
	} {
		require.Contains(t, strings.Join(strings.Fields(out.String()), " "), line)
	}
}

func TestAWrongPasswordFieldIsNotShown(t *testing.T) {
	_, _, err := loadWith(t, "Password: ["+password+"]", nil)
	require.ErrorContains(t, err, "Password must be a text")
	require.NotContains(t, err.Error(), password)
	for _, fields := range []string{"password: {" + password + ": 1}", "pasword: " + password, "port: " + password} {
		cfg, _, err := loadWith(t, "connections: {a: {kind: vsphere, server: x, username: y, "+fields+"}}", nil)
		require.NoError(t, err)
		d := Daemon{cfg: cfg, parts: Parts{API: true, Worker: true}}
		_, err = d.check()
		require.ErrorContains(t, err, "connection a")
		require.NotContains(t, err.Error(), password)
	}
}

func TestAFileWithSecretsThatOthersMayRead(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		mode os.FileMode
		want bool
	}{
		"a password, readable":     {"Password: x", 0o644, true},
		"connections, readable":    {"connections: {a: {kind: x}}", 0o644, true},
		"a password, not readable": {"Password: x", 0o640, false},
		"no password":              {"Username: x", 0o644, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _, err := loadWith(t, c.file, nil)
			require.NoError(t, err)
			require.NoError(t, os.Chmod(cfg.file, c.mode))
			require.Equal(t, c.want, cfg.Exposed() != "")
		})
	}
}

func TestOddFilesAreRefusedOrReadButDoNoHarm(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%[1]c [%s]\n", c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	for name, file := range map[string]string{
		"empty": "", "a comment": "# x", "null": "null", "two documents": "LogLevel: info\n---\nLogLevel: warn",
		"an alias to itself": "OutputRoots: &a [*a]", "a merge to itself": "connections: &a {b: {kind: x, <<: *a}}",
		"a bomb": bomb + "connections: {z: {kind: vsphere, x: *j}}", "binary": "\x00\xff\xfe", "a key that is a list": "[a]: b",
		"an alias": "Username: &u root\nDefaultFormat: *u", "deep": strings.Repeat("[", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			cfg, _, err := loadWith(t, file, nil)
			if err == nil {
				require.NotZero(t, cfg.DaemonAddr)
			}
		})
	}
}

func loadWith(t *testing.T, file string, env map[string]string, args ...string) (Config, []setting, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, []byte(file), 0o600))
	return loadFrom(t, path, env, args...)
}

// loadFrom loads in an environment that says env and nothing else.
func loadFrom(t *testing.T, file string, env map[string]string, args ...string) (Config, []setting, error) {
	t.Helper()
	cfg := Default()
	all := settings(&cfg)
	silent := []string{"XDG_CONFIG_HOME", "TEMPORAL_PROFILE", "TEMPORAL_CONFIG_FILE"}
	for _, s := range all {
		silent = append(silent, s.variables()...)
	}
	for _, name := range silent {
		t.Setenv(name, "")
	}
	for name, v := range env {
		t.Setenv(name, v)
	}
	flags := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.SetOutput(io.Discard)
	addFlags(flags, all)
	require.NoError(t, flags.Parse(args))
	err := load(&cfg, all, all, flags, file)
	return cfg, all, err
}

func find(all []setting, key string) setting {
	for _, s := range all {
		if s.key == key {
			return s
		}
	}
	panic(key)
}

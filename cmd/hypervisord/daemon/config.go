package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"hypersdk/activities"
	"hypersdk/formats/all"
	"hypersdk/providers"
	"hypersdk/providers/connections"
)

// Config is everything that can be said about the daemon. See [Settings] for where it comes from.
type Config struct {
	Version string // of the program

	// The connection "default".
	VCenterURL string
	Username   string
	Password   providers.Secret
	Insecure   bool
	Thumbprint string
	CAFile     string
	KnownHosts string
	// Connections are the other ones, by name.
	Connections map[string]connections.Config
	// Profiles are named sets of flags of programs that read the same file.
	Profiles map[string]Profile

	DaemonAddr     string
	InsecureListen bool
	AllowedHosts   []string
	AllowedOrigins []string

	DataDir     string
	OutputRoots []string
	KeyFile     string

	DefaultFormat   string
	DownloadWorkers int
	EnableCBT       bool
	MaxJobs         int
	HostJobs        int
	HostAway        time.Duration
	SpacePace       time.Duration

	TemporalAddress   string
	TemporalNamespace string
	TemporalUI        string
	FrontendAddr      string
	UIAddr            string

	LogLevel  slog.Level
	LogFormat string

	file   string            // the configuration file; empty: none
	apart  bool              // runs on its own engine, whatever the environment says of a cluster
	origin map[string]string // where each setting comes from, by its key; absent: the default
}

// Default is the configuration that the others are laid over.
func Default() Config {
	return Config{
		DaemonAddr: "127.0.0.1:8080", DataDir: defaultDataDir(), DefaultFormat: "qcow2", MaxJobs: 4, HostJobs: 4,
		HostAway: 10 * time.Minute, SpacePace: time.Minute,
		TemporalNamespace: "default", FrontendAddr: "127.0.0.1:7233", UIAddr: "127.0.0.1:8233",
		LogLevel: slog.LevelInfo, LogFormat: "auto", origin: map[string]string{},
	}
}

func defaultDataDir() string {
	if os.Getuid() == 0 {
		return "/var/lib/hypersdk"
	}
	if d := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "hypersdk")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(os.TempDir(), "hypersdk-"+strconv.Itoa(os.Getuid()))
	}
	return filepath.Join(home, ".local", "share", "hypersdk")
}

// given says whether anybody has said anything about a setting.
func (c Config) given(key string) bool { return c.origin[key] != "" }

// joins says whether the daemon works on a Temporal cluster instead of the embedded server.
func (c Config) joins() bool {
	return !c.apart && (c.TemporalAddress != "" || c.given("TemporalProfile"))
}

// Exposed is the configuration file, where it holds secrets that everybody on this host may read.
func (c Config) Exposed() string {
	secrets := strings.HasPrefix(c.origin["Password"], c.file) || c.given(connectionsKey)
	st, err := os.Stat(c.file)
	if c.file == "" || !secrets || err != nil || st.Mode().Perm()&0o004 == 0 {
		return ""
	}
	return c.file
}

// Validate names every setting that cannot be right.
func (c Config) Validate() error {
	var errs []error
	say := func(key, format string, args ...any) {
		from := ""
		if o := c.origin[key]; o != "" {
			from = " (" + o + ")"
		}
		errs = append(errs, fmt.Errorf("%s%s %s", key, from, fmt.Sprintf(format, args...)))
	}
	for key, addr := range map[string]string{"DaemonAddr": c.DaemonAddr, "FrontendAddr": c.FrontendAddr, "UIAddr": c.UIAddr} {
		if err := checkAddr(addr); err != nil && (key != "UIAddr" || addr != NoUI) {
			say(key, "%s", err)
		}
	}
	if checkAddr(c.DaemonAddr) == nil && !c.InsecureListen && !isLoopback(c.DaemonAddr) {
		say("DaemonAddr", "is %s, which others can reach, and the API asks nobody who they are; put a proxy that does before 127.0.0.1, or say --insecure-listen", c.DaemonAddr)
	}
	if names := FormatNames(); !slices.Contains(names, c.DefaultFormat) {
		say("DefaultFormat", "is %q; there are: %s", c.DefaultFormat, strings.Join(names, ", "))
	}
	for key, n := range map[string]struct{ is, least, most int }{
		"DownloadWorkers": {c.DownloadWorkers, 0, 64}, "MaxJobs": {c.MaxJobs, 1, 10_000}, "HostJobs": {c.HostJobs, 1, 1_000},
	} {
		if n.is < n.least || n.is > n.most {
			say(key, "is %d; it must be %d to %d", n.is, n.least, n.most)
		}
	}
	for key, d := range map[string]time.Duration{"HostAway": c.HostAway, "SpacePace": c.SpacePace} {
		if d < time.Second || d > 24*time.Hour {
			say(key, "is %s; it must be 1s to 24h", d)
		}
	}
	for key, paths := range map[string][]string{"DataDir": {c.DataDir}, "OutputRoots": c.OutputRoots} {
		for _, p := range paths {
			if !filepath.IsAbs(p) || filepath.Clean(p) != p {
				say(key, "is %q; it must be an absolute path without dots in it", p)
			}
		}
	}
	if !slices.Contains([]string{"auto", "text", "json"}, c.LogFormat) {
		say("LogFormat", "is %q; it must be auto, text or json", c.LogFormat)
	}
	if c.TemporalUI != "" {
		if u, err := url.Parse(c.TemporalUI); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			say("TemporalUI", "is %q; it must be a URL such as https://temporal.example.com", c.TemporalUI)
		}
	}
	if c.TemporalNamespace == "" {
		say("TemporalNamespace", "is empty")
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(errs...)
}

// NoUI is the UIAddr of a daemon without the Temporal Web UI.
const NoUI = "off"

func checkAddr(addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("is %q; it must be a host and a port, such as 127.0.0.1:8080", addr)
	}
	return nil
}

func isLoopback(addr string) bool {
	host, _, _ := net.SplitHostPort(addr)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// FormatNames are the formats of exports of this program, sorted.
func FormatNames() []string {
	var names []string
	for _, f := range all.Formats() {
		names = append(names, f.Name)
	}
	names = append(names, activities.Packages()...)
	slices.Sort(names)
	return names
}

// Named is every configured connection: those by name, and "default" from the settings of their
// own, which the environment may give.
func (c Config) Named() (map[string]connections.Config, error) {
	static := maps.Clone(c.Connections)
	if c.VCenterURL == "" {
		return static, nil
	}
	if _, twice := static[connections.Default]; twice && c.given("Connections") && !strings.HasPrefix(c.origin["VCenterURL"], "environment") {
		return nil, fmt.Errorf("the connection %q is given twice: as VCenterURL (%s) and in connections (%s)",
			connections.Default, c.origin["VCenterURL"], c.origin["Connections"])
	}
	if static == nil {
		static = map[string]connections.Config{}
	}
	static[connections.Default] = vcenter(c)
	return static, nil
}

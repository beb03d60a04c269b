// Package connections reaches platforms by the names that jobs and requests carry, and is the only
// reader of secrets: what is configured, and what was given with a job and lies encrypted in the data
// folder. Everybody else knows names and live providers.
package connections

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"hypersdk/providers"
	"hypersdk/providers/connections/keys"
)

const (
	// Default is the name of the connection that a job without one uses.
	Default = "default"
	// JobPrefix and the id of a job name a connection that was given with it. It ends with the job, and
	// no other connection may be named so.
	JobPrefix = "job-"
	// SealLabel is the purpose of the Sealer that Options wants.
	SealLabel = "connection v1"

	defaultIdle = 5 * time.Minute
	sweepAfter  = time.Hour
)

// Config is a connection: the kind of its platform, and what the driver of that kind wants to know, as
// a JSON object. It holds secrets.
type Config struct {
	Kind   string
	Config json.RawMessage
}

// LogValue and String keep the secrets out of sight.
func (c Config) LogValue() slog.Value { return slog.StringValue(c.String()) }
func (c Config) String() string       { return c.Kind + " connection" }

// GoString is String.
func (c Config) GoString() string { return c.String() }

// Options say where connections come from.
type Options struct {
	Drivers providers.Set
	// Static are the configured connections by name.
	Static map[string]Config
	// Dir is the folder of the encrypted store, which several processes may share, and Sealer its key.
	// Without them there is no store: Put is Unsupported.
	Dir    string
	Sealer *keys.Sealer
	// Sessions is a folder in which providers keep, encrypted with Sealer, what they need to take up
	// their sessions again after this process was killed. It is this process's own: while another one
	// has it, and without it, sessions that a killed process leaves last until they time out.
	Sessions string
	// Idle is how long a session that nobody uses stays; 0: five minutes.
	Idle time.Duration
	Log  *slog.Logger // nil: nothing is logged
}

// Validate says what is wrong with the first configured connection, by name, that is wrong.
func (o Options) Validate() error {
	for _, name := range slices.Sorted(maps.Keys(o.Static)) {
		if err := checkName(name); err != nil {
			return err
		}
		if strings.HasPrefix(name, JobPrefix) {
			return &providers.Error{Op: "connection", Object: name, Reason: providers.Invalid,
				Msg: `a name that begins with "` + JobPrefix + `" is reserved for the credentials of jobs`}
		}
		if err := check(o.Drivers, o.Static[name]); err != nil {
			return &providers.Error{Op: "connection", Object: name, Reason: providers.ReasonOf(err), Err: err}
		}
	}
	return nil
}

// Connections opens connections by name. It may be used from several goroutines.
type Connections struct {
	drivers providers.Set
	static  map[string]Config
	store   store
	pool    *pool
}

// New is the connections of a process. Close ends their sessions.
func New(o Options) *Connections {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Idle == 0 {
		o.Idle = defaultIdle
	}
	return &Connections{
		drivers: o.Drivers,
		static:  maps.Clone(o.Static),
		store:   store{dir: o.Dir, sealer: o.Sealer},
		pool:    newPool(o.Drivers, &memories{dir: o.Sessions, sealer: o.Sealer}, o.Idle, o.Log),
	}
}

// Resume takes up, in the background, the sessions that a killed process has left, so that those that
// nobody comes for end as others do. What was kept of connections that are no longer known is deleted.
func (c *Connections) Resume() {
	all := slices.Collect(maps.Values(c.static))
	for _, name := range c.store.names() {
		if cfg, err := c.store.get(name); err == nil { // what cannot be read cannot be opened either
			all = append(all, cfg)
		}
	}
	c.pool.resume(all)
}

// Open is the live provider of a connection; "" is the default one, which is the connection of that
// name or else the only one that is configured. NotFound says which there are.
//
// The provider is shared, and not the caller's to close: it is lent until ctx ends, and stays a few
// idle minutes longer. Pass the context of the activity or request that uses it, not a shorter one.
func (c *Connections) Open(ctx context.Context, name string) (providers.Provider, error) {
	cfg, err := c.find(name)
	if err != nil {
		return nil, err
	}
	return c.pool.open(ctx, cfg)
}

// OpenOnce connects with a configuration that is kept nowhere. The caller closes the provider.
func (c *Connections) OpenOnce(ctx context.Context, kind string, config json.RawMessage) (providers.Provider, error) {
	return c.pool.connect(ctx, Config{kind, config}, nil)
}

// Check says what is wrong with a configuration, without connecting.
func (c *Connections) Check(kind string, config json.RawMessage) error {
	return check(c.drivers, Config{kind, config})
}

func check(drivers providers.Set, c Config) error {
	d, err := drivers.Driver(c.Kind)
	if err != nil {
		return err
	}
	return d.Check(c.Config)
}

// Put stores a connection, encrypted; the same name again replaces it.
func (c *Connections) Put(_ context.Context, name, kind string, config json.RawMessage) error {
	if err := c.Check(kind, config); err != nil {
		return err
	}
	if _, ok := c.static[name]; ok {
		return &providers.Error{Op: "connections: store", Object: name, Reason: providers.Exists,
			Msg: "a connection of this name is configured"}
	}
	return c.store.put(name, Config{kind, config})
}

// Forget deletes the credentials of a job, and ends their session as soon as nobody uses it. Any other
// connection stays, and one that is not there is forgotten.
func (c *Connections) Forget(_ context.Context, name string) error {
	if !strings.HasPrefix(name, JobPrefix) {
		return nil
	}
	if cfg, err := c.store.get(name); err == nil {
		c.pool.drop(cfg)
	}
	return c.store.remove(name)
}

// Sweep forgets the credentials of jobs that have ended, or that there never were: what is left when a
// process dies between two steps. Those of the last hour are left alone, since their jobs may be about
// to start.
func (c *Connections) Sweep(ctx context.Context, ended func(ctx context.Context, job string) (bool, error)) error {
	var errs []error
	for _, name := range c.store.names() {
		job, ok := strings.CutPrefix(name, JobPrefix)
		if !ok || c.store.age(name) < sweepAfter {
			continue
		}
		over, err := ended(ctx, job)
		if err == nil && over {
			err = c.Forget(ctx, name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Names are the connections that a job may name, sorted.
func (c *Connections) Names() []string {
	names := slices.Collect(maps.Keys(c.static))
	for _, name := range c.store.names() {
		if !strings.HasPrefix(name, JobPrefix) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Identity names the platform that a connection leads to, the same for every connection that leads
// there: its kind and the address of its server, as far as its configuration tells.
func (c *Connections) Identity(name string) (string, error) {
	cfg, err := c.find(name)
	if err != nil {
		return "", err
	}
	if a := address(cfg.Config); a != "" {
		return cfg.Kind + "://" + a, nil
	}
	if name == "" {
		name = c.defaultName()
	}
	return cfg.Kind + ":" + name, nil
}

// Close ends all sessions, also those in use.
func (c *Connections) Close() error {
	c.pool.close()
	return nil
}

// find looks for a connection: the credentials of a job are only in the store, a configured one is
// taken before a stored one.
func (c *Connections) find(name string) (Config, error) {
	if name == "" {
		name = c.defaultName()
	}
	if cfg, ok := c.static[name]; ok {
		return cfg, nil
	}
	cfg, err := c.store.get(name)
	if providers.ReasonOf(err) != providers.NotFound {
		return cfg, err
	}
	e := &providers.Error{Op: "connections: open", Object: name, Reason: providers.NotFound, Msg: "there is no such connection"}
	switch names := c.Names(); {
	case strings.HasPrefix(name, JobPrefix):
		e.Msg = "the credentials of this job are no longer here"
	case len(names) > 0:
		e.Msg += "; there are: " + strings.Join(names, ", ")
	default:
		e.Msg += "; none is configured (set GOVC_URL, or VCenterURL or connections in the configuration file)"
	}
	return Config{}, e
}

func (c *Connections) defaultName() string {
	if _, ok := c.static[Default]; !ok {
		if names := c.Names(); len(names) == 1 {
			return names[0]
		}
	}
	return Default
}

// address is the server in a configuration, in one spelling, without user and password; "" where none
// of the usual fields names one.
func address(config json.RawMessage) string {
	var fields map[string]any
	if json.Unmarshal(config, &fields) != nil {
		return ""
	}
	for _, f := range []string{"server", "url", "uri", "endpoint", "host"} {
		s, _ := fields[f].(string)
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		if !strings.Contains(s, "://") {
			s = "https://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			continue
		}
		host := strings.ToLower(u.Hostname())
		if p := u.Port(); p != "" && p != map[string]string{"https": "443", "http": "80"}[u.Scheme] {
			host = net.JoinHostPort(host, p)
		}
		return host
	}
	return ""
}

// sessionID is equal for equal configurations, so that jobs with the same credentials share a session.
func (c Config) sessionID() [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(c.Kind + "\x00"))
	var v any // JSON in one spelling, where it is JSON
	if json.Unmarshal(c.Config, &v) == nil {
		if b, err := json.Marshal(v); err == nil {
			h.Write(b)
			return [sha256.Size]byte(h.Sum(nil))
		}
	}
	h.Write(c.Config)
	return [sha256.Size]byte(h.Sum(nil))
}

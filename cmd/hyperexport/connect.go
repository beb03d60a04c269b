package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"hypersdk/cmd/hypervisord/daemon"
	"hypersdk/providers"
	"hypersdk/providers/connections"
)

// platform is where the VMs are: one connection, for the whole call.
type platform struct {
	config connections.Config
	server string // host and port, for people
	user   string
	id     string // names server and user in the file system
}

// platform finds the connection that is meant, with its password.
func (a *app) platform() (platform, error) {
	name := a.opt.connection
	if a.cfg.VCenterURL != "" && (name == "" || name == connections.Default) {
		if err := a.login(); err != nil {
			return platform{}, err
		}
	}
	static, err := a.cfg.Named()
	if err != nil {
		return platform{}, &codeError{exitUsage, err}
	}
	names := slices.Sorted(maps.Keys(static))
	if name == "" {
		name = connections.Default
		if _, ok := static[name]; !ok && len(names) == 1 {
			name = names[0]
		}
	}
	c, ok := static[name]
	switch {
	case ok:
	case len(names) == 0:
		return platform{}, usageError("no vCenter is known: set GOVC_URL, or give --vcenter-url, or a configuration file")
	case a.opt.connection == "":
		return platform{}, usageError("say which --connection to use: %s", strings.Join(names, ", "))
	default:
		return platform{}, &codeError{exitNotFound, usageError("there is no connection %q; there are: %s", name, strings.Join(names, ", "))}
	}
	return newPlatform(name, c)
}

// login completes the login of the connection that settings of their own describe.
func (a *app) login() error {
	user := a.cfg.Username
	if u, err := url.Parse(withScheme(a.cfg.VCenterURL)); err == nil && u.User != nil {
		if _, has := u.User.Password(); has && a.opt.passwordFile == "" && a.cfg.Password == "" {
			return nil
		}
		if user == "" {
			user = u.User.Username()
		}
	}
	if user == "" {
		return usageError("a user name is needed: set GOVC_USERNAME or give --username")
	}
	var err error
	a.cfg.Password, err = a.password(user)
	return err
}

func withScheme(server string) string {
	if strings.Contains(server, "://") {
		return server
	}
	return "https://" + server
}

func newPlatform(name string, c connections.Config) (platform, error) {
	only := map[string]connections.Config{connections.Default: c}
	o := connections.Options{Drivers: daemon.Drivers(), Static: only}
	if err := o.Validate(); err != nil {
		return platform{}, &codeError{exitUsage, err}
	}
	identity, err := connections.New(o).Identity("")
	if err != nil {
		return platform{}, err
	}
	var fields struct{ Server, Username string }
	_ = json.Unmarshal(c.Config, &fields) // what it does not have stays empty
	p := platform{config: c, user: fields.Username}
	if u, err := url.Parse(withScheme(fields.Server)); err == nil && u.User != nil && p.user == "" {
		p.user = u.User.Username()
	}
	_, p.server, _ = strings.Cut(identity, "://")
	if p.server == "" {
		p.server = name
	}
	sum := sha256.Sum256([]byte(identity + "\x00" + p.user))
	p.id = strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' {
			return r
		}
		return '_'
	}, strings.ToLower(p.server))
	p.id = strings.TrimLeft(p.id[:min(len(p.id), 60)], ".") + "-" + hex.EncodeToString(sum[:6])
	return p, nil
}

// folder is where the engine for this platform and user keeps its state.
func (p platform) folder(dataDir string) string { return filepath.Join(dataDir, p.id) }

// inventory lends a session of its own, and ends it: nothing of it is kept anywhere.
func (p platform) inventory(ctx context.Context, use func(providers.Provider, providers.Inventory) error) error {
	c := connections.New(connections.Options{
		Drivers: daemon.Drivers(), Static: map[string]connections.Config{connections.Default: p.config}, Log: slog.New(slog.DiscardHandler),
	})
	defer c.Close()
	pr, err := c.Open(ctx, "")
	if err != nil {
		return err
	}
	inv, err := providers.As[providers.Inventory](pr)
	if err != nil {
		return err
	}
	return use(pr, inv)
}

package apiservertest

import (
	"context"
	"encoding/json"
	"iter"
	"strings"
	"sync"

	"hypersdk/providers"
)

// Platform is a provider with an inventory and nothing else.
type Platform struct {
	List []providers.VM
	Err  error // what every call fails with

	mu     sync.Mutex
	closed int
}

func (p *Platform) Kind() string               { return "vsphere" }
func (p *Platform) Ping(context.Context) error { return p.Err }

// Close counts.
func (p *Platform) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed++
	return nil
}

// Closed is how often the provider was closed.
func (p *Platform) Closed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// VMs yields the list.
func (p *Platform) VMs(_ context.Context, f providers.Filter) iter.Seq2[providers.VM, error] {
	return func(yield func(providers.VM, error) bool) {
		if p.Err != nil {
			yield(providers.VM{}, p.Err)
			return
		}
		for _, vm := range p.List {
			if strings.Contains(strings.ToLower(vm.Name), strings.ToLower(f.Name)) && strings.HasPrefix(vm.Path, f.Folder) &&
				(f.Power == "" || f.Power == vm.PowerState) && !yield(vm, nil) {
				return
			}
		}
	}
}

// VM finds by id, path or name.
func (p *Platform) VM(_ context.Context, ref string) (providers.VM, error) {
	if p.Err != nil {
		return providers.VM{}, p.Err
	}
	for _, vm := range p.List {
		if ref == vm.Path || ref == vm.Name || ref == string(vm.ID) {
			return vm, nil
		}
	}
	return providers.VM{}, &providers.Error{Op: "vsphere: find VM", Object: ref, Reason: providers.NotFound, Msg: "there is no such VM"}
}

// Connections are platforms by name, and what was stored with jobs.
type Connections struct {
	Default *Platform
	Once    *Platform
	PutErr  error

	mu     sync.Mutex
	stored map[string]json.RawMessage
	once   []json.RawMessage
}

// Open answers Default, for "" and "default".
func (c *Connections) Open(_ context.Context, name string) (providers.Provider, error) {
	if c.Default == nil || (name != "" && name != "default") {
		return nil, &providers.Error{Op: "connections: open", Object: name, Reason: providers.NotFound, Msg: "there is no such connection"}
	}
	return c.Default, nil
}

// OpenOnce answers Once.
func (c *Connections) OpenOnce(_ context.Context, _ string, config json.RawMessage) (providers.Provider, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.once = append(c.once, config)
	if c.Once == nil {
		return nil, &providers.Error{Op: "vsphere: connect", Reason: providers.Auth, Msg: "the user name or the password is wrong"}
	}
	return c.Once, nil
}

// Put keeps.
func (c *Connections) Put(_ context.Context, name, _ string, config json.RawMessage) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.PutErr != nil {
		return c.PutErr
	}
	if c.stored == nil {
		c.stored = map[string]json.RawMessage{}
	}
	c.stored[name] = config
	return nil
}

// Forget forgets.
func (c *Connections) Forget(_ context.Context, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.stored, name)
	return nil
}

// Stored is what Put keeps under a name; "" where nothing is.
func (c *Connections) Stored(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.stored[name])
}

// Names is how many connections Put keeps.
func (c *Connections) Names() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.stored)
}

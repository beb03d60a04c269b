// Package vsphere reaches VMware vCenter and ESXi: inventory, snapshots, and disks read over HTTP from
// their datastores, through VMware's VDDK, or under export leases.
package vsphere

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"

	"hypersdk/providers"
)

// Kind is the name of this provider.
const Kind = "vsphere"

// What a vSphere connection can do.
var (
	_ providers.Provider     = (*Provider)(nil)
	_ providers.Inventory    = (*Provider)(nil)
	_ providers.Snapshotter  = (*Provider)(nil)
	_ providers.DiskSource   = (*Provider)(nil)
	_ providers.DiskLeaser   = (*Provider)(nil)
	_ providers.PowerManager = (*Provider)(nil)
	_ providers.DriveManager = (*Provider)(nil)
	_ providers.Cloner       = (*Provider)(nil)

	_ providers.ChangeTracker = (*Provider)(nil)
)

// Driver opens connections to vSphere.
func Driver() providers.Driver {
	return providers.NewDriver(Kind, "VMware vSphere", Default(), func(ctx context.Context, c Config, env providers.Env) (providers.Provider, error) {
		return Open(ctx, c, env)
	})
}

// Provider is a session with a vCenter or an ESXi host. It is safe for use by many goroutines.
type Provider struct {
	config Config
	login  *login
	soap   *vim25.Client
	http   *http.Client  // for disks
	slots  chan struct{} // reads of disks that may be on the wire
	vddk   *vddk
	// names lists the VMs by name and path only. It is shared, because a hundred jobs that are submitted
	// at once all look for their VMs.
	names *shared[[]providers.VM]
}

// Open connects and logs in.
func Open(ctx context.Context, c Config, env providers.Env) (*Provider, error) {
	if err := c.Validate(); err != nil {
		return nil, &providers.Error{Op: "vsphere: connect", Reason: providers.Invalid, Err: err}
	}
	e, err := c.endpoint()
	if err != nil {
		return nil, &providers.Error{Op: "vsphere: connect", Reason: providers.Invalid, Err: err}
	}
	host := e.url.Host
	pool, err := newTransport(c, e)
	if err != nil {
		return nil, &providers.Error{Op: "vsphere: connect", Object: host, Reason: providers.Invalid, Err: err}
	}
	l, err := newLogin(ctx, e, pool, env)
	if err != nil {
		pool.CloseIdleConnections()
		err = fail("connect", host, err)
		var said *providers.Error
		if e.url.Scheme == "http" && mayWantTLS(err) && errors.As(err, &said) && said.Msg == "" {
			said.Msg = "if the server expects TLS, set server to a URL that begins with https://"
		}
		return nil, err
	}
	if err := l.renew(ctx, 0); err != nil {
		_ = l.close() // the login's own error is the one to tell
		return nil, fail("log in", host, err)
	}
	l.keepAlive(time.Duration(c.KeepAlive))
	p := &Provider{
		config: c,
		login:  l,
		soap:   l.client(),
		http:   &http.Client{Transport: pool, Jar: l.cookies, CheckRedirect: noRedirect},
		slots:  make(chan struct{}, c.Connections),
		vddk:   newVDDK(c.VDDK, e),
	}
	p.names = newShared(func(ctx context.Context) ([]providers.VM, error) { return p.list(ctx, named) })
	p.endLeftLeases(ctx, "")
	return p, nil
}

// Kind is "vsphere".
func (p *Provider) Kind() string { return Kind }

// Ping reads the name of the root folder, which takes a session and the right to look.
func (p *Provider) Ping(ctx context.Context) error {
	_, err := load[mo.Folder](ctx, p, p.soap.ServiceContent.RootFolder, "name")
	return fail("ping", p.login.server.url.Host, err)
}

// Close logs out.
func (p *Provider) Close() error {
	return fail("log out", p.login.server.url.Host, p.login.close())
}

package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/contrib/envconfig"
	sdklog "go.temporal.io/sdk/log"
	"google.golang.org/grpc"

	"hypersdk/apiserver"
	"hypersdk/apiserver/api"
	formats "hypersdk/formats/all"
	"hypersdk/providers"
	"hypersdk/providers/all"
	"hypersdk/providers/connections"
	"hypersdk/providers/connections/keys"
	"hypersdk/providers/vsphere"
	"hypersdk/worker"
	"hypersdk/worker/codec"
	"hypersdk/worker/embedded"
	"hypersdk/workflows/job"
)

const (
	dialTimeout   = 15 * time.Second
	workerTimeout = 18 * time.Second // for what runs to come to a durable end
)

// Drivers are the kinds of platform of this program.
func Drivers() providers.Set { return all.Drivers() }

// prepareData makes sure that the data folder can be used.
func (d *Daemon) prepareData(context.Context) error {
	if err := os.MkdirAll(d.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("data folder %s cannot be made: %w (--data-dir)", d.cfg.DataDir, plainly(err))
	}
	f, err := os.CreateTemp(d.cfg.DataDir, ".writable-*")
	if err != nil {
		return fmt.Errorf("data folder %s is not writable: %w (--data-dir)", d.cfg.DataDir, plainly(err))
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// plainly is the bare reason of an error about a path that the sentence around it names already.
func plainly(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// listen takes the ports before anything is started. Who calls before the API answers has to wait,
// and is not refused.
func (d *Daemon) listen(context.Context) (err error) {
	if d.parts.API && d.apiListener == nil {
		if d.apiListener, err = take(d.cfg.DaemonAddr, "--daemon-addr"); err != nil {
			return err
		}
	}
	if !d.cfg.joins() && d.cfg.UIAddr != NoUI {
		d.uiListener, err = d.takeOrMove("UIAddr", d.cfg.UIAddr, "--ui-addr", "Temporal Web UI")
	}
	return err
}

// take listens on an address that somebody asked for.
func take(addr, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("address %s is taken by another program; stop that, or choose another address with %s", addr, flag)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s (%s): %w", addr, flag, err)
	}
	return l, nil
}

// takeOrMove listens on any free port where nobody asked for this one and it is taken.
func (d *Daemon) takeOrMove(key, addr, flag, what string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if !errors.Is(err, syscall.EADDRINUSE) || d.cfg.given(key) {
		if err == nil {
			return l, nil
		}
		return take(addr, flag)
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if l, err = take(net.JoinHostPort(host, "0"), flag); err == nil {
		d.log.Info("the usual address is taken, so another one is used", "for", what, "usual", addr, "address", l.Addr().String())
	}
	return l, err
}

func (d *Daemon) startTemporal(context.Context) error {
	if d.cfg.joins() {
		return nil
	}
	l, err := d.takeOrMove("FrontendAddr", d.cfg.FrontendAddr, "--frontend-addr", "embedded Temporal server")
	if err != nil {
		return err
	}
	if err := l.Close(); err != nil { // the server opens it itself
		return err
	}
	d.temporal, err = embedded.Start(embedded.Options{
		DataDir: d.cfg.DataDir, FrontendAddr: l.Addr().String(), Namespace: d.cfg.TemporalNamespace,
		UI: d.uiListener, CodecEndpoint: d.codecEndpoint(), Log: d.log,
	})
	return err
}

// codecEndpoint is where a browser on this host has payloads decoded.
func (d *Daemon) codecEndpoint() string {
	if d.apiListener == nil {
		return ""
	}
	_, port, err := net.SplitHostPort(d.apiListener.Addr().String())
	if err != nil {
		return ""
	}
	return "http://127.0.0.1:" + port + "/codec"
}

// TemporalUI is the URL of the Temporal Web UI; "" where there is none.
func (d *Daemon) TemporalUI() string {
	switch {
	case d.cfg.joins():
		return d.cfg.TemporalUI
	case d.uiListener != nil:
		return "http://" + d.uiListener.Addr().String()
	}
	return ""
}

// loadKeys takes the keys of the key file, or else those in the data folder.
func (d *Daemon) loadKeys(context.Context) (err error) {
	if d.cfg.KeyFile != "" {
		d.ring, err = keys.Load(d.cfg.KeyFile)
	} else {
		d.ring, err = keys.LoadOrCreate(filepath.Join(d.cfg.DataDir, "keys"))
	}
	if err == nil {
		d.codec = codec.New(d.ring)
	}
	return err
}

func (d *Daemon) dial(ctx context.Context) error {
	var o client.Options
	if d.cfg.joins() {
		var err error
		if o, err = envconfig.LoadDefaultClientOptions(); err != nil {
			return fmt.Errorf("the settings of the Temporal client: %w", err)
		}
		if d.cfg.TemporalAddress != "" {
			o.HostPort = d.cfg.TemporalAddress
		}
		if d.cfg.given("TemporalNamespace") || o.Namespace == "" {
			o.Namespace = d.cfg.TemporalNamespace
		}
	} else {
		o.HostPort, o.Namespace = d.temporal.FrontendAddr(), d.cfg.TemporalNamespace
	}
	d.address, d.namespace = o.HostPort, o.Namespace
	o.Logger = sdklog.NewStructuredLogger(slog.New(warnings{d.log.Handler()}))
	o.DataConverter, o.FailureConverter = d.codec.DataConverter(), d.codec.FailureConverter()
	o.ConnectionOptions.DialOptions = append(o.ConnectionOptions.DialOptions,
		grpc.WithChainUnaryInterceptor(worker.PatientHeartbeats(worker.DefaultConfig().Heartbeat*3/4)))
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := client.DialContext(ctx, o)
	if err != nil {
		return fmt.Errorf("the Temporal cluster at %s cannot be reached: %w", o.HostPort, err)
	}
	d.client = c
	return nil
}

// openConnections reads the store of credentials wherever there is a worker. A worker on a cluster
// finds there what a daemon with the same data folder has stored. An API beside a worker has sessions
// of its own.
func (d *Daemon) openConnections(static map[string]connections.Config) error {
	o := connections.Options{
		Drivers: Drivers(), Static: static, Log: d.log, Sealer: d.ring.Sealer(connections.SealLabel),
		Sessions: filepath.Join(d.cfg.DataDir, "sessions"),
	}
	if d.parts.Worker {
		o.Dir = filepath.Join(d.cfg.DataDir, "connections")
	} else {
		o.Sessions += "-api"
	}
	d.connections = connections.New(o)
	d.connections.Resume()
	return nil
}

// storesCredentials says whether a job may bring credentials. On a cluster they would lie on a host
// that the job need not come to.
func (d *Daemon) storesCredentials() bool { return !d.cfg.joins() }

func (d *Daemon) startWorker(context.Context) error {
	if !d.parts.Worker {
		return nil
	}
	c := worker.DefaultConfig()
	c.Data, c.Version, c.Roots, c.Format = d.cfg.DataDir, d.cfg.Version, d.cfg.OutputRoots, d.cfg.DefaultFormat
	c.Track = d.cfg.EnableCBT
	c.Workers, c.Places, c.Limit = d.cfg.DownloadWorkers, d.cfg.HostJobs, d.cfg.MaxJobs
	c.HostAway, c.Paces.Exhausted = d.cfg.HostAway, d.cfg.SpacePace
	c.Namespace, c.StopTimeout = d.namespace, workerTimeout
	c.Name, _ = os.Hostname() // for people; its id is something else
	if d.cfg.joins() && !d.cfg.given("MaxJobs") {
		c.Limit = 0 // whoever was told a limit says it
	}
	w, err := worker.New(c, d.client, worker.Deps{
		Log: d.log, Connections: d.connections, Format: formats.ByName, Probe: formats.Probe, Durable: d.durable(),
		OnFatal: func(err error) { d.fail(err) },
	})
	if err != nil {
		return err
	}
	if err := w.Start(); err != nil {
		return err
	}
	d.worker = w
	return nil
}

// durable makes what the embedded server has taken down durable; a cluster sees to that itself.
func (d *Daemon) durable() func(context.Context) error {
	if d.temporal == nil {
		return nil
	}
	return d.temporal.Durable
}

func (d *Daemon) startAPI(context.Context) error {
	if !d.parts.API {
		return nil
	}
	deps := apiserver.Deps{
		Temporal: d.client, Durable: d.durable(), Converter: d.codec.DataConverter(), Failures: d.codec.FailureConverter(),
		Connections: d.connections, CanStoreCredentials: d.storesCredentials(),
		Providers: providerKinds(), Formats: FormatNames(), Features: features(), Version: d.cfg.Version,
		TemporalUI: d.TemporalUI(), Codec: d.codec.Handler(), Log: d.log,
	}
	if d.worker != nil && !d.cfg.joins() {
		deps.Logs = d.worker.Logs().Read
	}
	s, err := apiserver.New(apiserver.Config{
		AllowedHosts: d.cfg.AllowedHosts, AllowedOrigins: d.cfg.AllowedOrigins,
		DefaultFormat: d.cfg.DefaultFormat, Namespace: d.namespace,
	}, deps)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, d.apiListener); err != nil {
			d.fail(err)
		}
	}()
	d.stopAPI = func() {
		stop()
		<-done
	}
	return nil
}

// fail ends the daemon because of a part that cannot go on.
func (d *Daemon) fail(err error) {
	select {
	case d.failed <- err:
	default: // it ends already
	}
}

// features are the fields of a job that not every build honours, and this one does.
func features() []string { return []string{job.FeatureRemoveCDROM, job.FeatureIncremental} }

// Caps is what a job may ask of this build.
func Caps() job.Caps {
	c := job.Caps{Formats: FormatNames(), Features: features()}
	for _, k := range providerKinds() {
		c.Transports = append(c.Transports, k.Transports...)
	}
	return c
}

func providerKinds() []api.ProviderKind {
	var kinds []api.ProviderKind
	for _, d := range Drivers() {
		k := api.ProviderKind{Kind: d.Kind, Title: d.Title, Capabilities: []string{}, Transports: []string{}}
		if d.Kind == vsphere.Kind {
			// What a provider can do is in its type; no connection is needed to know.
			k.Capabilities, k.Transports = providers.Capabilities((*vsphere.Provider)(nil)), []string{vsphere.Datastore, vsphere.VDDK, vsphere.NFC}
		}
		kinds = append(kinds, k)
	}
	return kinds
}

// vcenter is the connection "default" as its driver wants it.
func vcenter(c Config) connections.Config {
	b, err := json.Marshal(struct {
		Server     string `json:"server"`
		Username   string `json:"username,omitempty"`
		Password   string `json:"password,omitempty"`
		Insecure   bool   `json:"insecure,omitempty"`
		Thumbprint string `json:"thumbprint,omitempty"`
		CAFile     string `json:"ca_file,omitempty"`
		KnownHosts string `json:"known_hosts,omitempty"`
	}{c.VCenterURL, c.Username, c.Password.Reveal(), c.Insecure, c.Thumbprint, c.CAFile, c.KnownHosts})
	if err != nil {
		panic(err) // texts and a boolean always have a JSON
	}
	return connections.Config{Kind: vsphere.Kind, Config: b}
}

// withoutPassword is a URL as it may be shown.
func withoutPassword(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "https", s
	}
	u, err := url.Parse(scheme + "://" + rest)
	if err != nil {
		return "[redacted]"
	}
	if ok {
		return u.Redacted()
	}
	return strings.TrimPrefix(u.Redacted(), "https://")
}

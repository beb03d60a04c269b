package vsphere

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/formats"
	"hypersdk/formats/nbd"
	"hypersdk/providers"
)

// VDDK is the transport that reads a disk block by block through VMware's Virtual Disk Development Kit,
// a library that its users download from VMware, and that the plugin of that name lets nbdkit serve.
//
// The library follows a snapshot's chain on the host, so that the snapshots of others and datastores
// that give out no files are no matter to it, and where the platform knows what is allocated, it tells.
const VDDK = "vddk"

const (
	// probeTime is how long nbdkit may take to tell what it has.
	probeTime = 20 * time.Second
	// oldest is the first minor version of nbdkit 1 whose plugin reads ahead of its answers, and tells
	// that it reads whole sectors only.
	oldest = 30
	// full is what whoever finds too many disks being read is asked to wait.
	full = 15 * time.Second
	// maxPassword is what a pipe takes without anybody reading.
	maxPassword = 4096
)

// VDDKConfig says where a host has VMware's VDDK, and how it is used.
type VDDKConfig struct {
	// LibDir is the folder that VMware's archive unpacks to ("/opt/vmware-vix-disklib-distrib"); empty:
	// this host has none.
	LibDir string `json:"libdir,omitempty"`
	// NBDKit is the program, by its path or its name in PATH; empty: "nbdkit".
	NBDKit string `json:"nbdkit,omitempty"`
	// Transports are VDDK's own, in the order in which it tries them: nbdssl, nbd, hotadd, san, file.
	// "nbd" sends the disk over the network in the clear.
	Transports string `json:"transports,omitempty"`
	// Compression of what is sent: none, zlib, fastlz, skipz.
	Compression string `json:"compression,omitempty"`
	// Disks is how many are read at once; a host takes no more than 50 for all its clients.
	Disks int `json:"disks,omitempty"`
	// Ready is how long opening a disk may take.
	Ready Duration `json:"ready,omitempty"`
}

func defaultVDDK() VDDKConfig {
	return VDDKConfig{NBDKit: "nbdkit", Transports: "nbdssl", Disks: 8, Ready: Duration(2 * time.Minute)}
}

var transportList = regexp.MustCompile(`^[a-z]+(:[a-z]+)*$`)

// validate names the fields that cannot be right.
func (c VDDKConfig) validate(say func(field, msg string)) {
	if c.LibDir == "" {
		return
	}
	if !filepath.IsAbs(c.LibDir) {
		say("vddk.libdir", "must be an absolute path")
	}
	if c.NBDKit == "" || strings.Contains(c.NBDKit, "/") && !filepath.IsAbs(c.NBDKit) {
		say("vddk.nbdkit", "must be an absolute path, or the name of a program in PATH")
	}
	if !transportList.MatchString(c.Transports) {
		say("vddk.transports", `must be names with colons between them, as in "nbdssl:nbd"`)
	}
	if !slices.Contains([]string{"", "none", "zlib", "fastlz", "skipz"}, c.Compression) {
		say("vddk.compression", "must be none, zlib, fastlz or skipz")
	}
	if c.Disks < 1 || c.Disks > 50 {
		say("vddk.disks", "must be 1 to 50")
	}
	if c.Ready < Duration(10*time.Millisecond) {
		say("vddk.ready", "must be at least 10ms")
	}
}

// vddk is the VDDK of this host.
type vddk struct {
	VDDKConfig
	server endpoint
	disks  chan struct{} // that are being read
	works  atomic.Bool   // it was seen to; what is missing may be installed while we run
}

func newVDDK(c VDDKConfig, e endpoint) *vddk {
	return &vddk{VDDKConfig: c, server: e, disks: make(chan struct{}, max(c.Disks, 1))}
}

func (v *vddk) configured() bool { return v.LibDir != "" }

// missing says why no disk can be read with VDDK on this host; "" where nothing speaks against it.
func (v *vddk) missing(ctx context.Context) string {
	switch {
	case !v.configured():
		return "no VDDK is configured: install nbdkit and its VDDK plugin on the host that runs the jobs, unpack VMware's VDDK there, and set vddk.libdir of the connection"
	case v.server.url.Scheme != "https":
		return "VDDK speaks HTTPS only, and the server's URL begins with " + v.server.url.Scheme
	case strings.ContainsAny(v.server.password, "\r\n\x00") || len(v.server.password) > maxPassword:
		return "nbdkit cannot be given a password that is so long or has a line break"
	case v.works.Load():
		return ""
	}
	why := v.probe(ctx)
	v.works.Store(why == "")
	return why
}

// probe asks nbdkit whether it has the plugin, and whether that finds the library.
func (v *vddk) probe(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	said, words, err := runNBDKit(ctx, v.NBDKit, "--dump-plugin", "vddk", "libdir="+v.LibDir)
	fields := map[string]string{}
	for line := range strings.Lines(said) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[name] = value
		}
	}
	switch {
	case errors.Is(err, errNotInstalled):
		return fmt.Sprintf("there is no %s on this host; install nbdkit and its VDDK plugin, or set vddk.nbdkit of the connection to its path", v.NBDKit)
	case err != nil && words == "":
		return fmt.Sprintf("%s cannot tell about its VDDK plugin: %v", v.NBDKit, err)
	case err != nil:
		return fmt.Sprintf("%s has no VDDK plugin that works; install it (nbdkit-vddk-plugin, or nbdkit-plugin-vddk): %s", v.NBDKit, words)
	case fields["name"] != "vddk":
		return v.NBDKit + " does not answer as nbdkit does"
	case !recent(fields["version"]):
		return fmt.Sprintf("%s has version %q of the VDDK plugin; 1.%d or newer is needed", v.NBDKit, fields["version"], oldest)
	case fields["vddk_library_version"] == "":
		return "nbdkit finds no VDDK that it can load in " + v.LibDir + "; vddk.libdir must be the folder that VMware's archive unpacks to"
	}
	return ""
}

// recent says whether a version of nbdkit is new enough.
func recent(version string) bool {
	part := strings.SplitN(version, ".", 3)
	if len(part) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(part[0])
	minor, err2 := strconv.Atoi(part[1])
	return err1 == nil && err2 == nil && (major > 1 || major == 1 && minor >= oldest)
}

// refuseVDDK says why VDDK cannot read these disks of the VM as a snapshot freezes them.
func (m *machine) refuseVDDK(devices ...types.BaseVirtualDevice) *providers.Error {
	no := func(msg string) *providers.Error {
		return &providers.Error{Op: "vsphere: read with VDDK", Object: m.Self.Value, Reason: providers.Unsupported, Msg: msg}
	}
	if why := m.refuseLease(); why != nil { // what no snapshot freezes, nobody can read
		e := no(why.Msg)
		e.Reason = why.Reason
		return e
	}
	for _, dev := range devices {
		d, ok := dev.(*types.VirtualDisk)
		if !ok {
			continue
		}
		switch b := d.Backing.(type) {
		case *types.VirtualDiskFlatVer2BackingInfo:
			if b.Sharing == string(types.VirtualDiskSharingSharingMultiWriter) {
				return no(label(&d.VirtualDevice) + " is shared with other VMs, which a snapshot does not stop from writing")
			}
		case *types.VirtualDiskRawDiskMappingVer1BackingInfo:
			if b.CompatibilityMode == string(types.VirtualDiskCompatibilityModePhysicalMode) {
				return no(label(&d.VirtualDevice) + " is a raw device in physical mode, which has no part in snapshots")
			}
		}
	}
	return nil
}

// vddkTransport tells whether the disks of m can be read with VDDK.
func (p *Provider) vddkTransport(ctx context.Context, m *machine) providers.Transport {
	t := providers.Transport{Name: VDDK, Resumable: true}
	if m.Config == nil {
		t.Why = m.refuseVDDK().Msg
	} else if why := m.refuseVDDK(m.Config.Hardware.Device...); why != nil {
		t.Why = why.Msg
	}
	if why := p.vddk.missing(ctx); why != "" {
		t.Why = why
	}
	return t
}

// chained is a disk that VDDK opens: the head of a chain, and how much can be read through it.
type chained struct {
	file string // "[datastore] folder/name.vmdk"
	size int64
}

// resolveVDDK finds the disk that the snapshot has frozen.
func (p *Provider) resolveVDDK(ctx context.Context, ref providers.DiskRef) (chained, error) {
	m, err := p.machine(ctx, ref.VM, diskProps)
	if err != nil {
		return chained{}, err
	}
	if err := m.has(ref.Snapshot); err != nil {
		return chained{}, err
	}
	d, err := p.frozenDisk(ctx, m, ref)
	if err != nil {
		return chained{}, err
	}
	if why := m.refuseVDDK(d); why != nil {
		return chained{}, why
	}
	c := chained{file: fileOf(d), size: capacity(d)}
	if c.file == "" || c.size <= 0 {
		return c, &providers.Error{Op: "vsphere: read with VDDK", Object: string(ref.VM), Reason: providers.Unsupported,
			Msg: "the server does not tell the file or the size of " + label(&d.VirtualDevice)}
	}
	return c, nil
}

// openVDDK opens a disk with an nbdkit of its own, as the library wants it: one connection, and many
// requests on their way.
func (p *Provider) openVDDK(ctx context.Context, ref providers.DiskRef, object string) (formats.Image, error) {
	const op = "open disk with VDDK"
	why := p.vddk.missing(ctx)
	if err := ctx.Err(); err != nil {
		return nil, fail(op, object, err)
	}
	if why != "" {
		return nil, &providers.Error{Op: "vsphere: " + op, Object: object, Reason: providers.Unsupported, Msg: why}
	}
	disk, err := p.resolveVDDK(ctx, ref)
	if err != nil {
		return nil, fail(op, object, err)
	}
	thumb, err := p.thumbprint(ctx)
	if err != nil {
		return nil, fail(op, object, err)
	}
	select {
	case p.vddk.disks <- struct{}{}:
	default:
		return nil, &providers.Error{Op: "vsphere: " + op, Object: object, Reason: providers.Throttled, Retry: full,
			Msg: fmt.Sprintf("%d disks of this connection are being read with VDDK, as many as vddk.disks allows", cap(p.vddk.disks))}
	}
	check := func(ctx context.Context) error {
		now, err := p.resolveVDDK(ctx, ref)
		if err == nil && now != disk {
			err = &providers.Error{Op: "vsphere: read disk", Object: object, Reason: providers.Precondition, Msg: "the disk has been moved to another file"}
		}
		return fail("read disk", object, err)
	}
	im := &vddkImage{object: object, size: disk.size, guard: guard{check: check, checked: time.Now()}, free: func() { <-p.vddk.disks }}
	if err := im.open(ctx, p.vddk, p.vddk.arguments(ref, disk, thumb), disk.file); err != nil {
		return nil, err
	}
	return im, nil
}

// arguments are those of nbdkit. The password comes through a pipe, and so is in none of them.
func (v *vddk) arguments(ref providers.DiskRef, disk chained, thumbprint string) []string {
	args := []string{
		"--single", "--exit-with-parent", "--readonly", "--log=stderr", "vddk",
		"libdir=" + v.LibDir, "server=" + v.server.url.Hostname(), "user=" + v.server.user,
		"password=-" + strconv.Itoa(passwordFD), "thumbprint=" + thumbprint,
		"vm=moref=" + string(ref.VM), "snapshot=" + string(ref.Snapshot), "transports=" + v.Transports,
	}
	if port := v.server.url.Port(); port != "" {
		args = append(args, "port="+port)
	}
	if v.Compression != "" {
		args = append(args, "compression="+v.Compression)
	}
	return append(args, "file="+disk.file)
}

// thumbprint is the SHA-1 of the server's certificate, by which VDDK is to know the server, after the
// certificate was checked as that of every other connection is.
func (p *Provider) thumbprint(ctx context.Context) (string, error) {
	e := p.login.server
	conf, err := p.config.tls(e)
	if err != nil {
		return "", &providers.Error{Op: "vsphere: look at the server's certificate", Object: e.host(), Reason: providers.Invalid, Err: err}
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Duration(p.config.StallTimeout)}, Config: conf}
	conn, err := d.DialContext(ctx, "tcp", e.host())
	if err != nil {
		return "", fail("look at the server's certificate", e.host(), err)
	}
	defer conn.Close()
	certs := conn.(*tls.Conn).ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return "", &providers.Error{Op: "vsphere: look at the server's certificate", Object: e.host(), Reason: providers.Invalid, Msg: "it has none"}
	}
	sum := sha1.Sum(certs[0].Raw) //nolint:gosec // the thumbprint that VDDK knows
	return strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":"), nil
}

// serve connects to the disk that k serves.
func (k *nbdkit) serve(ctx context.Context) (*nbd.Disk, error) {
	return nbd.Open(ctx, nbd.Options{
		Network: "unix", Address: "nbdkit", Connections: 1,
		Dial: func(context.Context, string, string) (net.Conn, error) { return k.conn, nil },
	})
}

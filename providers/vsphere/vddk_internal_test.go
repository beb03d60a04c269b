package vsphere

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

func TestVDDKReasons(t *testing.T) {
	for said, want := range map[string]providers.Reason{
		"VixDiskLib_ConnectEx: Cannot complete login due to an incorrect user name or password.": providers.Auth,
		"VixDiskLib_ConnectEx: Login failed due to a bad username or password":                   providers.Auth,
		"VixDiskLib_Open: [ds] a.vmdk: You do not have access rights to this file":               providers.Denied,
		"Insufficient permissions in host operating system":                                      providers.Denied,
		"VixDiskLib_ConnectEx: One of the parameters was invalid":                                providers.Invalid,
		"SSL certificate thumbprint mismatch":                                                    providers.Invalid,
		"VixDiskLib_Open: [ds] a.vmdk: A file was not found":                                     providers.NotFound,
		"The virtual machine cannot be found":                                                    providers.NotFound,
		"received NFC error 5 from server: Failed to allocate the requested 2097176 bytes":       providers.Throttled,
		"The file is already in use":                                                             providers.Precondition,
		"The operation is not supported for the specified parameters":                            providers.Unsupported,
		"cannot open plugin 'vddk': nbdkit-vddk-plugin.so: cannot open shared object file":       providers.Unsupported,
		"[NFC ERROR]NfcNewAuthdConnectionEx: Failed to connect to server esx-1:902":              providers.Unavailable,
		"VixDiskLib_Open: [license] thumbprint.vmdk: Unknown error":                              providers.Unavailable,
		"": providers.Unavailable,
	} {
		require.Equal(t, want, vddkReason(said, "[license] thumbprint.vmdk", ""), said)
	}
}

func TestComplaint(t *testing.T) {
	for said, want := range map[string]string{
		"": "",
		"nbdkit: debug: x\nnbdkit: vddk[1]: error: one\nnbdkit: vddk[1]: error: one\nnbdkit: error: two\n": "one; two",
		"nbdkit: error: 1\nnbdkit: error: 2\nnbdkit: error: 3\nnbdkit: error: 4\n":                         "2; 3; 4",
		"munmap_chunk(): invalid pointer\r\n":                                                              "munmap_chunk(): invalid pointer",
		"nbdkit: error: a\x1b[31mb\xff\n":                                                                  "a [31mb?",
	} {
		require.Equal(t, want, complaint(said))
	}
	long := complaint("nbdkit: error: " + strings.Repeat("ä", 5000))
	require.Less(t, len(long), 700)
	require.True(t, strings.HasPrefix(long, "…ä"))
}

func TestLastLines(t *testing.T) {
	var l lastLines
	require.Empty(t, l.String())
	_, _ = l.Write([]byte("first\n"))
	require.Equal(t, "first\n", l.String())
	line := strings.Repeat("x", 99) + "\n"
	for range 1000 {
		n, err := l.Write([]byte(line))
		require.NoError(t, err)
		require.Equal(t, 100, n)
	}
	got := l.String()
	require.NotContains(t, got, "first")
	require.Zero(t, len(got)%100, "whole lines only")
	require.Greater(t, len(got), maxLastLines-200)
	_, _ = l.Write([]byte(strings.Repeat("y", 10*maxLastLines)))
	require.Empty(t, l.String(), "half a line is left out")
	_, _ = l.Write([]byte("\nend\n"))
	require.Equal(t, "end\n", l.String())
}

func TestRecentVersions(t *testing.T) {
	for version, want := range map[string]bool{"1.30.0": true, "1.32.5": true, "1.46": true, "2.0.0": true, "1.28.9": false, "": false, "1": false, "x.y": false} {
		require.Equal(t, want, recent(version), version)
	}
}

func TestWhenVDDKCanReadADisk(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*machine, *types.VirtualDisk)
		reason providers.Reason
		says   string
	}{
		"plain":                    {func(*machine, *types.VirtualDisk) {}, "", ""},
		"snapshots of others":      {func(m *machine, _ *types.VirtualDisk) { m.Snapshot = snapshotTree("nightly", "weekly") }, "", ""},
		"stored sparsely":          {func(_ *machine, d *types.VirtualDisk) { d.Backing = &types.VirtualDiskSeSparseBackingInfo{} }, "", ""},
		"raw, virtual":             {func(_ *machine, d *types.VirtualDisk) { d.Backing = rawDevice("virtualMode") }, "", ""},
		"raw, physical":            {func(_ *machine, d *types.VirtualDisk) { d.Backing = rawDevice("physicalMode") }, providers.Unsupported, "physical mode"},
		"disconnected":             {func(m *machine, _ *types.VirtualDisk) { m.Runtime.ConnectionState = "disconnected" }, providers.Precondition, "disconnected"},
		"template":                 {func(m *machine, _ *types.VirtualDisk) { m.Config.Template = true }, providers.Unsupported, "template"},
		"encrypted":                {func(m *machine, _ *types.VirtualDisk) { m.Config.KeyId = &types.CryptoKeyId{} }, providers.Unsupported, "encrypted"},
		"no configuration is told": {func(m *machine, _ *types.VirtualDisk) { m.Config = nil }, providers.Precondition, "configuration"},
		"independent": {func(_ *machine, d *types.VirtualDisk) {
			d.Backing.(*types.VirtualDiskFlatVer2BackingInfo).DiskMode = "independent_persistent"
		}, providers.Unsupported, "independent"},
		"shared": {func(_ *machine, d *types.VirtualDisk) {
			d.Backing.(*types.VirtualDiskFlatVer2BackingInfo).Sharing = string(types.VirtualDiskSharingSharingMultiWriter)
		}, providers.Unsupported, "shared"},
	} {
		t.Run(name, func(t *testing.T) {
			m, d := plain()
			c.change(m, d)
			why := m.refuseVDDK(d)
			if c.reason == "" {
				require.Nil(t, why)
				return
			}
			require.NotNil(t, why)
			require.Equal(t, c.reason, why.Reason)
			require.ErrorContains(t, why, c.says)
		})
	}
}

func rawDevice(mode string) types.BaseVirtualDeviceBackingInfo {
	return &types.VirtualDiskRawDiskMappingVer1BackingInfo{CompatibilityMode: mode}
}

func TestVDDKConfig(t *testing.T) {
	good := Default()
	good.Server, good.Username, good.Password = "vc", "root", "secret"
	good.VDDK.LibDir = "/opt/vddk"
	require.NoError(t, good.Validate())
	for want, change := range map[string]func(*VDDKConfig){
		"vddk.libdir: must be an absolute path": func(c *VDDKConfig) { c.LibDir = "vddk" },
		"vddk.nbdkit: must be":                  func(c *VDDKConfig) { c.NBDKit = "./nbdkit" },
		"vddk.transports: must be":              func(c *VDDKConfig) { c.Transports = "nbd ssl" },
		"vddk.compression: must be":             func(c *VDDKConfig) { c.Compression = "gzip" },
		"vddk.disks: must be 1 to 50":           func(c *VDDKConfig) { c.Disks = 51 },
		"vddk.ready: must be":                   func(c *VDDKConfig) { c.Ready = 0 },
	} {
		bad := good
		change(&bad.VDDK)
		require.ErrorContains(t, bad.Validate(), want)
	}
	require.NoError(t, Driver().Check([]byte(`{"server":"vc","username":"root","password":"secret",
		"vddk":{"libdir":"/opt/vddk","nbdkit":"/usr/sbin/nbdkit","transports":"hotadd:nbdssl","compression":"fastlz","disks":4,"ready":"30s"}}`)))
	require.ErrorContains(t, Driver().Check([]byte(`{"server":"vc","username":"root","password":"secret","vddk":{"lib":"/opt"}}`)), `unknown field "lib"`)
}

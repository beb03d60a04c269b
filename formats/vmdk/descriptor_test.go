package vmdk_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/formats"
	"hypersdk/formats/vmdk"
)

func inspect(t testing.TB, text string) (vmdk.Info, error) {
	t.Helper()
	return vmdk.Inspect(t.Context(), strings.NewReader(text), int64(len(text)))
}

func TestReadsTheDescriptorsOfVMware(t *testing.T) {
	info, err := inspect(t, `# Disk DescriptorFile
version=3
encoding="windows-1252"
CID=87654321
parentCID=0a0b0c0d
isNativeSnapshot="no"
createType="vmfsSparse"
parentFileNameHint="Gr`+"\xfc\xdf"+`e `+"\x80"+`.vmdk"
# Change Tracking File
changeTrackPath="web-ctk.vmdk"

# Extent description
RW 4192256 VMFSSPARSE "web 1-000001-delta.vmdk"
rdonly 10 FLAT "a "quoted" name.vmdk" 63
NOACCESS 7 ZERO

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.longContentID = "f0d1"
ddb.thinProvisioned = "1"
some remark of another program
`)
	require.NoError(t, err)
	require.EqualValues(t, (4192256+10+7)*512, info.Size)
	require.Equal(t, &vmdk.Descriptor{
		Version: 3, Encoding: "windows-1252", CID: 0x87654321, ParentCID: 0x0a0b0c0d,
		CreateType: "vmfsSparse", Parent: "Grüße €.vmdk",
		Extents: []vmdk.Extent{
			{Access: "RW", Sectors: 4192256, Type: "VMFSSPARSE", Name: "web 1-000001-delta.vmdk"},
			{Access: "RDONLY", Sectors: 10, Type: "FLAT", Name: `a "quoted" name.vmdk`, Offset: 63},
			{Access: "NOACCESS", Sectors: 7, Type: "ZERO"},
		},
		Fields: []vmdk.Field{
			{Name: "isNativeSnapshot", Value: "no"},
			{Name: "changeTrackPath", Value: "web-ctk.vmdk"},
			{Name: "ddb.adapterType", Value: "lsilogic"},
			{Name: "ddb.longContentID", Value: "f0d1"},
			{Name: "ddb.thinProvisioned", Value: "1"},
		},
	}, info.Descriptor)
	require.True(t, info.Descriptor.HasParent())
	require.Equal(t, "f0d1", info.Descriptor.Field("ddb.longcontentid"))
}

const plainDescriptor = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 100 VMFS \"a-flat.vmdk\"\n"

func TestDescriptorsComeInManyShapes(t *testing.T) {
	want, err := inspect(t, plainDescriptor)
	require.NoError(t, err)
	require.EqualValues(t, 51200, want.Size)
	require.False(t, want.Descriptor.HasParent())
	for name, text := range map[string]string{
		"CR LF":                    strings.ReplaceAll(plainDescriptor, "\n", "\r\n"),
		"blank lines first":        "\n \r\n\n" + plainDescriptor,
		"no comment":               strings.TrimPrefix(plainDescriptor, "# Disk DescriptorFile\n"),
		"no end of the last line":  strings.TrimSuffix(plainDescriptor, "\n"),
		"padded with NUL":          plainDescriptor + strings.Repeat("\x00", 5000),
		"rubbish behind a NUL":     plainDescriptor + "\x00RW 5 ZERO\n",
		"blanks around everything": strings.ReplaceAll(plainDescriptor, "=", " = "),
		"more blanks":              strings.ReplaceAll(plainDescriptor, "RW 100 VMFS ", "RW 100  VMFS   "),
		"other case":               strings.ReplaceAll(strings.ReplaceAll(plainDescriptor, "createType", "CREATETYPE"), "VMFS", "vmfs"),
		"other bytes in a comment": "# \xff\xfe\x80\n" + plainDescriptor,
	} {
		got, err := inspect(t, text)
		require.NoError(t, err, name)
		require.Equal(t, want, got, name)
	}
	shift, err := inspect(t, strings.Replace(plainDescriptor, "a-flat", "\x83\x65\x83\x58\x83\x67", 1))
	require.NoError(t, err)
	require.Equal(t, "\x83\x65\x83\x58\x83\x67.vmdk", shift.Descriptor.Extents[0].Name, "a name in an encoding that is not known stays as it is")
}

func TestRefusesDescriptorsThatLie(t *testing.T) {
	for name, text := range map[string]string{
		"no version":              strings.Replace(plainDescriptor, "version=1\n", "", 1),
		"version 0":               strings.Replace(plainDescriptor, "version=1", "version=0", 1),
		"no createType":           strings.Replace(plainDescriptor, "createType=\"vmfs\"\n", "", 1),
		"no extents":              strings.Split(plainDescriptor, "RW")[0],
		"content id":              strings.Replace(plainDescriptor, "CID=fffffffe", "CID=1fffffffe", 1),
		"id of the parent":        strings.Replace(plainDescriptor, "parentCID=ffffffff", "parentCID=none", 1),
		"no sectors":              strings.Replace(plainDescriptor, "RW 100", "RW 0", 1),
		"negative sectors":        strings.Replace(plainDescriptor, "RW 100", "RW -5", 1),
		"sectors overflow":        strings.Replace(plainDescriptor, "RW 100", "RW 9223372036854775807", 1),
		"sectors overflow in all": plainDescriptor + strings.Repeat("RW 1099511627776 ZERO\n", 3),
		"name without quotes":     strings.Replace(plainDescriptor, `"a-flat.vmdk"`, "a-flat.vmdk", 1),
		"no name":                 strings.Replace(plainDescriptor, `"a-flat.vmdk"`, "", 1),
		"empty name":              strings.Replace(plainDescriptor, "a-flat.vmdk", "", 1),
		"control characters":      strings.Replace(plainDescriptor, "a-flat", "a\x1bflat", 1),
		"offset":                  strings.Replace(plainDescriptor, `.vmdk"`, `.vmdk" -1`, 1),
		"offset overflow":         strings.Replace(plainDescriptor, `.vmdk"`, `.vmdk" 99999999999999999999`, 1),
		"too long":                plainDescriptor + strings.Repeat("# comment\n", 7000),
	} {
		_, err := inspect(t, text)
		require.Error(t, err, name)
		require.True(t, isRefusal(err), "%s: %v", name, err)
	}
}

func TestProbesByContent(t *testing.T) {
	probe := vmdk.Format().Probe
	for name, c := range map[string]struct {
		head string
		want bool
	}{
		"sparse extent":   {"KDMV\x01\x00\x00\x00", true},
		"COWD":            {"COWD\x01\x00\x00\x00", true},
		"seSparse":        {"\xbe\xba\xfe\xca\x00\x00\x00\x00", true},
		"descriptor":      {plainDescriptor, true},
		"cut descriptor":  {"# Disk DescriptorFile\nver", true},
		"version":         {"version=1\n", true},
		"a Java class":    {"\xca\xfe\xba\xbe\x00\x00\x00\x34", false},
		"a shell script":  {"#!/bin/sh\nversion=1; echo", false},
		"a comment":       {"# nothing\n", false},
		"a settings file": {"name=x\nversion=1\n", false},
		"nothing":         {"", false},
		"qcow2":           {"QFI\xfb\x00\x00\x00\x03", false},
	} {
		require.Equal(t, c.want, probe([]byte(c.head), nil), name)
	}
}

func TestWritesDescriptorsThatItReads(t *testing.T) {
	for _, adapter := range []string{"", "ide", "buslogic", "lsilogic", "pvscsi"} {
		for _, size := range []int64{512, 8 << 30, 62 << 40} {
			var b bytes.Buffer
			require.NoError(t, vmdk.WriteDescriptor(&b, zeros{}, size, "d-flat.vmdk", formats.CreateOptions{Adapter: adapter}))
			info, err := inspect(t, b.String())
			require.NoError(t, err)
			require.Equal(t, size, info.Size)
			heads, cylinders := info.Descriptor.Field("ddb.geometry.heads"), info.Descriptor.Field("ddb.geometry.cylinders")
			if adapter == "ide" {
				require.Equal(t, "16", heads)
				require.Equal(t, fmt.Sprint(min((size/512+16*63-1)/(16*63), 16383)), cylinders)
			} else {
				require.Equal(t, "255", heads)
				require.Equal(t, fmt.Sprint(min((size/512+255*63-1)/(255*63), 65535)), cylinders)
			}
		}
	}
	err := vmdk.WriteDescriptor(&bytes.Buffer{}, zeros{}, 512, "d", formats.CreateOptions{Adapter: "floppy"})
	require.ErrorIs(t, err, formats.ErrFormat)
}

// zeros is an endless disk of zeros.
type zeros struct{}

func (zeros) ReadAt(b []byte, _ int64) (int, error) {
	clear(b)
	return len(b), nil
}

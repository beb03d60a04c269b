package vspheretest

import (
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
)

// sector is the unit of lengths in a descriptor.
const sector = 512

// writeDescriptor writes the small text file that names a layer's extent and parent, in the form
// that ESXi uses for disks on VMFS (Virtual Disk Format 5.0, "The Descriptor").
func writeDescriptor(l *layer) error {
	kind, extent, parent, hint := "vmfs", "VMFS", "ffffffff", ""
	if l.parent != nil {
		kind, extent, parent = "vmfsSparse", "VMFSSPARSE", contentID(l.parent)
		hint = "parentFileNameHint=\"" + l.parent.name + "\"\n"
	}
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=%s
parentCID=%s
createType="%s"
%s
# Extent description
RW %d %s "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.thinProvisioned = "1"
ddb.virtualHWVersion = "19"
`, contentID(l), parent, kind, hint, l.size/sector, extent, l.extent(), l.size/(255*63*sector))
	return os.WriteFile(filepath.Join(l.dir, l.name), []byte(text), 0o644)
}

// contentID names a layer in descriptors. A real one changes when a disk is opened for writing, which
// would say nothing here.
func contentID(l *layer) string {
	return fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(l.name))&0x7fffffff)
}

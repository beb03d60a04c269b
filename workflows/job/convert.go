package job

import (
	"fmt"
	"path"
	"slices"
)

// Conversion is what was asked for of a job that converts disk images which lie on a worker's host.
type Conversion struct {
	Name  string           `json:"name,omitempty" doc:"Free name for people" maxLength:"200"`
	Disks []ConversionDisk `json:"disks,omitempty" doc:"The images, which are converted all at once" maxItems:"64"`
	// TargetFormat is the name of a format that can be written.
	TargetFormat     string  `json:"target_format" doc:"Format of the targets" example:"qcow2"`
	Compress         bool    `json:"compress,omitempty" doc:"Store blocks compressed, where the format can"`
	CompressionType  string  `json:"compression_type,omitempty" doc:"With compress: zlib where absent" enum:"zlib,zstd"`
	CompressionLevel int     `json:"compression_level,omitempty" doc:"With compress: 1 is fastest; 0: the balance of size and speed of the compression" minimum:"0" maximum:"22"`
	Subformat        string  `json:"subformat,omitempty" doc:"Variant of the format; its usual one where absent" example:"streamOptimized" maxLength:"40"`
	ClusterSize      int64   `json:"cluster_size,omitempty" doc:"Bytes that are allocated at once, where the format lets one choose" minimum:"0" example:"65536"`
	Preallocation    string  `json:"preallocation,omitempty" doc:"Whether the tables of the target are written beforehand, where the format lets one choose" enum:"off,metadata"`
	AllowDir         string  `json:"allow_dir,omitempty" doc:"Folder below which files that an image names (a backing file, an extent, a parent) may be opened; an image that needs one is refused where absent" example:"/images" maxLength:"4000"`
	Overwrite        bool    `json:"overwrite,omitempty" doc:"Replace files that have the names of the targets, once the new ones are whole"`
	NoVerify         bool    `json:"no_verify,omitempty" doc:"Do not read the targets again to compare them with what was read"`
	LimitMBps        float64 `json:"limit_mbps,omitempty" doc:"Bandwidth limit of the whole job in MB/s (1,000,000 bytes); 0: none" minimum:"0" maximum:"1000000"`
	Priority         int     `json:"priority,omitempty" doc:"Jobs with a higher number are admitted first" minimum:"0" maximum:"100"`
	Workers          int     `json:"workers,omitempty" doc:"Stretches of one disk that are worked on at once; 0: the worker's default" minimum:"0" maximum:"64"`
}

// ConversionDisk is one image of a conversion.
type ConversionDisk struct {
	SourcePath   string `json:"source_path" doc:"Image on the worker's host" example:"/images/web-01.vmdk" maxLength:"4000"`
	SourceFormat string `json:"source_format,omitempty" doc:"Format of the image; recognised by content where absent, which a raw image never is" example:"raw" maxLength:"40"`
	OutputPath   string `json:"output_path" doc:"File to make, in a folder that exists on the same host" example:"/images/web-01.qcow2" maxLength:"4000"`
}

const (
	// MaxConversionDisks is the most images of one conversion: what fits in an event of a history.
	MaxConversionDisks = 64
	maxPaths           = 64 << 10 // bytes of all paths of one conversion
	maxFile            = 230      // bytes of the name of a target: room for its hidden names within 255
)

// Codec names the compression of the targets; "" for none.
func (c Conversion) Codec() string {
	switch {
	case !c.Compress:
		return ""
	case c.CompressionType == "":
		return "zlib"
	}
	return c.CompressionType
}

// Title is what a conversion is called in a list: its name, or that of its image.
func (c Conversion) Title() string {
	switch {
	case c.Name != "":
		return c.Name
	case len(c.Disks) == 0:
		return ""
	case len(c.Disks) == 1:
		return path.Base(c.Disks[0].SourcePath)
	}
	return fmt.Sprintf("%s and %d more", path.Base(c.Disks[0].SourcePath), len(c.Disks)-1)
}

// Definition is the conversion as far as a Spec can say it, for those who look at all jobs alike.
func (c Conversion) Definition() Spec {
	s := Spec{
		Name: c.Title(), Format: c.TargetFormat, Compress: c.Compress,
		Options: Options{Overwrite: c.Overwrite, NoVerify: c.NoVerify, LimitMBps: c.LimitMBps, Priority: c.Priority},
	}
	if len(c.Disks) > 0 {
		s.OutputPath = c.Disks[0].OutputPath
	}
	return s
}

// Validate lists every fault of c that can be seen without asking anybody; none for a good one.
func (c Conversion) Validate(caps Caps) []FieldError {
	var v faults
	v.text("name", c.Name, maxName)
	v.required("target_format", c.TargetFormat)
	v.oneOf("target_format", "disk format", c.TargetFormat, caps.Formats)
	v.oneOf("compression_type", "compression", c.CompressionType, []string{"zlib", "zstd"})
	v.oneOf("preallocation", "preallocation", c.Preallocation, []string{"off", "metadata"})
	v.text("subformat", c.Subformat, 40)
	v.within("priority", c.Priority, 0, 100)
	v.within("workers", c.Workers, 0, 64)
	v.within("compression_level", c.CompressionLevel, 0, 22)
	if !c.Compress && c.CompressionType != "" {
		v.add("compression_type", "needs compress")
	}
	if !c.Compress && c.CompressionLevel != 0 {
		v.add("compression_level", "needs compress")
	}
	if c.Subformat == "monolithicFlat" {
		v.add("subformat", "must not be monolithicFlat: that is a raw disk and a descriptor, and one file is written; use target_format raw")
	}
	if n := c.ClusterSize; n < 0 || n&(n-1) != 0 {
		v.add("cluster_size", "must be a power of two")
	}
	if c.AllowDir != "" {
		v.folder("allow_dir", c.AllowDir)
	}
	if e := CheckLimit(c.LimitMBps); e != "" {
		v.add("limit_mbps", "%s", e)
	}
	v.disks(c.Disks, caps.Formats)
	return v
}

// disks lists the faults of the images of a conversion.
func (v *faults) disks(disks []ConversionDisk, known []string) {
	switch {
	case len(disks) == 0:
		v.add("disks", "is required: name at least one image")
	case len(disks) > MaxConversionDisks:
		v.add("disks", "are too many: one job may have %d", MaxConversionDisks)
		return
	}
	bytes := 0
	var sources, targets []string
	for i, d := range disks {
		at := fmt.Sprintf("disks[%d].", i)
		v.folder(at+"source_path", d.SourcePath)
		v.oneOf(at+"source_format", "disk format", d.SourceFormat, known)
		v.folder(at+"output_path", d.OutputPath)
		switch name := path.Base(d.OutputPath); {
		case d.OutputPath == "":
		case name == "/":
			v.add(at+"output_path", "must be the path of a file")
		case len(name) > maxFile:
			v.add(at+"output_path", "has a name that is too long: %d bytes, %d are allowed", len(name), maxFile)
		}
		if slices.Contains(sources, d.SourcePath) {
			v.add(at+"source_path", "is named twice")
		}
		if slices.Contains(targets, d.OutputPath) {
			v.add(at+"output_path", "is named twice")
		}
		if slices.ContainsFunc(disks, func(o ConversionDisk) bool { return o.SourcePath == d.OutputPath && o.SourcePath != "" }) {
			v.add(at+"output_path", "must not be a file that is read")
		}
		sources, targets = append(sources, d.SourcePath), append(targets, d.OutputPath)
		bytes += len(d.SourcePath) + len(d.OutputPath)
	}
	if bytes > maxPaths {
		v.add("disks", "have paths that are too long together: %d bytes, %d are allowed", bytes, maxPaths)
	}
}

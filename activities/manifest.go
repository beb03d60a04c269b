package activities

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ManifestVersion is the version of the manifest's layout. A reader refuses one that is higher than
// it knows; fields may be added within a version.
const ManifestVersion = 1

// Manifest is manifest.json: the last file of an export to appear, so that a folder that has one is
// complete. It says what was exported and how each byte of it can be checked. Secrets are not in it.
type Manifest struct {
	Version  int          `json:"version"`
	Tool     string       `json:"tool"` // program and version that wrote it
	Job      string       `json:"job"`
	Spec     job.Spec     `json:"spec"` // as it was asked for
	Source   Source       `json:"source"`
	Started  job.Time     `json:"started"`
	Finished job.Time     `json:"finished"`
	Host     string       `json:"host"`     // that wrote the files
	Verified bool         `json:"verified"` // the files were read again and compared with what was received
	Disks    []DiskRecord `json:"disks"`
	// Package is what the disks are parts of, where the format is a package.
	Package *PackageRecord `json:"package,omitempty"`
}

// PackageRecord is the package of an export.
type PackageRecord struct {
	Format string       `json:"format"` // "ova", "ovf"
	Files  []FileRecord `json:"files"`  // beside those of the disks: the archive, or descriptor and manifest
}

// FileRecord is a file of an export that is no disk.
type FileRecord struct {
	File   string `json:"file"`
	Stored int64  `json:"stored"`           // bytes
	SHA256 string `json:"sha256,omitempty"` // absent of an archive where the export was not verified
}

// Source is where an export came from.
type Source struct {
	Provider  string       `json:"provider"`  // kind: "vsphere"
	Transport string       `json:"transport"` // how the disks were read
	Snapshot  job.Time     `json:"snapshot"`  // the moment that the disks are of
	VM        providers.VM `json:"vm"`
}

// DiskRecord is one disk of an export.
type DiskRecord struct {
	ID     string `json:"id"` // on its platform
	Label  string `json:"label"`
	File   string `json:"file"` // in the folder of the manifest
	Format string `json:"format"`
	Size   int64  `json:"size"`   // of the virtual disk, in bytes
	Stored int64  `json:"stored"` // of the file, in bytes
	// Digest is the content digest: of the virtual disk, whatever format it is stored in. It is
	// defined at formats.Digest.
	Digest string `json:"digest"`
	// Digests is the file with the SHA-256 of every MiB of the virtual disk that Digest is the top of.
	Digests string `json:"digests"`
	// SHA256 is of the file, as sha256sum prints it; absent where the export was not verified.
	SHA256 string `json:"sha256,omitempty"`
	// Archive is the file that File is a member of; absent where it lies in the folder itself.
	Archive string `json:"archive,omitempty"`
}

// maxManifest is more than any manifest has.
const maxManifest = 16 << 20

// manifest makes the manifest of a finished export.
func (in FinishRequest) manifest(version string, now job.Time) Manifest {
	m := Manifest{
		Version: ManifestVersion, Tool: "hypersdk " + version, Job: in.Job, Spec: in.Spec,
		Source:  Source{Provider: in.Kind, Transport: in.Via, Snapshot: job.Time{Time: in.Snapshot}, VM: in.VM},
		Started: job.Time{Time: in.Started}, Finished: now, Host: in.Host.Name, Verified: in.Verified,
	}
	for _, d := range in.Disks {
		m.Disks = append(m.Disks, DiskRecord{
			ID: d.Disk, Label: d.Label, File: d.File, Format: d.Format, Size: d.Size, Stored: d.Stored,
			Digest: d.Digest, Digests: d.File + digestsExt, SHA256: d.SHA256, Archive: d.Archive,
		})
	}
	if in.Target.Package != "" {
		m.Package = &PackageRecord{Format: in.Target.Package}
		for _, f := range in.Package {
			m.Package.Files = append(m.Package.Files, FileRecord{File: f.Name, Stored: f.Stored, SHA256: f.SHA256})
		}
	}
	return m
}

// files lists the files that a manifest speaks of; names that are not plain are left out.
func (m Manifest) files() []string {
	var all []string
	if m.Package != nil {
		for _, f := range m.Package.Files {
			all = append(all, f.File)
		}
	}
	for _, d := range m.Disks {
		if d.Archive == "" {
			all = append(all, d.File)
		}
		all = append(all, d.Digests)
	}
	return slices.DeleteFunc(all, func(n string) bool { return !plain(n) })
}

// readManifest reads the manifest of the folder; ok is false where there is none that can be read.
func (f *folder) readManifest() (m Manifest, ok bool, err error) {
	file, err := f.open(manifestName, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxManifest))
	if err != nil {
		return m, false, err
	}
	if json.Unmarshal(b, &m) != nil {
		return Manifest{}, false, nil
	}
	return m, true, nil
}

// writeManifest writes the manifest under its hidden name, durably, and then gives it its own.
func (f *folder) writeManifest(m Manifest, replace bool) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return err
	}
	file, err := f.open(partName(manifestName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = file.Write(b.Bytes())
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	if err := f.rename(partName(manifestName), manifestName, replace); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	return syncDir(f.root)
}

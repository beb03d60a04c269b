package providers

import (
	"context"
	"io"
)

// Package is a packaged VM that is to be imported.
type Package struct {
	Descriptor string // OVF envelope (DSP0243), as text
	Files      []PackageFile
}

// PackageFile is a file that the descriptor of a package refers to.
type PackageFile struct {
	Name string // as the descriptor has it
	Size int64  // bytes that Open gives; 0: not known beforehand
	// Open reads the file from its beginning, and may be called again. A disk comes as a streamOptimized
	// VMDK. The reader answers io.EOF only when all came and is what the manifest of the package says.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// ImportTarget says where a VM is to be made. A place is named by its inventory path, its id or its name
// where only one has it; one that is left empty is the only one that there is.
type ImportTarget struct {
	Name      string `json:"name"`
	Folder    string `json:"folder,omitempty"`
	Pool      string `json:"pool,omitempty"` // a resource pool, or a cluster, whose own pool is meant
	Host      string `json:"host,omitempty"`
	Datastore string `json:"datastore,omitempty"`
	// Networks maps networks of the package to those of the platform. One that is not mapped goes to the
	// network of the same name.
	Networks map[string]string `json:"networks,omitempty"`
	Thick    bool              `json:"thick,omitempty"` // allocate the whole disks
}

// ImportPlan is what a platform would make of a package.
type ImportPlan struct {
	Target   ImportTarget `json:"target"` // all places by their inventory paths
	Files    []string     `json:"files"`  // that it would take, by their names in the descriptor
	Warnings []string     `json:"warnings,omitempty"`
	Free     int64        `json:"free"` // bytes that are free on the datastore
}

// PackageImporter makes VMs of packages. Every method may be repeated.
type PackageImporter interface {
	// PlanImport judges a package and looks for the places where it is to go. Nothing is made.
	PlanImport(ctx context.Context, descriptor string, to ImportTarget) (ImportPlan, error)
	// ImportPackage makes the VM, off, and answers it. key names the import for ever: what an attempt with
	// the same key left unfinished is removed, and the VM that one completed is answered. A VM of that
	// name that it did not make is Exists.
	ImportPackage(ctx context.Context, p Package, to ImportTarget, key string) (VM, error)
	// DiscardImport removes what an import left unfinished; a VM that was completed stays.
	DiscardImport(ctx context.Context, to ImportTarget, key string) error
}

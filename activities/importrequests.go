package activities

import (
	"time"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// Names of the activities of imports; see those in requests.go.
const (
	AskImportActivity     = "ask-import"      // Control.AskImport
	LookPackageActivity   = "look-at-package" // Control.LookPackage
	PlanImportActivity    = "plan-import"     // Control.PlanImport
	ImportPackageActivity = "import-package"  // Data.ImportPackage
	DiscardImportActivity = "discard-import"  // Control.DiscardImport
)

// AskImportRequest asks for an import to be admitted.
type AskImportRequest struct {
	Job  string         `json:"job"`
	Spec job.ImportSpec `json:"spec"`
}

// LookPackageRequest asks a host whether it has a package.
type LookPackageRequest struct {
	Job  string `json:"job"`
	Path string `json:"path"`
}

// PlanImportRequest asks for a package to be judged, here and by the platform.
type PlanImportRequest struct {
	Job  string         `json:"job"`
	Spec job.ImportSpec `json:"spec"`
	Key  string         `json:"key"`
}

// PlannedImport is what will be made of a package.
type PlannedImport struct {
	Target   providers.ImportTarget `json:"target"`
	Files    []PackedFile           `json:"files"` // that go up
	Warnings []string               `json:"warnings,omitempty"`
}

// PackedFile is a file of a package.
type PackedFile struct {
	Name string `json:"name"`
	Size int64  `json:"size"` // bytes that are read of it
	// Convert says that it is a disk that is turned into a streamOptimized VMDK while it goes up: Size is
	// that of the virtual disk then.
	Convert bool `json:"convert,omitempty"`
	// Said is the size that the descriptor says, where that is another.
	Said int64 `json:"said,omitempty"`
}

// ImportRequest asks for a package to be imported.
type ImportRequest struct {
	Job        string                 `json:"job"`
	Connection string                 `json:"connection"`
	Path       string                 `json:"path"`
	Key        string                 `json:"key"`
	Target     providers.ImportTarget `json:"target"`
	Files      []PackedFile           `json:"files"`
	Limits     job.Limits             `json:"limits"`
}

// Imported is a VM that was made.
type Imported struct {
	VM       providers.VMID `json:"vm"`
	Name     string         `json:"name"`
	Path     string         `json:"path"` // in the inventory
	Attempts int32          `json:"attempts"`
	Took     time.Duration  `json:"took"`
}

// DiscardImportRequest asks for what an import left unfinished to be removed.
type DiscardImportRequest struct {
	Job        string                 `json:"job"`
	Connection string                 `json:"connection"`
	Key        string                 `json:"key"`
	Target     providers.ImportTarget `json:"target"`
}

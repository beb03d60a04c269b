package activities

import (
	"time"

	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// AskConversionRequest asks for a conversion to be admitted.
type AskConversionRequest struct {
	Job      string `json:"job"`
	Title    string `json:"title"`
	Priority int    `json:"priority,omitempty"`
}

// HostsRequest asks which hosts there are.
type HostsRequest struct {
	Job string `json:"job"`
}

// Hosts are the ids of hosts, sorted.
type Hosts struct {
	IDs []string `json:"ids"`
}

// LookRequest asks a host whether it has the images of a conversion, and for the facts that a plan is
// made of.
type LookRequest struct {
	Job  string         `json:"job"`
	Spec job.Conversion `json:"spec"`
}

// Looked is what a host sees.
type Looked struct {
	Host Host `json:"host"`
	Free int  `json:"free"` // places
	// Missing says which of the images the host does not have; empty where it has them all, and Images is
	// there.
	Missing string           `json:"missing,omitempty"`
	Reason  providers.Reason `json:"reason,omitempty"`
	Format  FormatFacts      `json:"format"`
	Images  []Seen           `json:"images,omitempty"` // in the order of the spec
	// Chain is there for a job on a chain, and no images.
	Chain *ChainSeen `json:"chain,omitempty"`
}

// Seen is an image that was looked at.
type Seen struct {
	Image Image `json:"image"`
	Size  int64 `json:"size"` // of the disk, as the target will have it
	Held  int64 `json:"held"` // bytes that the image takes where it is
}

// SettleRequest asks for a place on the host that is asked.
type SettleRequest struct {
	Job    string        `json:"job"`
	Waited time.Duration `json:"waited"`         // since it was submitted; for the log
	What   string        `json:"what,omitempty"` // the host has that the job came for; empty: the images
}

// PrepareImagesRequest asks for the targets of a conversion to be claimed and checked.
type PrepareImagesRequest struct {
	Job    string         `json:"job"`
	Images []PrepareImage `json:"images"`
}

// PrepareImage is one target of a conversion.
type PrepareImage struct {
	Target Target `json:"target"`
	Need   int64  `json:"need"` // bytes, estimated
}

// FinishImagesRequest asks for the files of a conversion to get their names.
type FinishImagesRequest struct {
	Job    string        `json:"job"`
	Images []FinishImage `json:"images"`
}

// FinishImage is one file that is to get its name.
type FinishImage struct {
	Target Target `json:"target"`
	Inode  uint64 `json:"inode"`
}

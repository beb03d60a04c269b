package api

import "hypersdk/workflows/job"

// ChainPlace names a chain, and says how a job on it is run.
type ChainPlace struct {
	Path     string `json:"path" doc:"Folder of the chain, on a worker's host" example:"/backups/web-01" minLength:"1" maxLength:"4000"`
	Name     string `json:"name,omitempty" doc:"Free name of the job, for people" maxLength:"200"`
	Priority int    `json:"priority,omitempty" doc:"Jobs with a higher number are admitted first" minimum:"0" maximum:"100"`
}

// ChainCheckRequest asks for a chain to be examined.
type ChainCheckRequest struct {
	ChainPlace
	Depth     string  `json:"depth,omitempty" enum:"links,tables,data" doc:"links, also where absent: every file is there, has its size, and names the right backing file; tables: and the tables of every file are sound; data: and all that is stored has its digest"`
	LimitMBps float64 `json:"limit_mbps,omitempty" doc:"Bandwidth limit in MB/s (1,000,000 bytes), with data; 0: none" minimum:"0" maximum:"1000000"`
}

// ChainMergeRequest asks for a point to become the oldest of its chain.
type ChainMergeRequest struct {
	ChainPlace
	UpTo      int64   `json:"up_to" doc:"The point that becomes the oldest: its deltas and its base become one file, and the points before it are given up" minimum:"1" example:"7"`
	LimitMBps float64 `json:"limit_mbps,omitempty" doc:"Bandwidth limit in MB/s (1,000,000 bytes); 0: none" minimum:"0" maximum:"1000000"`
}

// ChainFlattenRequest asks for disks at a point to be written as images of their own.
type ChainFlattenRequest struct {
	ChainPlace
	Point        int64   `json:"point,omitempty" doc:"The newest where absent" minimum:"0" example:"3"`
	Disk         string  `json:"disk,omitempty" doc:"Id of the disk on its platform; all disks of the point where absent" example:"2000" maxLength:"1024"`
	TargetFormat string  `json:"target_format" doc:"Format of the images" example:"qcow2" maxLength:"40"`
	OutputPath   string  `json:"output_path" doc:"File to make of the disk; where none is named, the folder for a file of each, named after the VM. The folder must exist" example:"/restored" maxLength:"4000"`
	Compress     bool    `json:"compress,omitempty" doc:"Store blocks compressed, where the format can"`
	Overwrite    bool    `json:"overwrite,omitempty" doc:"Replace files that have the names of the images, once the new ones are whole"`
	LimitMBps    float64 `json:"limit_mbps,omitempty" doc:"Bandwidth limit in MB/s (1,000,000 bytes); 0: none" minimum:"0" maximum:"1000000"`
}

// ChainDeleteRequest asks for a point to be given up.
type ChainDeleteRequest struct {
	ChainPlace
	Point int64 `json:"point,omitempty" doc:"The newest where absent. One that others build upon is refused" minimum:"0" example:"9"`
}

// ChainListRequest asks what a chain is made of: by its folder, or by a VM and the folder of its exports.
type ChainListRequest struct {
	Path       string       `json:"path,omitempty" doc:"Folder of the chain" example:"/backups/web-01" maxLength:"4000"`
	OutputPath string       `json:"output_path,omitempty" doc:"With vm_path: what its exports were given as output_path" example:"/backups" maxLength:"4000"`
	VMPath     string       `json:"vm_path,omitempty" doc:"With output_path: inventory path, id or unambiguous name" example:"/datacenter/vm/web-01" maxLength:"2048"`
	Connection string       `json:"connection,omitempty" doc:"With vm_path: name of a configured connection; the default one where absent" maxLength:"2048"`
	VCenter    *Credentials `json:"vcenter,omitempty" doc:"With vm_path: the VM is here instead. Kept nowhere"`
	Host       string       `json:"host,omitempty" doc:"Id of the host that has the chain; any where absent" maxLength:"200"`
}

// Chain is what a chain is made of.
type Chain struct {
	job.ChainView
	Timestamp job.Time `json:"timestamp"`
}

// AnalyzeRequest asks what the next incremental export of a VM would do.
type AnalyzeRequest struct {
	VMRequest
	OutputPath string  `json:"output_path,omitempty" doc:"What the exports of the VM are given as output_path; where absent, where the last one that is known went" example:"/backups" maxLength:"4000"`
	LimitMBps  float64 `json:"limit_mbps,omitempty" doc:"Bandwidth limit that the next export will have, for the estimates; 0: none" minimum:"0" maximum:"1000000"`
}

// Analyzed is what the next incremental export of a VM would do.
type Analyzed struct {
	OperationID string    `json:"operation_id" doc:"GET /vms/operations/{id} has the analysis, too" example:"0199d4f2-7c1e-7b5a-9f53-1f0b6c7f5a11"`
	Status      job.State `json:"status" enum:"running,completed" doc:"With running, status 202, nothing else is known yet"`
	job.Analysis
	Timestamp job.Time `json:"timestamp"`
}

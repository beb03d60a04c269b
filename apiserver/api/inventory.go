package api

import (
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// ImportRequest asks for a VM to be made of a package.
type ImportRequest struct {
	job.ImportSpec
}

// Datacenters is the datacenters of a platform.
type Datacenters struct {
	Datacenters []providers.Datacenter `json:"datacenters" doc:"Ordered by path"`
	Total       int                    `json:"total"`
	Timestamp   job.Time               `json:"timestamp"`
}

// Clusters is the clusters of a platform, and its hosts outside of any.
type Clusters struct {
	Clusters  []providers.Cluster `json:"clusters" doc:"Ordered by path"`
	Total     int                 `json:"total"`
	Timestamp job.Time            `json:"timestamp"`
}

// Hosts is the hosts of a platform.
type Hosts struct {
	Hosts     []providers.Host `json:"hosts" doc:"Ordered by path"`
	Total     int              `json:"total"`
	Timestamp job.Time         `json:"timestamp"`
}

// Datastores is the datastores of a platform.
type Datastores struct {
	Datastores []providers.Datastore `json:"datastores" doc:"Ordered by path"`
	Total      int                   `json:"total"`
	Timestamp  job.Time              `json:"timestamp"`
}

// Networks is the networks of a platform.
type Networks struct {
	Networks  []providers.Network `json:"networks" doc:"Ordered by path"`
	Total     int                 `json:"total"`
	Timestamp job.Time            `json:"timestamp"`
}

// Pools is the resource pools of a platform.
type Pools struct {
	Pools     []providers.Pool `json:"pools" doc:"Ordered by path"`
	Total     int              `json:"total"`
	Timestamp job.Time         `json:"timestamp"`
}

// Folders is the folders of a platform.
type Folders struct {
	Folders   []providers.Folder `json:"folders" doc:"Ordered by path"`
	Total     int                `json:"total"`
	Timestamp job.Time           `json:"timestamp"`
}

// Events is what happened on a platform.
type Events struct {
	Events    []providers.Event `json:"events" doc:"The newest first"`
	Total     int               `json:"total"`
	Timestamp job.Time          `json:"timestamp"`
}

// Tasks is what a platform does and did.
type Tasks struct {
	Tasks     []providers.Task `json:"tasks" doc:"The newest first"`
	Total     int              `json:"total"`
	Timestamp job.Time         `json:"timestamp"`
}

// Metrics is how busy a VM or a host was lately.
type Metrics struct {
	Metrics   []providers.Metric `json:"metrics" doc:"Ordered by name; none of what does not run"`
	Total     int                `json:"total"`
	Timestamp job.Time           `json:"timestamp"`
}

package providers

import (
	"context"
	"time"
)

// Kind is a kind of thing that VMs run on, lie in or are stored on.
type Kind string

const (
	KindDatacenter Kind = "datacenters"
	KindCluster    Kind = "clusters"
	KindHost       Kind = "hosts"
	KindDatastore  Kind = "datastores"
	KindNetwork    Kind = "networks"
	KindPool       Kind = "pools"
	KindFolder     Kind = "folders"
)

// Place is what all things of the infrastructure have.
type Place struct {
	ID         string `json:"id" doc:"Name on its platform, stable while it lives" example:"datastore-12"`
	Name       string `json:"name" example:"datastore1"`
	Path       string `json:"path" doc:"Inventory path" example:"/DC0/datastore/datastore1"`
	Datacenter string `json:"datacenter,omitempty" doc:"Inventory path of the datacenter that it lies in" example:"/DC0"`
}

// Datacenter is the largest unit: nothing in one reaches into another.
type Datacenter struct{ Place }

// Cluster is hosts that share their work, or a single host that stands alone.
type Cluster struct {
	Place
	Alone       bool  `json:"alone,omitempty" doc:"It is a single host outside of any cluster"`
	Hosts       int   `json:"hosts"`
	CPUCores    int   `json:"cpu_cores"`
	CPUMHz      int64 `json:"cpu_mhz" doc:"Of all hosts together"`
	MemoryBytes int64 `json:"memory_bytes" doc:"Of all hosts together"`
	Balanced    bool  `json:"balanced" doc:"It moves VMs between its hosts by itself (DRS)"`
	Restarts    bool  `json:"restarts" doc:"It starts the VMs of a host that failed on another (HA)"`
}

// Host is a machine that VMs run on.
type Host struct {
	Place
	Cluster     string `json:"cluster,omitempty" doc:"Inventory path of its cluster"`
	Connection  string `json:"connection" doc:"Whether the platform reaches it" example:"connected"`
	Maintenance bool   `json:"maintenance" doc:"It takes no VMs now"`
	Product     string `json:"product,omitempty" example:"VMware ESXi 8.0.2"`
	Model       string `json:"model,omitempty" example:"PowerEdge R640"`
	CPUModel    string `json:"cpu_model,omitempty"`
	CPUCores    int    `json:"cpu_cores"`
	CPUMHz      int64  `json:"cpu_mhz" doc:"Of all cores together"`
	CPUUsedMHz  int64  `json:"cpu_used_mhz"`
	MemoryBytes int64  `json:"memory_bytes"`
	MemoryUsed  int64  `json:"memory_used_bytes"`
	Seconds     int64  `json:"uptime_seconds"`
}

// Datastore is where VMs are stored.
type Datastore struct {
	Place
	Type        string `json:"type" example:"VMFS"`
	Capacity    int64  `json:"capacity_bytes"`
	Free        int64  `json:"free_bytes"`
	Accessible  bool   `json:"accessible"`
	Maintenance bool   `json:"maintenance"`
	Shared      bool   `json:"shared" doc:"Several hosts have it"`
}

// Network is what network cards of VMs are connected to.
type Network struct {
	Place
	Type       string `json:"type" enum:"standard,distributed,opaque"`
	Accessible bool   `json:"accessible"`
}

// Pool is a share of a cluster or host that VMs run in.
type Pool struct {
	Place
	Cluster     string `json:"cluster,omitempty" doc:"Inventory path of the cluster or host that it is a share of"`
	CPUUsedMHz  int64  `json:"cpu_used_mhz"`
	CPULimitMHz int64  `json:"cpu_limit_mhz" doc:"-1: none"`
	MemoryUsed  int64  `json:"memory_used_bytes"`
	MemoryLimit int64  `json:"memory_limit_bytes" doc:"-1: none"`
}

// Folder is a folder of the inventory.
type Folder struct {
	Place
	Holds string `json:"holds" enum:"vms,hosts,datastores,networks,datacenters,any" doc:"What may lie in it"`
}

// Infrastructure is what there is beside VMs, each list ordered by path.
type Infrastructure struct {
	Datacenters []Datacenter
	Clusters    []Cluster
	Hosts       []Host
	Datastores  []Datastore
	Networks    []Network
	Pools       []Pool
	Folders     []Folder
}

// Surveyor lists the infrastructure.
type Surveyor interface {
	// Survey fills the lists of the kinds that are asked for; none is all. What the account may not see
	// is not in them.
	Survey(ctx context.Context, kinds ...Kind) (Infrastructure, error)
}

// HistoryFilter narrows what happened. The zero filter is the newest of everything.
type HistoryFilter struct {
	VM    string    // id, inventory path or name of the only VM to tell of
	Since time.Time // nothing before; zero: no bound
	Limit int       // at most so many, the newest; at most [MaxHistory]
}

// MaxHistory is how much of a history can be asked for at once.
const MaxHistory = 1000

// Event is something that happened on the platform.
type Event struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Type    string    `json:"type" doc:"As the platform calls it" example:"VmPoweredOnEvent"`
	Message string    `json:"message"`
	User    string    `json:"user,omitempty"`
	VM      string    `json:"vm,omitempty" doc:"Name of the VM that it is about"`
	Host    string    `json:"host,omitempty"`
}

// Task is something that the platform does, or did.
type Task struct {
	ID        string     `json:"id" example:"task-77"`
	Operation string     `json:"operation" doc:"As the platform calls it" example:"VirtualMachine.powerOn"`
	Entity    string     `json:"entity,omitempty" doc:"Name of what it is done to"`
	State     string     `json:"state" enum:"queued,running,success,error"`
	Progress  int        `json:"progress" doc:"Percent, of a task that runs"`
	User      string     `json:"user,omitempty"`
	Error     string     `json:"error,omitempty"`
	Queued    time.Time  `json:"queued_at"`
	Started   *time.Time `json:"started_at,omitempty"`
	Completed *time.Time `json:"completed_at,omitempty"`
}

// Historian tells what happened, the newest first.
type Historian interface {
	Events(ctx context.Context, f HistoryFilter) ([]Event, error)
	Tasks(ctx context.Context, f HistoryFilter) ([]Task, error)
}

// MetricFilter says of what metrics are wanted: of a VM or of a host.
type MetricFilter struct {
	VM    string // id, inventory path or name
	Host  string // likewise
	Since time.Time
	Limit int // at most so many samples of each metric, the newest
}

// Metric is a figure over time.
type Metric struct {
	Name    string   `json:"name" example:"cpu.usage.average"`
	Label   string   `json:"label,omitempty"`
	Unit    string   `json:"unit" example:"percent"`
	Samples []Sample `json:"samples" doc:"Ascending"`
}

// Sample is a figure at a moment.
type Sample struct {
	Time  time.Time `json:"time"`
	Value float64   `json:"value"`
}

// Gauger tells how busy VMs and hosts are. What does not run has no samples.
type Gauger interface {
	Metrics(ctx context.Context, f MetricFilter) ([]Metric, error)
}

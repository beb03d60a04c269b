package apiserver

import (
	"maps"
	"time"

	"hypersdk/apiserver/api"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

// withInventory adds the answers about what VMs run on.
func withInventory(all map[string]any, now job.Time) map[string]any {
	at := func(id, name, path string) providers.Place {
		return providers.Place{ID: id, Name: name, Path: path, Datacenter: "/DC0"}
	}
	started, ended := now.Add(-time.Minute), now.Add(-30*time.Second)
	maps.Copy(all, map[string]any{
		"import-vm": api.Started{JobID: exampleID, Status: job.Pending, Timestamp: now},
		"list-datacenters": api.Datacenters{Datacenters: []providers.Datacenter{{Place: providers.Place{ID: "datacenter-2", Name: "DC0", Path: "/DC0"}}},
			Total: 1, Timestamp: now},
		"list-clusters": api.Clusters{Clusters: []providers.Cluster{{Place: at("domain-c8", "C0", "/DC0/host/C0"), Hosts: 3, CPUCores: 96,
			CPUMHz: 230400, MemoryBytes: 1649267441664, Balanced: true, Restarts: true}}, Total: 1, Timestamp: now},
		"list-hosts": api.Hosts{Hosts: []providers.Host{{Place: at("host-12", "esx-01", "/DC0/host/C0/esx-01"), Cluster: "/DC0/host/C0",
			Connection: "connected", Product: "VMware ESXi 8.0.2", CPUCores: 32, CPUMHz: 76800, CPUUsedMHz: 12000,
			MemoryBytes: 549755813888, MemoryUsed: 274877906944, Seconds: 864000}}, Total: 1, Timestamp: now},
		"list-datastores": api.Datastores{Datastores: []providers.Datastore{{Place: at("datastore-12", "datastore1", "/DC0/datastore/datastore1"),
			Type: "VMFS", Capacity: 10995116277760, Free: 4398046511104, Accessible: true, Shared: true}}, Total: 1, Timestamp: now},
		"list-networks": api.Networks{Networks: []providers.Network{{Place: at("network-7", "VM Network", "/DC0/network/VM Network"),
			Type: "standard", Accessible: true}}, Total: 1, Timestamp: now},
		"list-pools": api.Pools{Pools: []providers.Pool{{Place: at("resgroup-9", "Resources", "/DC0/host/C0/Resources"), Cluster: "/DC0/host/C0",
			CPULimitMHz: -1, MemoryLimit: -1}}, Total: 1, Timestamp: now},
		"list-folders": api.Folders{Folders: []providers.Folder{{Place: at("group-v3", "vm", "/DC0/vm"), Holds: "vms"}}, Total: 1, Timestamp: now},
		"list-events": api.Events{Events: []providers.Event{{ID: "4711", Time: ended, Type: "VmPoweredOnEvent",
			Message: "web-01 on esx-01 in DC0 is powered on", User: "VSPHERE.LOCAL\\backup", VM: "web-01", Host: "esx-01"}}, Total: 1, Timestamp: now},
		"list-tasks": api.Tasks{Tasks: []providers.Task{{ID: "task-77", Operation: "VirtualMachine.powerOn", Entity: "web-01", State: "success",
			Progress: 100, Queued: started, Started: &started, Completed: &ended}}, Total: 1, Timestamp: now},
		"list-metrics": api.Metrics{Metrics: []providers.Metric{{Name: "cpu.usage.average", Label: "Usage", Unit: "percent",
			Samples: []providers.Sample{{Time: ended, Value: 12.5}}}}, Total: 1, Timestamp: now},
	})
	return all
}

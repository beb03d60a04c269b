package apiserver

import (
	"maps"

	"hypersdk/apiserver/api"
	"hypersdk/cbt"
	"hypersdk/workflows/job"
)

// chainRequests are requests about chains.
func chainRequests() map[string]any {
	return map[string]any{
		"check-chain": map[string]any{"path": "/backups/web-01", "depth": job.CheckDepthData},
		"merge-chain": map[string]any{"path": "/backups/web-01", "up_to": 7},
		"flatten-chain": map[string]any{
			"path": "/backups/web-01", "point": 3, "disk": "2000", "target_format": "vmdk", "output_path": "/restored/web-01.vmdk",
		},
		"delete-chain":        map[string]any{"path": "/backups/web-01", "point": 9},
		"list-chain":          map[string]any{"path": "/backups/web-01"},
		"analyze-incremental": map[string]any{"vm_path": "/datacenter/vm/web-01"},
	}
}

// withChains adds the answers about chains.
func withChains(all map[string]any, now job.Time) map[string]any {
	started := api.Started{JobID: exampleID, Status: job.Pending, Timestamp: now}
	const digest = "sha256-1m:7d865e959b2466918c9863afca942d0fb89d7c9ac0c99bafc3749504ded97730"
	maps.Copy(all, map[string]any{
		"check-chain": started, "merge-chain": started, "flatten-chain": started, "delete-chain": started,
		"list-chain": api.Chain{Timestamp: now, ChainView: job.ChainView{
			ID: "6f1d1c0a9f5e4a0b8d3c2b1a09f8e7d6", VM: job.ChainVM{ID: "vm-42", Name: "web-01", Provider: "vsphere"}, Path: "/backups/web-01",
			Host: "5f3a", Total: 2, Stored: 21609054208, Points: []job.ChainPoint{
				{Number: 1, Time: now, Disks: []job.ChainDisk{{Disk: "2000", Size: 42949672960, Full: true, Reason: "first point of the chain",
					Changed: 42949672960, Stored: 21474836480, File: "disk0-000001.qcow2", Digest: digest}}},
				{Number: 2, Parent: 1, Time: now, Disks: []job.ChainDisk{{Disk: "2000", Size: 42949672960, By: cbt.Tracked,
					Changed: 134217728, Stored: 134217728, File: "disk0-000002.qcow2", Digest: digest}}},
			},
		}},
		"analyze-incremental": api.Analyzed{OperationID: exampleID, Status: job.Completed, Timestamp: now, Analysis: job.Analysis{
			CanIncremental: true, Reason: "what changed since the last point is known for all disks", EstimatedSavingsBytes: 21340618752,
			VMName: "web-01", LastPoint: &job.AnalyzedPoint{Number: 2, Time: now, Folder: "/backups/web-01", Host: "5f3a"},
			Disks: []job.AnalyzedDisk{{Disk: "2000", Label: "Hard disk 1", Size: 42949672960, CanIncremental: true,
				ChangedBytes: 134217728, AllocatedBytes: 21474836480, By: cbt.Tracked}},
			ChangedBytes: 134217728, TotalBytes: 42949672960, AllocatedBytes: 21474836480, EstimatedDuration: "1s", EstimatedFullDuration: "3m34s",
		}},
	})
	return all
}

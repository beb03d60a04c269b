package main

import (
	"fmt"

	"hypersdk/workflows/job"
)

// pointText is the point of a chain that a job has written; "" where it has written none.
func pointText(p *job.PointResult) string {
	switch {
	case p == nil:
		return ""
	case p.Parent == 0:
		return fmt.Sprintf("%d, the first of the chain", p.Number)
	}
	return fmt.Sprintf("%d, after point %d; %s were taken as changed", p.Number, p.Parent, bytesText(p.Changed))
}

// printPoint prints the disks of a point, and how what changed of them was found.
func (a *app) printPoint(disks []job.DiskResult) {
	t := newTable("FILE", ">SIZE", ">CHANGED", ">STORED", "FOUND BY", "REMARK")
	for _, d := range disks {
		by := d.By
		if d.Full {
			by = "in full"
		}
		t.add(d.File, bytesText(d.Size), bytesText(d.Changed), bytesText(d.Stored), by, d.Reason)
	}
	a.printf("\n")
	a.printTable(t)
}

package tui

import (
	"fmt"
	"strings"
	"time"

	"hypersdk/cmd/terminal"
	"hypersdk/providers"
	"hypersdk/workflows/job"
)

var jobColumns = []column{
	{title: "NAME"}, {title: "STATUS", width: 9}, {title: "PHASE", width: 9, from: 50}, {title: "DONE", width: 6, right: true, from: 36},
	{title: "RATE", width: 9, right: true, from: 70}, {title: "LEFT", width: 8, right: true, from: 82},
	{title: "FORMAT", width: 6, from: 96}, {title: "AGE", width: 8, right: true, from: 60}, {title: "WAITS FOR, OR WHY IT FAILED", width: 36, from: 130},
}

var vmColumns = []column{
	{title: "NAME"}, {title: "POWER", width: 9, from: 36}, {title: "CPU", width: 3, right: true, from: 60}, {title: "MEMORY", width: 8, right: true, from: 60},
	{title: "STORAGE", width: 8, right: true, from: 50}, {title: "GUEST", width: 28, from: 100}, {title: "PATH", width: 40, from: 140},
}

func jobIDs(jobs []job.Job) []string {
	out := make([]string, len(jobs))
	for i, j := range jobs {
		out[i] = j.ID
	}
	return out
}

func vmIDs(vms []providers.VM) []string {
	out := make([]string, len(vms))
	for i, vm := range vms {
		out[i] = string(vm.ID)
	}
	return out
}

// jobTexts are what a filter of jobs looks at.
func jobTexts(jobs []job.Job) []string {
	out := make([]string, len(jobs))
	for i, j := range jobs {
		out[i] = strings.Join([]string{j.ID, jobName(j), j.Definition.VMPath, j.Definition.OutputPath, string(j.Status), j.Definition.Format, j.Error, string(progress(j).Phase)}, " ")
	}
	return out
}

func vmTexts(vms []providers.VM) []string {
	out := make([]string, len(vms))
	for i, vm := range vms {
		out[i] = strings.Join([]string{string(vm.ID), vm.Name, vm.Path, vm.GuestOS, vm.PowerState.Word()}, " ")
	}
	return out
}

func progress(j job.Job) job.Progress {
	if j.Progress == nil {
		return job.Progress{}
	}
	return *j.Progress
}

// jobName is what people call a job.
func jobName(j job.Job) string {
	if j.Definition.Name != "" {
		return j.Definition.Name
	}
	if i := strings.LastIndex(j.Definition.VMPath, "/"); i >= 0 && i+1 < len(j.Definition.VMPath) {
		return j.Definition.VMPath[i+1:]
	}
	if j.Definition.VMPath == "" {
		return j.ID
	}
	return j.Definition.VMPath
}

func (m *model) jobCells(id string) (cells []string, c string) {
	j, _ := m.job(id)
	p := progress(j)
	note := p.WaitingFor
	if j.Error != "" {
		note = j.Error
	}
	switch j.Status {
	case job.Failed:
		c = "1"
	case job.Completed:
		c = "2"
	case job.Cancelled:
		c = "8"
	case job.Running:
		c = "6"
	}
	status, done := string(j.Status), ""
	if p.Paused {
		status = "paused"
	}
	if j.Status == job.Running {
		done = terminal.PercentText(p.PercentComplete)
	}
	return []string{
		jobName(j), status, string(p.Phase), done, terminal.RateText(p.TransferRateMBps), p.EstimatedRemaining, j.Definition.Format, m.age(j.CreatedAt.Time), note,
	}, c
}

func (m *model) vmOf(id string) (providers.VM, bool) {
	for _, vm := range m.vms {
		if string(vm.ID) == id {
			return vm, true
		}
	}
	return providers.VM{}, false
}

func (m *model) vmCells(id string) (cells []string, c string) {
	vm, _ := m.vmOf(id)
	if vm.PowerState != providers.PowerOn {
		c = "8"
	}
	return []string{
		vm.Name, vm.PowerState.Word(), fmt.Sprint(vm.NumCPU), terminal.BytesText(vm.MemoryMB << 20), terminal.BytesText(vm.StorageBytes), vm.GuestOS, vm.Path,
	}, c
}

// age is how long ago something was, as short as that can be said.
func (m *model) age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return strings.TrimSuffix(terminal.SinceText(t, m.now()), " ago")
}

func rows(out []string, pairs ...string) []string {
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] == "" {
			continue
		}
		for n, l := range strings.Split(terminal.Clean(pairs[i+1]), "\n") {
			name := pairs[i]
			if n > 0 {
				name = ""
			}
			out = append(out, terminal.Pad(name, 12)+" "+l)
		}
	}
	return out
}

func at(t *job.Time) string {
	if t == nil {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// jobText is a job in full.
func (m *model) jobText() []string {
	j, ok := m.job(m.shown)
	if !ok {
		return []string{"the job is not among those that are shown"}
	}
	p, d := progress(j), j.Definition
	status := string(j.Status)
	if p.Paused {
		status += ", paused"
	}
	out := rows(nil, "Job", j.ID, "Name", d.Name, "VM", d.VMPath, "Chain", chainText(j.Chain), "To", d.OutputPath, "Format", d.Format, "Status", status, "Error", j.Error,
		"Phase", string(p.Phase), "Step", p.CurrentStep, "Waits for", p.WaitingFor, "Transport", p.Transport, "Host", j.Host,
		"Submitted", at(&j.CreatedAt), "Started", at(j.StartedAt), "Ended", at(j.CompletedAt), "Temporal", j.TemporalURL)
	if j.Status == job.Running && p.TotalBytes > 0 {
		out = rows(out, "Done", fmt.Sprintf("%s of %s, %s", terminal.BytesText(p.BytesTransferred), terminal.BytesText(p.TotalBytes), terminal.PercentText(p.PercentComplete)),
			"Rate", terminal.RateText(p.TransferRateMBps), "Left", p.EstimatedRemaining)
	}
	if p.LimitMBps > 0 {
		out = rows(out, "Limit", terminal.RateText(p.LimitMBps))
	}
	for _, k := range p.Disks {
		line := fmt.Sprintf("%s  %s of %s  %s", k.File, terminal.BytesText(k.Done), terminal.BytesText(k.Total), terminal.RateText(k.RateMBps))
		if k.Waiting != "" {
			line += "  waits for " + k.Waiting
		}
		out = rows(out, "Disk "+k.Disk, line)
	}
	if r := j.Result; r != nil {
		out = rows(out, "Written", fmt.Sprintf("%s in %s", terminal.BytesText(r.TotalSize), r.Duration.Round(time.Second)), "In", r.OutputDir,
			"Files", strings.Join(r.Files, "\n"), "Alerts", strings.Join(r.Alerts, "\n"), "Left behind", strings.Join(r.Leftover, "\n"))
		for _, k := range r.Disks {
			out = rows(out, "Digest", k.File+"  "+k.Digest)
		}
	}
	return out
}

// chainText is the folder of the chain that a job works on; "" where it works on none.
func chainText(w *job.ChainWork) string {
	if w == nil {
		return ""
	}
	return w.Path
}

// vmText is a VM in full.
func (m *model) vmText() []string {
	switch {
	case m.vmErr != nil:
		return []string{m.vmErr.Error()}
	case m.vm == nil:
		return []string{"looking at the VM …"}
	}
	vm := m.vm
	out := rows(nil, "Name", vm.Name, "Path", vm.Path, "Id", string(vm.ID), "Power", vm.PowerState.Word(), "Guest", vm.GuestOS,
		"CPU", fmt.Sprint(vm.NumCPU), "Memory", terminal.BytesText(vm.MemoryMB<<20), "Storage", terminal.BytesText(vm.StorageBytes), "Host", vm.Host,
		"Firmware", vm.Firmware, "Hardware", vm.HardwareVersion, "Hostname", vm.Hostname, "Addresses", strings.Join(vm.Addresses, ", "), "Notes", vm.Annotation)
	for _, d := range vm.Disks {
		out = rows(out, "Disk", fmt.Sprintf("%s  %s  %s", d.Label, terminal.BytesText(d.Size), d.Path))
	}
	for _, n := range vm.NICs {
		out = rows(out, "Network", fmt.Sprintf("%s  %s  %s  %s", n.Label, n.Model, n.MAC, n.Network))
	}
	for _, c := range vm.CDROMs {
		out = rows(out, "CD or DVD", strings.TrimSpace(c.Label+"  "+c.Media))
	}
	for _, s := range vm.Snapshots {
		out = rows(out, "Snapshot", s.Name+"  "+s.Created.Local().Format("2006-01-02 15:04:05"))
	}
	return out
}

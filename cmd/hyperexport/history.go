package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"hypersdk/cmd/terminal"
	"hypersdk/workflows/job"
)

const (
	historyFile = "history.jsonl"
	// maxHistory is how many past exports are kept.
	maxHistory = 1000
)

// historyEntry is a past export.
type historyEntry struct {
	ID        string        `json:"id"`
	VM        string        `json:"vm"`
	Path      string        `json:"path"`
	Server    string        `json:"server"`
	Output    string        `json:"output_path"`
	Folder    string        `json:"output_dir,omitempty"`
	Format    string        `json:"format"`
	Status    job.State     `json:"status"`
	Error     string        `json:"error,omitempty"`
	Reason    string        `json:"reason,omitempty"`
	Started   job.Time      `json:"started_at"`
	Ended     job.Time      `json:"completed_at"`
	Duration  time.Duration `json:"duration"`
	Disks     int           `json:"disks"`
	DiskBytes int64         `json:"disk_bytes"`
	FileBytes int64         `json:"total_size"`
	Transport string        `json:"transport,omitempty"`
	Digests   []string      `json:"digests,omitempty"`
}

func entryOf(j job.Job, p platform) historyEntry {
	h := historyEntry{
		ID: j.ID, VM: j.Definition.Name, Path: j.Definition.VMPath, Server: p.server, Output: j.Definition.OutputPath,
		Format: j.Definition.Format, Status: j.Status, Error: j.Error, Reason: j.Reason, Started: j.CreatedAt, Ended: j.UpdatedAt,
	}
	if j.StartedAt != nil {
		h.Started = *j.StartedAt
	}
	if j.CompletedAt != nil {
		h.Ended = *j.CompletedAt
	}
	h.Duration = h.Ended.Sub(h.Started.Time)
	if r := j.Result; r != nil {
		h.Folder, h.Duration, h.FileBytes, h.Transport, h.Disks = r.OutputDir, r.Duration, r.TotalSize, r.Transport, len(r.Disks)
		for _, d := range r.Disks {
			h.DiskBytes += d.Size
			h.Digests = append(h.Digests, d.Digest)
		}
	}
	return h
}

// appendHistory adds exports that are not in it yet, and forgets the oldest beyond what is kept.
func appendHistory(dataDir string, entries []historyEntry) error {
	if len(entries) == 0 {
		return nil
	}
	lock, err := os.OpenFile(filepath.Join(dataDir, "history.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // held for milliseconds
		return err
	}
	all, err := readHistory(dataDir)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, h := range all {
		known[h.ID] = true
	}
	for _, h := range entries {
		if !known[h.ID] || h.ID == "-" {
			all = append(all, h)
		}
	}
	all = all[max(0, len(all)-maxHistory):]
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	for _, h := range all {
		if err := enc.Encode(h); err != nil {
			return err
		}
	}
	return writeFile(filepath.Join(dataDir, historyFile), b.Bytes())
}

// readHistory is the past exports, the oldest first. A line that cannot be read is left out.
func readHistory(dataDir string) ([]historyEntry, error) {
	f, err := os.Open(filepath.Join(dataDir, historyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []historyEntry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var h historyEntry
		if json.Unmarshal(lines.Bytes(), &h) == nil {
			all = append(all, h)
		}
	}
	return all, lines.Err()
}

// past is what of the history is asked for.
type past struct {
	limit  int
	vm     string
	status string
	since  time.Duration
}

func (p *past) flags(c *cobra.Command) {
	f := c.Flags()
	f.IntVarP(&p.limit, "limit", "n", 0, "only the newest so many")
	f.StringVar(&p.vm, "vm", "", "only VMs with this in their path")
	f.StringVar(&p.status, "status", "", "only exports that are completed, failed or cancelled")
	f.DurationVar(&p.since, "since", 0, "only exports that ended within this time, such as 24h")
}

func (p *past) choose(all []historyEntry, now time.Time) ([]historyEntry, error) {
	if p.status != "" && !slices.Contains([]string{"completed", "failed", "cancelled"}, p.status) {
		return nil, usageError("--status %q is none of completed, failed, cancelled", p.status)
	}
	if p.limit < 0 || p.since < 0 {
		return nil, usageError("--limit and --since must not be negative")
	}
	all = slices.DeleteFunc(all, func(h historyEntry) bool {
		return !strings.Contains(strings.ToLower(h.Path), strings.ToLower(p.vm)) || p.status != "" && string(h.Status) != p.status ||
			p.since > 0 && now.Sub(h.Ended.Time) > p.since
	})
	if p.limit > 0 {
		all = all[max(0, len(all)-p.limit):]
	}
	return all, nil
}

func (a *app) past(c *cobra.Command, p *past) ([]historyEntry, error) {
	if err := a.configure(c.Flags()); err != nil {
		return nil, err
	}
	all, err := readHistory(a.opt.dataDir)
	if err != nil {
		return nil, fmt.Errorf("history: %w", err)
	}
	return p.choose(all, time.Now())
}

func (a *app) historyCommand() *cobra.Command {
	var p past
	c := &cobra.Command{
		Use: "history", Short: "List past exports, the newest last", Args: cobra.NoArgs,
		Long:    "Lists the exports that have ended, of the last 1,000: those of every vCenter, in this private folder.",
		Example: "  hyperexport history --limit 10\n  hyperexport history --status failed --since 24h --json",
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := a.past(c, &p)
			if err != nil {
				return err
			}
			if a.opt.json {
				for _, h := range all {
					if err := a.printJSON(h); err != nil {
						return err
					}
				}
				return nil
			}
			if len(all) == 0 {
				a.printf("No exports yet.\n")
				return nil
			}
			t := terminal.NewTable("ENDED", "VM", "STATUS", "?FORMAT", "?>SIZE", "?>TOOK", "WHERE")
			for _, h := range all {
				where := h.Folder
				if h.Error != "" {
					where = h.Error
				}
				t.Add(h.Ended.Local().Format("2006-01-02 15:04"), terminal.Cut(terminal.OneLine(h.VM), 40), string(h.Status), h.Format,
					terminal.BytesText(h.FileBytes), h.Duration.Round(time.Second).String(), where)
			}
			a.Screen().PrintTable(t)
			return nil
		},
	}
	p.flags(c)
	return c
}

// report sums up past exports.
type report struct {
	Exports   int               `json:"exports"`
	ByStatus  map[job.State]int `json:"by_status"`
	ByReason  map[string]int    `json:"by_reason"`
	VMs       int               `json:"vms"`
	DiskBytes int64             `json:"disk_bytes"`
	FileBytes int64             `json:"total_size"`
	Duration  time.Duration     `json:"duration" doc:"Of all together, nanoseconds"`
	RateMBps  float64           `json:"rate_mbps" doc:"Disk bytes of completed exports over their time"`
	First     *job.Time         `json:"first,omitempty"`
	Last      *job.Time         `json:"last,omitempty"`
}

func sumUp(all []historyEntry) report {
	r := report{Exports: len(all), ByStatus: map[job.State]int{}, ByReason: map[string]int{}}
	vms := map[string]bool{}
	for _, h := range all {
		r.ByStatus[h.Status]++
		if h.Reason != "" {
			r.ByReason[h.Reason]++
		}
		vms[h.Server+"\x00"+h.Path] = true
		r.DiskBytes, r.FileBytes, r.Duration = r.DiskBytes+h.DiskBytes, r.FileBytes+h.FileBytes, r.Duration+h.Duration
		if r.First == nil || h.Ended.Before(r.First.Time) {
			r.First = &h.Ended
		}
		if r.Last == nil || h.Ended.After(r.Last.Time) {
			r.Last = &h.Ended
		}
	}
	r.VMs = len(vms)
	var done time.Duration
	for _, h := range all {
		if h.Status == job.Completed {
			done += h.Duration
		}
	}
	if done > 0 {
		r.RateMBps = float64(r.DiskBytes) / 1e6 / done.Seconds()
	}
	return r
}

func (a *app) reportCommand() *cobra.Command {
	var p past
	var format string
	c := &cobra.Command{
		Use: "report", Short: "Sum up past exports", Args: cobra.NoArgs,
		Long:    "Sums up the exports that have ended, as text or JSON, or lists them as CSV for a spreadsheet.",
		Example: "  hyperexport report --since 168h\n  hyperexport report --format csv > exports.csv",
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := a.past(c, &p)
			if err != nil {
				return err
			}
			if a.opt.json && !c.Flags().Changed("format") {
				format = "json"
			}
			switch format {
			case "json":
				return a.printJSON(sumUp(all))
			case "csv":
				return a.printCSV(all)
			case "text":
				a.printReport(sumUp(all))
				return nil
			}
			return usageError("--format %q is none of text, json, csv", format)
		},
	}
	p.flags(c)
	c.Flags().StringVar(&format, "format", "text", "text, json or csv")
	return c
}

func (a *app) printReport(r report) {
	count := func(n int, what string) string { return strconv.Itoa(n) + " " + what }
	var states []string
	for _, s := range []job.State{job.Completed, job.Failed, job.Cancelled} {
		if n := r.ByStatus[s]; n > 0 {
			states = append(states, count(n, string(s)))
		}
	}
	var why []string
	for _, reason := range slices.Sorted(maps.Keys(r.ByReason)) {
		why = append(why, count(r.ByReason[reason], strings.ReplaceAll(reason, "_", " ")))
	}
	rows := [][2]string{
		{"Exports", strconv.Itoa(r.Exports)}, {"", strings.Join(states, ", ")}, {"Failures", strings.Join(why, ", ")}, {"VMs", strconv.Itoa(r.VMs)},
		{"Disks", terminal.BytesText(r.DiskBytes)}, {"Files", terminal.BytesText(r.FileBytes)}, {"Time", r.Duration.Round(time.Second).String()},
		{"Rate", terminal.RateText(r.RateMBps)},
	}
	if r.First != nil {
		rows = append(rows, [2]string{"From", r.First.Local().Format(time.DateTime)}, [2]string{"To", r.Last.Local().Format(time.DateTime)})
	}
	a.Screen().PrintRows(rows)
}

func (a *app) printCSV(all []historyEntry) error {
	w := csv.NewWriter(a.Out)
	_ = w.Write([]string{"ended", "vm", "path", "server", "status", "format", "disks", "disk_bytes", "file_bytes", "seconds", "output", "error", "id"}) // Flush tells
	for _, h := range all {
		row := []string{
			h.Ended.UTC().Format(time.RFC3339), h.VM, h.Path, h.Server, string(h.Status), h.Format, strconv.Itoa(h.Disks),
			strconv.FormatInt(h.DiskBytes, 10), strconv.FormatInt(h.FileBytes, 10), strconv.FormatFloat(h.Duration.Seconds(), 'f', 1, 64),
			h.Folder, h.Error, h.ID,
		}
		for i := range row {
			row[i] = cell(row[i])
		}
		_ = w.Write(row)
	}
	w.Flush()
	return w.Error()
}

// cell keeps a spreadsheet from taking the name of a VM for a formula.
func cell(s string) string {
	s = terminal.OneLine(s)
	if s != "" && strings.ContainsRune("=+-@\t", rune(s[0])) {
		return "'" + s
	}
	return s
}

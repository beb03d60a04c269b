package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"hypersdk/activities"
	"hypersdk/cmd/terminal"
	formats "hypersdk/formats/all"
	"hypersdk/providers"
	"hypersdk/workflows"
	"hypersdk/workflows/job"
)

// plan is what an export would do, and what speaks against it. Nothing is touched to make one.
type plan struct {
	VM         providers.VM          `json:"vm"`
	Spec       job.Spec              `json:"definition"`
	Transports []providers.Transport `json:"transports"`
	workflows.Preview
	// Chain is set where the export is incremental.
	Chain   *chainPlan       `json:"chain,omitempty"`
	Free    int64            `json:"free" doc:"Bytes that are free where it would go"`
	Problem string           `json:"problem,omitempty"`
	Reason  providers.Reason `json:"reason,omitempty"`
}

// planOf makes the plan of an export.
func planOf(ctx context.Context, p providers.Provider, s job.Spec) (plan, error) {
	out := plan{Spec: s}
	facts, err := activities.Look(ctx, p, formats.ByName, activities.InspectRequest{Spec: s, Format: s.Format})
	if err != nil {
		return out, err
	}
	out.VM, out.Transports = facts.VM, facts.Transports
	if out.Preview, err = workflows.MakePreview(s, facts); err == nil {
		err = out.look(ctx, s)
	}
	if err != nil {
		out.Reason, out.Problem = providers.ReasonOf(err), err.Error()
		var e *providers.Error
		if errors.As(err, &e) && e.Msg != "" {
			out.Problem = e.Msg
		}
	}
	return out, nil
}

// look compares the plan with what is on this host.
func (p *plan) look(ctx context.Context, s job.Spec) error {
	there, err := nearest(p.Folder)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(there, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", there, err)
	}
	p.Free = int64(st.Bavail) * st.Bsize
	refuse := func(r providers.Reason, format string, args ...any) error {
		return &providers.Error{Op: "plan", Reason: r, Msg: fmt.Sprintf(format, args...)}
	}
	if unix.Access(there, unix.W_OK) != nil {
		return refuse(providers.Denied, "%s cannot be written to", there)
	}
	if s.Incremental {
		return p.lookAtChain(ctx)
	}
	if name := p.existing(); name != "" && !s.Options.Overwrite {
		return refuse(providers.Exists, "%s exists already; --overwrite replaces an earlier export", name)
	}
	if p.Need > p.Free {
		return refuse(providers.Exhausted, "not enough space in %s: about %s are needed, and %s are free", there, terminal.BytesText(p.Need), terminal.BytesText(p.Free))
	}
	return nil
}

// existing is a file of an earlier export in the same place; "" where there is none.
func (p *plan) existing() string {
	names := []string{"manifest.json"}
	for _, d := range p.Disks {
		names = append(names, d.File)
	}
	for _, n := range names {
		if name := filepath.Join(p.Folder, n); exists(name) {
			return name
		}
	}
	return ""
}

// complete says whether there is a whole earlier export of a VM in a folder: its manifest comes last.
func complete(output, vm string) bool {
	return exists(filepath.Join(output, activities.SafeName(vm), "manifest.json"))
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// nearest is the folder itself, or the one above it that is there.
func nearest(dir string) (string, error) {
	for {
		st, err := os.Stat(dir)
		switch {
		case err == nil && st.IsDir():
			return dir, nil
		case err == nil:
			return "", &providers.Error{Op: "plan", Reason: providers.Invalid, Msg: dir + " is not a folder"}
		case !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir):
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

// transportText is the transport that is chosen, and why that one.
func (p *plan) transportText() string {
	why := "the best that there is"
	if p.Why != "" {
		why = p.Why
	}
	if p.Else != "" {
		why += "; " + p.Else + " where it is refused"
	}
	return p.Transport + " (" + why + ")"
}

// formatText is the format, with what is special about it.
func formatText(s job.Spec) string {
	out := s.Format
	if s.Compress {
		out += ", compressed"
	}
	if s.Thin != nil && !*s.Thin {
		out += ", allocated in full"
	}
	return out
}

// lines are the plan for people, without colours.
func (p *plan) lines() []string {
	var size int64
	for _, d := range p.VM.Disks {
		size += d.Size
	}
	disks := fmt.Sprintf("%d disks", len(p.VM.Disks))
	if len(p.VM.Disks) == 1 {
		disks = "1 disk"
	}
	rows := [][2]string{{"VM", p.VM.Path}, {"", fmt.Sprintf("%s, %s, %s", p.VM.PowerState.Word(), disks, terminal.BytesText(size))}}
	if p.Transport != "" {
		rows = append(rows, [2]string{"read by", p.transportText()}, [2]string{"into", p.Folder}, [2]string{"as", formatText(p.Spec)})
		if p.Chain != nil {
			rows = append(rows, [2]string{"chain", p.Chain.text(p.Spec)})
		}
		if p.Archive != "" {
			rows = append(rows, [2]string{"", p.Archive + ", with"})
		}
		for _, d := range p.Disks {
			file := d.File + "  "
			if d.File == "" {
				file = ""
			}
			rows = append(rows, [2]string{"", fmt.Sprintf("%s%s, %s", file, d.Label, terminal.BytesText(d.Size))})
		}
		need := "about " + terminal.BytesText(p.Need) + " needed"
		if p.Chain != nil && p.Chain.Parent != 0 {
			need = "as much as what changed"
		}
		rows = append(rows, [2]string{"space", fmt.Sprintf("%s, %s free", need, terminal.BytesText(p.Free))})
		steps := make([]string, len(p.Phases))
		for i, ph := range p.Phases {
			steps[i] = string(ph)
		}
		rows = append(rows, [2]string{"steps", strings.Join(steps, ", ")})
	}
	if p.Problem != "" {
		rows = append(rows, [2]string{"refused", p.Problem})
	}
	lines := []string{terminal.OneLine(p.VM.Name)}
	for _, r := range rows {
		lines = append(lines, "  "+terminal.Pad(r[0], 8)+" "+terminal.OneLine(r[1]))
	}
	return lines
}

// preview shows what would be done (--dry-run), or only whether it could be (--validate-only).
func (a *app) preview(ctx context.Context, p providers.Provider, specs []job.Spec) error {
	var failed []providers.Reason
	for i, s := range specs {
		pl, err := planOf(ctx, p, s)
		if err != nil {
			return err
		}
		if pl.Problem != "" {
			failed = append(failed, pl.Reason)
		}
		switch {
		case a.opt.json:
			if err := a.printJSON(pl); err != nil {
				return err
			}
		case a.opt.validate && pl.Problem == "":
			a.printf("%s: can be exported\n", terminal.OneLine(pl.VM.Path))
		case a.opt.validate:
			a.printf("%s: %s\n", terminal.OneLine(pl.VM.Path), terminal.OneLine(pl.Problem))
		default:
			if i > 0 {
				a.printf("\n")
			}
			for n, l := range pl.lines() {
				if n == 0 {
					l = a.Screen().Paint(terminal.Bold, l)
				}
				a.printf("%s\n", l)
			}
		}
	}
	return verdict(failed)
}

// verdict is what several failures come to: their own exit code where they are of one kind.
func verdict(failed []providers.Reason) error {
	if len(failed) == 0 {
		return nil
	}
	code := reasonCode(failed[0])
	for _, r := range failed {
		if reasonCode(r) != code {
			code = exitFailure
		}
	}
	return &codeError{code: code}
}

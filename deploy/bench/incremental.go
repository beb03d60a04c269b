package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

const (
	changingVM    = "changing"
	changingDisk  = 4 << 30
	changingGrain = 64 << 10
	changingLink  = 100 << 20 // bytes a second
)

// incremental compares the export of what changed of a disk with the export of all of it, both over a link
// of 100 MiB a second.
func (b *bench) incremental(ctx context.Context) error {
	stop, err := b.startChanging()
	if err != nil {
		return err
	}
	defer stop()
	if _, err := b.up(); err != nil {
		return err
	}
	defer b.stop()
	if _, err := b.api.EnableCBT(ctx, api.VMRequest{Target: api.Target{VMPath: changingVM}}); err != nil {
		return err
	}
	spec := func(folder string) job.Spec {
		s := job.Spec{VMPath: changingVM, OutputPath: filepath.Join(b.dir, folder), Format: "qcow2"}
		s.Options.LimitMBps = changingLink / 1e6
		return s
	}
	chain := spec("increments")
	chain.Incremental = true
	defer os.RemoveAll(chain.OutputPath)
	if err := os.MkdirAll(chain.OutputPath, 0o755); err != nil {
		return err
	}
	if _, err := b.export(ctx, chain); err != nil {
		return err
	}
	var took, full []time.Duration
	var ratios, reads []float64
	r := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // where changes lie is no secret
	for round := range b.rounds {
		changed, err := b.change(r)
		if err != nil {
			return err
		}
		unix.Sync()
		if err := b.warm(); err != nil {
			return err
		}
		j, err := b.export(ctx, chain)
		if err != nil {
			return err
		}
		if d := j.Result.Disks[0]; d.By != "tracking" {
			return fmt.Errorf("the disk was not copied by its changes: %+v", d)
		}
		read, err := b.served()
		if err != nil {
			return err
		}
		all := spec(fmt.Sprint("full", round))
		if err := os.MkdirAll(all.OutputPath, 0o755); err != nil {
			return err
		}
		if err := b.warm(); err != nil {
			return err
		}
		f, err := b.export(ctx, all)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(all.OutputPath); err != nil {
			return err
		}
		took, full = append(took, j.Result.Duration), append(full, f.Result.Duration)
		ratios = append(ratios, j.Result.Duration.Seconds()/f.Result.Duration.Seconds())
		reads = append(reads, float64(read)/float64(changed))
	}
	b.add("export of a disk of 4 GiB over a link of 100 MiB/s, in full", median(full).Round(10*time.Millisecond).String(), "")
	b.add("incremental export after 1 % of it changed, in pieces of 64 KiB",
		fmt.Sprintf("%s: %.1f %% of that time", median(took).Round(10*time.Millisecond), 100*median(ratios)), "at most 3 %")
	b.add("bytes read of what changed", fmt.Sprintf("%.3f times as many", median(reads)), "at most 1.10")
	return nil
}

// startChanging runs a fake vCenter of its own, with one VM whose disk is full of data.
func (b *bench) startChanging() (stop func(), err error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	usual := b.sim
	b.sim = fmt.Sprintf("http://127.0.0.1:%d", port)
	data := filepath.Join(b.dir, "changing")
	sim := exec.Command(filepath.Join(b.bin, "hypersim"), "--listen", fmt.Sprint("127.0.0.1:", port), "--username", user, "--password", password,
		"--data", data, "--vm", "name="+changingVM+",disk=4GiB:4GiB")
	sim.Stderr = os.Stderr
	if err := sim.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = sim.Process.Kill()
		_ = sim.Wait()
		_ = os.RemoveAll(data)
		b.sim = usual
	}
	if err := wait(5*time.Minute, func() bool { return reachable(b.sim + "/hypersim/state") }); err != nil {
		stop()
		return nil, fmt.Errorf("the fake vCenter: %w", err)
	}
	unix.Sync()
	return stop, nil
}

// change lets the guest write 1 % of its disk, in scattered pieces, and answers how many bytes that is.
func (b *bench) change(r *rand.Rand) (int64, error) {
	const pieces = changingDisk / changingGrain
	for _, at := range r.Perm(pieces)[:pieces/100] {
		err := b.tell(http.MethodPost, "guest-write", map[string]any{
			"vm": changingVM, "disk": 0, "offset": int64(at) * changingGrain, "length": changingGrain, "seed": r.Uint64() >> 1,
		}, nil)
		if err != nil {
			return 0, err
		}
	}
	return pieces / 100 * changingGrain, b.tell(http.MethodDelete, "requests", nil, nil)
}

// served is how many bytes of disks have left the fake vCenter since the last change.
func (b *bench) served() (n int64, err error) {
	var state struct {
		Served map[string]struct {
			Spans []struct {
				Len   int64 `json:"len"`
				Times int64 `json:"times"`
			} `json:"spans"`
		} `json:"served"`
	}
	if err := b.tell(http.MethodGet, "state", nil, &state); err != nil {
		return 0, err
	}
	for _, file := range state.Served {
		for _, s := range file.Spans {
			n += s.Len * s.Times
		}
	}
	return n, nil
}

// tell commands the fake vCenter.
func (b *bench) tell(method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(method, b.sim+"/hypersim/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, res.Status)
	}
	if out == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(out)
}

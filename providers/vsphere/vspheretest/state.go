package vspheretest

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// vmState is what is kept of a VM, in a file in its folder.
type vmState struct {
	ID        string                         `json:"id"`
	Spec      VM                             `json:"spec"`
	Base      string                         `json:"base"`
	Power     types.VirtualMachinePowerState `json:"power"`
	Disks     []diskState                    `json:"disks,omitempty"`
	Snapshots []snapshotState                `json:"snapshots,omitempty"`
	Current   string                         `json:"current,omitempty"`
	LastSnap  int32                          `json:"last_snapshot,omitempty"`
	// Tracking begins anew in a later run, as it does when a host lost power.
	Tracking bool `json:"tracking,omitempty"`
}

type diskState struct {
	Layers []layerState `json:"layers"` // parents before deltas
	Live   string       `json:"live"`
}

type layerState struct {
	Name   string `json:"name"`
	Parent string `json:"parent,omitempty"`
}

type snapshotState struct {
	ID          string    `json:"id"`
	Number      int32     `json:"number"`
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	Created     time.Time `json:"created"`
	Parent      string    `json:"parent,omitempty"`
	Quiesced    bool      `json:"quiesced,omitempty"`
	Memory      bool      `json:"memory,omitempty"`
	Layers      []string  `json:"layers"` // by number of the disk; "" where it has no part
}

// stateName is the file in a VM's folder that keeps its state.
const stateName = "hypersim.json"

func (m *machine) stateFile() string { return filepath.Join(m.dir(), stateName) }

// save keeps the state of m for a later run in the same folder, where the user gave one.
func (s *Server) save(m *machine) error {
	if m.adopted || s.opt.Dir == "" {
		return nil
	}
	m.mu.Lock() // one at a time
	defer m.mu.Unlock()
	state := vmState{ID: m.ref.Value, Spec: m.spec, Base: m.base, Power: m.power, LastSnap: m.lastSnap, Tracking: m.tracking}
	if m.current != nil {
		state.Current = m.current.ref.Value
	}
	for _, d := range m.disks {
		disk := diskState{Live: d.live.name}
		for _, l := range d.sorted() {
			one := layerState{Name: l.name}
			if l.parent != nil {
				one.Parent = l.parent.name
			}
			disk.Layers = append(disk.Layers, one)
		}
		state.Disks = append(state.Disks, disk)
	}
	for _, snap := range m.snapshots {
		one := snapshotState{
			ID: snap.ref.Value, Number: snap.id, Name: snap.name, Description: snap.description,
			Created: snap.created, Quiesced: snap.quiesced, Memory: snap.memory, Layers: make([]string, len(m.disks)),
		}
		if snap.parent != nil {
			one.Parent = snap.parent.ref.Value
		}
		for i, d := range m.disks {
			if l := snap.layers[d.key]; l != nil {
				one.Layers[i] = l.name
			}
		}
		state.Snapshots = append(state.Snapshots, one)
	}
	return writeJSON(m.stateFile(), state)
}

// sorted is the layers, parents before deltas.
func (d *disk) sorted() []*layer {
	depth := func(l *layer) (n int) {
		for ; l.parent != nil; l = l.parent {
			n++
		}
		return n
	}
	layers := slices.Clone(d.layers)
	slices.SortStableFunc(layers, func(a, b *layer) int { return cmp.Compare(depth(a), depth(b)) })
	return layers
}

// writeJSON replaces a file as a whole.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// restore takes up the VMs of an earlier run, with their ids.
func (s *Server) restore() error {
	var found []*machine
	states := map[*machine]vmState{}
	for _, dc := range s.datacenters {
		for _, ds := range dc.datastores {
			files, err := filepath.Glob(filepath.Join(escapeGlob(ds.dir), "*", stateName))
			if err != nil {
				return err
			}
			for _, file := range files {
				m, state, err := load(ds, file)
				if err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
				found = append(found, m)
				states[m] = state
			}
		}
	}
	// Ids only rise: the first that a run gives is one after all that there ever were.
	last, err := os.ReadFile(s.lastFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(last)))
	s.lastID = n
	for m, state := range states {
		s.lastID = max(s.lastID, number(m.ref))
		for _, snap := range state.Snapshots {
			s.lastID = max(s.lastID, number(types.ManagedObjectReference{Value: snap.ID}))
		}
	}
	s.align(s.lastID)
	slices.SortFunc(found, func(a, b *machine) int { return cmp.Compare(number(a.ref), number(b.ref)) })
	for _, m := range found {
		if err := s.revive(m, states[m]); err != nil {
			return fmt.Errorf("VM %q: %w", m.spec.Name, err)
		}
	}
	return nil
}

// align makes the simulator's next id higher than n.
func (s *Server) align(n int) {
	obj := &mo.Task{}
	obj.Self = types.ManagedObjectReference{Type: "Task", Value: "task-" + strconv.Itoa(n)}
	s.reg.Put(obj)
	_ = s.reg.AlignCounter() // never fails
	s.reg.Remove(s.sim(), obj.Self)
}

func (s *Server) lastFile() string { return filepath.Join(s.dir, "last-id") }

// given takes down that an id was given.
func (s *Server) given(ref types.ManagedObjectReference) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastID = max(s.lastID, number(ref))
}

// keepLastID is called before an object goes, so that its id is not given again by a later run.
func (s *Server) keepLastID() {
	if s.opt.Dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.WriteFile(s.lastFile(), []byte(strconv.Itoa(s.lastID)+"\n"), 0o644); err != nil {
		s.opt.Log.Error("keep the last id", "err", err)
	}
}

// escapeGlob makes a folder's name match itself in filepath.Glob.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(path)
}

func load(ds *datastore, file string) (*machine, vmState, error) {
	var state vmState
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, state, err
	}
	if err := json.Unmarshal(data, &state); err != nil {
		return nil, state, err
	}
	m := &machine{
		ref: types.ManagedObjectReference{Type: "VirtualMachine", Value: state.ID}, spec: state.Spec,
		ds: ds, home: filepath.Base(filepath.Dir(file)), base: state.Base, power: state.Power, lastSnap: state.LastSnap,
		tracking: state.Tracking,
	}
	if len(state.Disks) != len(state.Spec.Disks) {
		return nil, state, errors.New("the disks do not fit the VM")
	}
	for i, one := range state.Disks {
		d := &disk{independent: independent(state.Spec.Disks[i].Mode)}
		for _, kept := range one.Layers {
			l := &layer{dir: m.dir(), name: kept.Name, size: state.Spec.Disks[i].Size, parent: d.layer(kept.Parent)}
			if kept.Parent != "" && l.parent == nil {
				return nil, state, fmt.Errorf("%s: its parent %s is missing", kept.Name, kept.Parent)
			}
			if err := l.load(); err != nil {
				return nil, state, err
			}
			d.layers = append(d.layers, l)
		}
		if d.live = d.layer(one.Live); d.live == nil {
			return nil, state, fmt.Errorf("disk %d: its layer %q is missing", i, one.Live)
		}
		m.disks = append(m.disks, d)
	}
	m.stun()
	return m, state, nil
}

// layer finds a layer by name.
func (d *disk) layer(name string) *layer {
	for _, l := range d.layers {
		if l.name == name {
			return l
		}
	}
	return nil
}

// revive puts a VM of an earlier run, and its snapshots, into the inventory.
func (s *Server) revive(m *machine, state vmState) error {
	if err := s.register(m); err != nil {
		return err
	}
	vm := s.reg.Get(m.ref).(*simulator.VirtualMachine)
	byID := map[string]*snapshot{}
	for _, one := range state.Snapshots {
		snap := &snapshot{
			ref: types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: one.ID}, id: one.Number,
			name: one.Name, description: one.Description, created: one.Created, quiesced: one.Quiesced, memory: one.Memory,
			power: types.VirtualMachinePowerStatePoweredOff, parent: byID[one.Parent], layers: map[int32]*layer{},
		}
		if one.Memory {
			snap.power = types.VirtualMachinePowerStatePoweredOn
		}
		for i, name := range one.Layers {
			if l := m.disks[i].layer(name); l != nil {
				snap.layers[m.disks[i].key] = l
			}
		}
		obj := &simulator.VirtualMachineSnapshot{}
		obj.Self, obj.Vm, obj.Config = snap.ref, m.ref, deepCopy(*vm.Config)
		s.reg.Put(obj)
		m.snapshots = append(m.snapshots, snap)
		byID[one.ID] = snap
	}
	m.current = byID[state.Current]
	ctx := s.sim()
	ctx.WithLock(vm, func() { s.publish(ctx, m, vm) })
	return nil
}

// all is the machines in the order of their ids.
func (s *Server) all() []*machine {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*machine, 0, len(s.machines))
	for _, m := range s.machines {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *machine) int { return cmp.Compare(number(a.ref), number(b.ref)) })
	return out
}

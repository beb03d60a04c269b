package vspheretest

import (
	"encoding/json"
	"fmt"
	"net/http"
)

// ControlPath is where [Control] belongs.
const ControlPath = "/hypersim/"

// maxControl bounds the body of a control request.
const maxControl = 64 << 20

// State is what a server has and has done, as [Control] tells it.
type State struct {
	URL       string              `json:"url"`
	Sessions  []Session           `json:"sessions"`
	VMs       []VMState           `json:"vms"`
	Snapshots []Snapshot          `json:"snapshots"` // of all VMs
	Leases    int                 `json:"leases"`    // for exports, alive
	Served    map[string]Coverage `json:"served"`    // by datastore path
	Calls     map[string]int      `json:"calls"`     // by method of the API
	Faults    []FaultState        `json:"faults"`
}

// VMState is a VM.
type VMState struct {
	ID    string      `json:"id"`
	Name  string      `json:"name"`
	Path  string      `json:"path"` // inventory path
	Power string      `json:"power"`
	Disks []DiskState `json:"disks"`
}

// DiskState is a disk of a VM.
type DiskState struct {
	Key  int32  `json:"key"`
	Size int64  `json:"size"`
	Base string `json:"base"` // datastore path of the base's bytes, a key of [State.Served]
	File string `json:"file"` // where they are on this host
	Live string `json:"live"` // datastore path of what the guest writes to
}

// FaultState is a fault in force.
type FaultState struct {
	ID     int   `json:"id"`
	Fault  Fault `json:"fault"`
	Struck int   `json:"struck"`
}

// State describes the server.
func (s *Server) State() State {
	state := State{
		URL: s.URL().String(), Sessions: s.Sessions(), VMs: []VMState{}, Served: s.Served(), Calls: s.Calls(), Leases: s.Leases(),
		Faults: []FaultState{},
	}
	state.Snapshots, _ = s.Snapshots("") // of all VMs cannot fail
	for _, m := range s.all() {
		state.VMs = append(state.VMs, m.state())
	}
	for _, in := range s.Faults() {
		state.Faults = append(state.Faults, FaultState{ID: in.ID(), Fault: in.Fault(), Struck: in.Struck()})
	}
	return state
}

func (m *machine) state() VMState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	path := "/" + m.spec.Datacenter + "/vm/"
	if m.spec.Folder != "" {
		path += m.spec.Folder + "/"
	}
	v := VMState{ID: m.ref.Value, Name: m.spec.Name, Path: path + escape(m.spec.Name), Power: string(m.power), Disks: []DiskState{}}
	for _, d := range m.disks {
		base := d.layers[0]
		v.Disks = append(v.Disks, DiskState{
			Key: d.key, Size: base.size, Base: m.path(base.extent()), File: base.path(), Live: m.path(d.live.extent()),
		})
	}
	return v
}

// GuestWriteRequest is the body of a guest write: either data, or length bytes generated from a seed.
type GuestWriteRequest struct {
	VM     string `json:"vm"`
	Disk   int    `json:"disk"`
	Offset int64  `json:"offset"`
	Data   []byte `json:"data,omitempty"` // base64 in JSON
	Length int64  `json:"length,omitempty"`
	Seed   uint64 `json:"seed,omitempty"`
}

// Control is the server's methods over HTTP, for tests that drive other programs. All bodies are
// JSON; an error is {"error": "…"}.
//
//	GET    /hypersim/state            State
//	GET    /hypersim/requests         []Request
//	DELETE /hypersim/requests         ResetRecord
//	POST   /hypersim/faults           Inject: a Fault, answered by a FaultState
//	DELETE /hypersim/faults           ClearFaults; with ?id=n only that one
//	POST   /hypersim/guest-write      GuestWrite: a GuestWriteRequest
//	POST   /hypersim/vm/delete        DeleteVM: {"vm": "…"}
//	POST   /hypersim/disk/resize      ResizeDisk: {"vm": "…", "disk": 0, "size": 1048576}
//	POST   /hypersim/tracking/reset   ResetTracking: {"vm": "…"}
//	POST   /hypersim/tracking/forget  ForgetWrites: {"vm": "…", "disk": 0, "every": 3}
//	POST   /hypersim/sessions/expire  ExpireSessions
//	POST   /hypersim/connections/cut  CloseConnections, this one excepted
func Control(s *Server) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxControl)
			status := http.StatusOK
			out, err := f(r)
			if err != nil {
				status, out = http.StatusBadRequest, map[string]string{"error": err.Error()}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			e := json.NewEncoder(w)
			e.SetEscapeHTML(false)
			e.SetIndent("", "  ")
			_ = e.Encode(out) // the client may have gone
		})
	}
	done := map[string]bool{"ok": true}
	handle("GET /hypersim/state", func(*http.Request) (any, error) { return s.State(), nil })
	handle("GET /hypersim/requests", func(*http.Request) (any, error) {
		return append([]Request{}, s.Requests()...), nil
	})
	handle("DELETE /hypersim/requests", func(*http.Request) (any, error) { s.ResetRecord(); return done, nil })
	handle("POST /hypersim/faults", func(r *http.Request) (any, error) {
		f, err := decode[Fault](r)
		if err != nil {
			return nil, err
		}
		in, err := s.Inject(f)
		if err != nil {
			return nil, err
		}
		return FaultState{ID: in.ID(), Fault: f}, nil
	})
	handle("DELETE /hypersim/faults", func(r *http.Request) (any, error) {
		return done, s.clearFaults(r.URL.Query().Get("id"))
	})
	handle("POST /hypersim/guest-write", func(r *http.Request) (any, error) {
		q, err := decode[GuestWriteRequest](r)
		if err != nil {
			return nil, err
		}
		if q.Length < 0 || q.Length > maxControl || q.Length > 0 && q.Data != nil {
			return nil, fmt.Errorf("guest write: it takes data, or a length of up to %d bytes", maxControl)
		}
		if q.Length > 0 {
			q.Data = make([]byte, q.Length)
			generate(q.Data, q.Seed, q.Offset)
		}
		return done, s.GuestWrite(q.VM, q.Disk, q.Offset, q.Data)
	})
	handle("POST /hypersim/vm/delete", func(r *http.Request) (any, error) {
		q, err := decode[struct {
			VM string `json:"vm"`
		}](r)
		if err != nil {
			return nil, err
		}
		return done, s.DeleteVM(q.VM)
	})
	controlTracking(s, handle)
	handle("POST /hypersim/sessions/expire", func(*http.Request) (any, error) { s.ExpireSessions(); return done, nil })
	handle("POST /hypersim/connections/cut", func(r *http.Request) (any, error) {
		s.conns.closeBut(r.RemoteAddr)
		return done, nil
	})
	return mux
}

func decode[T any](r *http.Request) (v T, err error) {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		return v, fmt.Errorf("body: %w", err)
	}
	return v, nil
}

// clearFaults removes the fault of an id, all for "".
func (s *Server) clearFaults(id string) error {
	if id == "" {
		s.ClearFaults()
		return nil
	}
	for _, in := range s.Faults() {
		if fmt.Sprint(in.ID()) == id {
			in.Remove()
			return nil
		}
	}
	return fmt.Errorf("there is no fault %q", id)
}

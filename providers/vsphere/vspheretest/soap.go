package vspheretest

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
	vimxml "github.com/vmware/govmomi/vim25/xml"
)

// maxCall bounds the body of a call.
const maxCall = 32 << 20

// call is a call of the API.
type call struct {
	method  string
	this    types.ManagedObjectReference
	raw     []byte
	session *session      // nil: the caller is not logged in
	task    *Fault        // what was asked for its task; nil: nothing
	body    types.AnyType // decoded, for the methods of this package
}

// anonymous are the methods that need no session.
var anonymous = map[string]bool{
	"Login": true, "LoginByToken": true, "LoginExtensionByCertificate": true, "CloneSession": true,
	"RetrieveServiceContent": true, "RetrieveInternalContent": true,
}

// serveSDK answers a call of the API: it makes sure that there is a session, lets faults strike, and
// hands on to a method of this package or to the simulator.
func (s *Server) serveSDK(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCall))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	c := &call{raw: raw, session: s.sessions.of(r)}
	if err := c.peek(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.record.call(c.method)
	if c.session == nil && !anonymous[c.method] {
		writeFault(w, notAuthenticated(c.this))
		return
	}
	if c.session != nil {
		defer s.sessions.use(c.session)()
	}
	f := s.faults.onCall(c.method, func() []string { return s.names(c.this) })
	if f == nil {
		s.dispatch(w, r, c)
		return
	}
	if f.Task {
		c.task = f
		s.dispatch(w, r, c)
		return
	}
	if !wait(r.Context(), time.Duration(f.Delay)) {
		return
	}
	switch {
	case f.After: // the work is done, but nobody is told
		s.dispatch(newBuffer(), r, c)
		f.answer(w)
	case f.fails():
		f.answer(w)
	default:
		s.dispatch(w, r, c)
	}
}

// peek finds out what is called on what, without decoding the rest.
func (c *call) peek() error {
	dec := xml.NewDecoder(bytes.NewReader(c.raw))
	inBody := false
	for {
		tok, err := dec.Token()
		if err != nil {
			return fmt.Errorf("not a SOAP call: %w", err)
		}
		start, ok := tok.(xml.StartElement)
		switch {
		case !ok:
		case !inBody:
			inBody = start.Name.Local == "Body"
		case c.method == "":
			c.method = start.Name.Local
		case start.Name.Local == "_this":
			for _, a := range start.Attr {
				if a.Name.Local == "type" {
					c.this.Type = a.Value
				}
			}
			return dec.DecodeElement(&c.this.Value, &start)
		default:
			return errors.New("not a call of the vSphere API: it does not begin with _this")
		}
	}
}

// movesVM are the methods of the simulator that put a VM into a folder, or take it out.
var movesVM = map[string]bool{"CreateVM_Task": true, "RegisterVM_Task": true, "Destroy_Task": true}

// dispatch answers a call.
func (s *Server) dispatch(w http.ResponseWriter, r *http.Request, c *call) {
	if blockedByExport[c.method] && s.exported(c.this) {
		writeFault(w, fault(&types.TaskInProgress{Task: c.this}, "The VM is being exported."))
		return
	}
	do := ownMethods[c.method]
	if l := s.lease(c.this); l != nil && leaseMethods[c.method] != nil {
		do = func(*Server, *call) (any, *types.LocalizedMethodFault) { return leaseMethods[c.method](l, c) }
	}
	switch {
	case do != nil:
		s.answer(w, c, do)
	case strings.HasPrefix(c.method, "WaitForUpdates") && c.session != nil:
		s.waitForUpdates(w, r, c)
	case strings.HasSuffix(c.method, "_Task") && (c.task != nil || s.opt.TaskDelay > 0 || movesVM[c.method]):
		s.wrapTask(w, r, c)
	default:
		s.simulate(w, r, c)
	}
}

// answer answers with a method of this package.
func (s *Server) answer(w http.ResponseWriter, c *call, do method) {
	decoded, err := simulator.UnmarshalBody(types.TypeFunc(), c.raw)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.body = decoded.Body
	res, fail := do(s, c)
	if fail != nil {
		writeFault(w, fail)
		return
	}
	writeResponse(w, res)
}

// exported says whether a VM is under an export lease of its own.
func (s *Server) exported(vm types.ManagedObjectReference) bool {
	s.mu.Lock()
	m := s.machines[vm]
	s.mu.Unlock()
	if m == nil {
		return false
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.exported != nil
}

// simulate lets the simulator answer, and takes down what became of sessions.
func (s *Server) simulate(w http.ResponseWriter, r *http.Request, c *call) {
	if c.this.Type == "SearchIndex" {
		s.tree.RLock()
		defer s.tree.RUnlock()
	}
	r.Body = io.NopCloser(bytes.NewReader(c.raw))
	s.svc.ServeSDK(w, r)
	for _, cookie := range (&http.Response{Header: w.Header()}).Cookies() {
		if cookie.Name == sessionCookie {
			s.sessions.add(cookie.Value)
		}
	}
	switch c.method {
	case "Logout":
		s.sessions.terminated(c.session.key)
	case "TerminateSession":
		if m, err := simulator.UnmarshalBody(types.TypeFunc(), c.raw); err == nil {
			s.sessions.terminated(m.Body.(*types.TerminateSession).SessionId...)
		}
	}
}

// waitForUpdates is a call that comes back when something has changed. The simulator would hold on to
// it after the client or the session is gone.
func (s *Server) waitForUpdates(w http.ResponseWriter, r *http.Request, c *call) {
	answer := newBuffer()
	done := make(chan struct{})
	s.work.Go(func() {
		defer close(done)
		s.simulate(answer, r.Clone(s.ctx), c)
	})
	check := time.NewTicker(20 * time.Millisecond)
	defer check.Stop()
	for {
		select {
		case <-done:
			if !s.sessions.alive(c.session) {
				writeFault(w, notAuthenticated(c.this))
				return
			}
			answer.copyTo(w)
			return
		case <-check.C:
			if r.Context().Err() != nil || s.ctx.Err() != nil || !s.sessions.alive(c.session) {
				s.sessions.release(c.session, c.this)
			}
		}
	}
}

// wrapTask answers a call that makes a task with a task of this package, which waits or fails as was
// asked and otherwise lets the simulator do the work.
func (s *Server) wrapTask(w http.ResponseWriter, r *http.Request, c *call) {
	again := r.Clone(s.ctx)
	t := s.task(c, c.this, nil, func() (types.AnyType, *types.LocalizedMethodFault) {
		if movesVM[c.method] {
			s.tree.Lock()
			defer s.tree.Unlock()
		}
		answer := newBuffer()
		s.simulate(answer, again, c)
		ref, err := answer.task()
		if err != nil && s.reg.Get(c.this) == nil {
			return nil, gone(c.this)
		}
		if err != nil {
			return nil, fault(&types.SystemErrorFault{Reason: err.Error()}, "%v", err)
		}
		info, err := s.observer.await(s.ctx, ref)
		if info.Error != nil {
			return nil, info.Error
		}
		if err != nil {
			return nil, fault(&types.SystemErrorFault{Reason: err.Error()}, "%v", err)
		}
		return info.Result, nil
	})
	name := c.method + "Response"
	writeEnvelope(w, http.StatusOK, fmt.Sprintf(`<%s xmlns="urn:vim25"><returnval type="Task">%s</returnval></%s>`, name, s.start(t).Value, name))
}

// task is the task that a call is to start.
func (s *Server) task(c *call, entity types.ManagedObjectReference, vm *machine, do func() (types.AnyType, *types.LocalizedMethodFault)) task {
	t := task{name: c.method, entity: entity, delay: s.opt.TaskDelay, vm: vm, do: do}
	if c.task != nil {
		t.delay += time.Duration(c.task.Delay)
		t.fail = c.task.soap()
	}
	return t
}

// names is what a fault can call an object by: its id, and its name if it has one.
func (s *Server) names(ref types.ManagedObjectReference) []string {
	names := []string{ref.Value}
	if m, _ := s.owner(ref); m != nil { // a snapshot goes by its VM, too
		names = append(names, m.ref.Value, m.spec.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.machines[ref]; m != nil {
		names = append(names, m.spec.Name)
	}
	return names
}

func notAuthenticated(obj types.ManagedObjectReference) *types.LocalizedMethodFault {
	return fault(&types.NotAuthenticated{NoPermission: types.NoPermission{Object: &obj, PrivilegeId: "System.View"}},
		"The session is not authenticated.")
}

// buffer keeps an answer that is not for the client, or not yet.
type buffer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newBuffer() *buffer { return &buffer{header: http.Header{}, status: http.StatusOK} }

func (b *buffer) Header() http.Header         { return b.header }
func (b *buffer) WriteHeader(status int)      { b.status = status }
func (b *buffer) Write(p []byte) (int, error) { return b.body.Write(p) }

func (b *buffer) copyTo(w http.ResponseWriter) {
	for k, v := range b.header {
		w.Header()[k] = v
	}
	w.WriteHeader(b.status)
	_, _ = w.Write(b.body.Bytes()) // the client may have gone
}

// task is the id in an answer that names a task.
func (b *buffer) task() (ref types.ManagedObjectReference, err error) {
	var env struct {
		Body struct {
			Fault *struct {
				String string `xml:"faultstring"`
			}
			Inner struct {
				Returnval string `xml:"returnval"`
			} `xml:",any"`
		}
	}
	if err := xml.Unmarshal(b.body.Bytes(), &env); err != nil {
		return ref, err
	}
	if env.Body.Fault != nil {
		return ref, fmt.Errorf("the call failed: %s", env.Body.Fault.String)
	}
	return types.ManagedObjectReference{Type: "Task", Value: env.Body.Inner.Returnval}, nil
}

// writeResponse sends the response of a method: a pointer to a type such as
// types.CreateSnapshot_TaskResponse.
func writeResponse(w http.ResponseWriter, res any) {
	name := vimxml.Name{Space: "urn:" + vim25.Namespace, Local: reflect.TypeOf(res).Elem().Name()}
	writeEnvelope(w, http.StatusOK, encode(res, vimxml.StartElement{Name: name}))
}

// writeFault sends a fault as the answer of a call.
func writeFault(w http.ResponseWriter, f *types.LocalizedMethodFault) {
	kind := reflect.TypeOf(f.Fault).Elem().Name()
	detail := encode(f.Fault, vimxml.StartElement{
		Name: vimxml.Name{Local: kind + "Fault"},
		Attr: []vimxml.Attr{
			{Name: vimxml.Name{Local: "xmlns"}, Value: "urn:" + vim25.Namespace},
			{Name: vimxml.Name{Local: "xsi:type"}, Value: kind},
		},
	})
	var text bytes.Buffer
	_ = xml.EscapeText(&text, []byte(f.LocalizedMessage)) // to memory
	writeEnvelope(w, http.StatusInternalServerError,
		`<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>`+text.String()+`</faultstring><detail>`+detail+`</detail></soapenv:Fault>`)
}

func encode(v any, start vimxml.StartElement) string {
	var b bytes.Buffer
	e := vimxml.NewEncoder(&b)
	if err := errors.Join(e.EncodeElement(v, start), e.Flush()); err != nil {
		panic(err) // a value that the API could not send
	}
	return b.String()
}

func writeEnvelope(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", `text/xml; charset="utf-8"`)
	w.WriteHeader(status)
	_, _ = io.WriteString(w, xml.Header+ // the client may have gone
		`<soapenv:Envelope xmlns:soapenc="http://schemas.xmlsoap.org/soap/encoding/"`+
		` xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"`+
		` xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">`+
		`<soapenv:Body>`+body+`</soapenv:Body></soapenv:Envelope>`)
}

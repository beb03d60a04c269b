package vspheretest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// Fault is something that is to go wrong: what it strikes, when, and what happens then. Several that
// strike the same call or read add up; where they contradict each other the oldest wins.
type Fault struct {
	// What it strikes: a call or a file.
	Call   string `json:"call,omitempty"`   // method of the API, "CreateSnapshot_Task"; "*" is any
	Object string `json:"object,omitempty"` // only calls on the object of this id or VM name
	File   string `json:"file,omitempty"`   // GETs of files in datastores, and uploads of leases, with a name like "*-flat.vmdk" (path.Match); "*" is any
	From   int64  `json:"from,omitempty"`   // only reads that touch the bytes from here
	To     int64  `json:"to,omitempty"`     // up to here; 0: the end

	// When.
	Skip  int `json:"skip,omitempty"`  // so many matches pass before it strikes
	Every int `json:"every,omitempty"` // it strikes every so many matches; 0: all
	Times int `json:"times,omitempty"` // it strikes so often; 0: for ever

	// What happens.
	Delay      Duration `json:"delay,omitempty"`       // before anything else
	Status     int      `json:"status,omitempty"`      // answer with this HTTP status
	RetryAfter Duration `json:"retry_after,omitempty"` // and with this header
	Drop       bool     `json:"drop,omitempty"`        // close the connection without an answer

	// What happens to a call.
	Fault   string                `json:"fault,omitempty"`   // answer with this fault of the API, "TaskInProgress"
	Message string                `json:"message,omitempty"` // and these words
	Cause   types.BaseMethodFault `json:"-"`                 // instead of Fault, with all its fields
	Task    bool                  `json:"task,omitempty"`    // the call succeeds; delay and fault are those of its task, or lease
	After   bool                  `json:"after,omitempty"`   // the call is carried out all the same, only the answer is the fault

	// What happens to a read.
	CutAt      *int64 `json:"cut_at,omitempty"`      // close the connection before this byte of the file
	CutAfter   *int64 `json:"cut_after,omitempty"`   // close it after so many bytes of the body
	Stall      bool   `json:"stall,omitempty"`       // stop there for ever instead of closing; at the first byte by itself; of a task of ExportVm or ExportSnapshot: the lease never becomes ready
	Short      int64  `json:"short,omitempty"`       // the body, and the length announced, lack so many bytes at the end
	WrongRange bool   `json:"wrong_range,omitempty"` // the answer says that it is another part of the file than it is
	NoRange    bool   `json:"no_range,omitempty"`    // the whole file is sent, whatever was asked for
	FlipAt     *int64 `json:"flip_at,omitempty"`     // the byte of the file at this offset is sent inverted
	Rate       int64  `json:"rate,omitempty"`        // bytes per second of each response
	Shared     bool   `json:"shared,omitempty"`      // Rate is that of all responses together
}

// Duration is a time.Duration that is written "1.5s".
type Duration time.Duration

// MarshalText writes "1.5s".
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads "1.5s".
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// Validate says what makes no sense in f.
func (f Fault) Validate() error {
	onCall := f.Fault != "" || f.Message != "" || f.Cause != nil || f.Task || f.After
	onRead := f.CutAt != nil || f.CutAfter != nil || f.Stall && !f.Task || f.Short != 0 || f.WrongRange || f.NoRange || f.FlipAt != nil || f.Rate != 0
	_, badPattern := path.Match(f.File, "")
	_, known := f.cause()
	switch {
	case (f.Call == "") == (f.File == ""):
		return errors.New("fault: it needs a call or a file to strike")
	case f.Call == "" && (onCall || f.Object != ""):
		return errors.New("fault: fault, message, task, after and object go with a call")
	case f.File == "" && (onRead || f.From != 0 || f.To != 0):
		return errors.New("fault: cut_at, cut_after, stall, short, wrong_range, no_range, flip_at, rate, from and to go with a file")
	case badPattern != nil:
		return fmt.Errorf("fault: pattern %q: %w", f.File, badPattern)
	case !known:
		return fmt.Errorf("fault: the API has no fault %q", f.Fault)
	case f.Status != 0 && (f.Status < 100 || f.Status > 599):
		return fmt.Errorf("fault: %d is no HTTP status", f.Status)
	case f.Skip < 0 || f.Every < 0 || f.Times < 0 || f.Rate < 0 || f.Short < 0 || f.Delay < 0:
		return errors.New("fault: skip, every, times, rate, short and delay are not negative")
	case f.Task && (f.Status != 0 || f.Drop || f.After):
		return errors.New("fault: status, drop and after are those of a call, not of its task")
	}
	return nil
}

// cause is the fault of the API that f stands for, nil for none; false if there is no such.
func (f *Fault) cause() (types.BaseMethodFault, bool) {
	if f.Cause != nil || f.Fault == "" {
		return f.Cause, true
	}
	kind, ok := types.TypeFunc()(f.Fault)
	if !ok {
		return nil, false
	}
	cause, ok := reflect.New(kind).Interface().(types.BaseMethodFault)
	return cause, ok
}

// soap is what a call or a task fails with, nil if it does not.
func (f *Fault) soap() *types.LocalizedMethodFault {
	cause, _ := f.cause()
	if cause == nil {
		return nil
	}
	name := reflect.TypeOf(cause).Elem().Name()
	return fault(cause, "%s", cmp.Or(f.Message, "A fault of the kind "+name+" occurred."))
}

// fails says whether a call gets another answer than it would have.
func (f *Fault) fails() bool { return f.Drop || f.Status != 0 || f.soap() != nil }

// answer fails a call or a read.
func (f *Fault) answer(w http.ResponseWriter) {
	switch {
	case f.Drop:
		panic(http.ErrAbortHandler) // closes the connection
	case f.Status != 0:
		if f.RetryAfter > 0 {
			seconds := (time.Duration(f.RetryAfter) + time.Second - 1) / time.Second
			w.Header().Set("Retry-After", strconv.Itoa(int(seconds)))
		}
		http.Error(w, http.StatusText(f.Status), f.Status)
	default:
		if fail := f.soap(); fail != nil {
			writeFault(w, fail)
		}
	}
}

// faults are the injected ones.
type faults struct {
	mu   sync.Mutex
	all  []*Injection
	last int
}

// Injection is a [Fault] in force.
type Injection struct {
	server  *Server
	id      int
	fault   Fault
	limit   *limiter
	matched int
	struck  int
}

// Inject lets a fault strike from now on.
func (s *Server) Inject(f Fault) (*Injection, error) {
	if err := f.Validate(); err != nil {
		return nil, fmt.Errorf("vspheretest: %w", err)
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.last++
	in := &Injection{server: s, id: s.faults.last, fault: f, limit: &limiter{rate: f.Rate}}
	s.faults.all = append(s.faults.all, in)
	return in, nil
}

// ClearFaults takes all faults away. What stalls or is slow already stays so.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.all = nil
}

// Faults is all in force, the oldest first.
func (s *Server) Faults() []*Injection {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	return slices.Clone(s.faults.all)
}

// ID is the number of the injection.
func (i *Injection) ID() int { return i.id }

// Fault is what was injected.
func (i *Injection) Fault() Fault { return i.fault }

// Struck is how often it struck.
func (i *Injection) Struck() int {
	i.server.faults.mu.Lock()
	defer i.server.faults.mu.Unlock()
	return i.struck
}

// Remove takes it away.
func (i *Injection) Remove() {
	f := &i.server.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = slices.DeleteFunc(f.all, func(x *Injection) bool { return x == i })
}

// strike counts a match, and says whether it strikes.
func (i *Injection) strike() bool {
	i.matched++
	n := i.matched - i.fault.Skip
	if n <= 0 || n%max(1, i.fault.Every) != 0 || i.fault.Times > 0 && i.struck >= i.fault.Times {
		return false
	}
	i.struck++
	return true
}

// onCall is what strikes a call of a method on an object with these names; nil for nothing.
func (f *faults) onCall(method string, names func() []string) *Fault {
	f.mu.Lock()
	all := slices.Clone(f.all)
	f.mu.Unlock()
	var sum *Fault
	for _, in := range all {
		one := in.fault
		if one.Call == "" || one.Call != "*" && one.Call != method {
			continue
		}
		if one.Object != "" && !slices.Contains(names(), one.Object) || !f.strikes(in) {
			continue
		}
		switch {
		case sum == nil:
			sum = &one
		case !sum.fails():
			delay := sum.Delay
			sum = &one
			sum.Delay += delay
		}
	}
	return sum
}

func (f *faults) strikes(in *Injection) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return in.strike()
}

// onRead is what strikes a read of n bytes at off of a file; nil for nothing.
func (f *faults) onRead(file string, off, n int64) *damage {
	f.mu.Lock()
	defer f.mu.Unlock()
	var d *damage
	for _, in := range f.all {
		one := in.fault
		end := one.To
		if end == 0 {
			end = off + n + 1
		}
		if !matches(one.File, file) || off >= end || off+n <= one.From {
			continue
		}
		if one.CutAt != nil && (*one.CutAt < off || *one.CutAt >= off+n) || one.FlipAt != nil && (*one.FlipAt < off || *one.FlipAt >= off+n) {
			continue
		}
		if in.strike() {
			if d == nil {
				d = &damage{}
			}
			d.add(in)
		}
	}
	return d
}

// matches says whether the path of a file in a datastore, or its last element, is like pattern.
func matches(pattern, file string) bool {
	if pattern == "" {
		return false
	}
	ok, err := path.Match(pattern, path.Base(file))
	return pattern == "*" || pattern == file || err == nil && ok
}

// ParseFault reads a fault as it is written on a command line: the fields by their names in JSON,
// "file=*-flat.vmdk,cut_after=1000000,times=3" or "call=CreateSnapshot_Task,fault=FileLocked,task".
func ParseFault(text string) (Fault, error) {
	var f Fault
	fields := map[string]reflect.Value{}
	for v, i := reflect.ValueOf(&f).Elem(), 0; i < v.NumField(); i++ {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		fields[name] = v.Field(i)
	}
	for _, part := range strings.Split(text, ",") {
		key, value, given := strings.Cut(part, "=")
		field, ok := fields[key]
		if !ok || key == "-" {
			return f, fmt.Errorf("fault %q: there is no field %q", text, key)
		}
		if err := setField(field, value, given); err != nil {
			return f, fmt.Errorf("fault %q: %s: %w", text, key, err)
		}
	}
	return f, f.Validate()
}

// setField sets a field of a Fault. A bool need not have a value.
func setField(field reflect.Value, value string, given bool) error {
	switch p := field.Addr().Interface().(type) {
	case *string:
		*p = value
	case *bool:
		*p = true
		if given {
			var err error
			*p, err = strconv.ParseBool(value)
			return err
		}
	case *Duration:
		return p.UnmarshalText([]byte(value))
	case **int64:
		n, err := strconv.ParseInt(value, 10, 64)
		*p = &n
		return err
	default:
		n, err := strconv.ParseInt(value, 10, 64)
		field.SetInt(n)
		return err
	}
	return nil
}

// limiter holds a rate.
type limiter struct {
	rate int64 // bytes per second; 0: none
	mu   sync.Mutex
	next time.Time
}

// wait waits until n more bytes may go.
func (l *limiter) wait(ctx context.Context, n int) bool {
	if l.rate <= 0 {
		return ctx.Err() == nil
	}
	l.mu.Lock()
	at := l.next
	if t := time.Now(); at.Before(t) {
		at = t
	}
	l.next = at.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	until := l.next
	l.mu.Unlock()
	return wait(ctx, time.Until(until))
}

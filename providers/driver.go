package providers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Env is what a provider may use of the program that it runs in.
type Env struct {
	Log *slog.Logger // never nil
	// Memory is where a provider may keep what it needs to take up its session again after the program
	// was killed; nil: nowhere.
	Memory Memory
}

// Memory keeps a few bytes for a connection beyond the end of the program. They may be a secret: they
// lie encrypted. It is that of one configuration, so that another server or user never sees what is in
// it, and one open provider at a time has it.
type Memory interface {
	// Load is what was saved last; nil where there is nothing. After an error a provider does as if there
	// were nothing.
	Load() ([]byte, error)
	// Save replaces it, whole or not at all. Nothing remains after nil.
	Save(b []byte) error
}

// Driver opens providers of one kind.
type Driver struct {
	Kind  string // "vsphere"
	Title string // "VMware vSphere"
	// Open connects. config is the connection as JSON; fields that the kind does not know are refused.
	Open func(ctx context.Context, config json.RawMessage, env Env) (Provider, error)
	// Check says what is wrong with a connection without connecting.
	Check func(config json.RawMessage) error
}

// NewDriver makes a Driver of a typed configuration. What config does not mention keeps the value
// that it has in defaults. C may have a method `Validate() error`.
func NewDriver[C any](kind, title string, defaults C, open func(ctx context.Context, c C, env Env) (Provider, error)) Driver {
	decode := func(config json.RawMessage) (C, error) {
		c := defaults
		d := json.NewDecoder(bytes.NewReader(config))
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			return c, &Error{Op: kind + ": connection", Reason: Invalid, Err: err}
		}
		if v, ok := any(c).(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				return c, &Error{Op: kind + ": connection", Reason: Invalid, Err: err}
			}
		}
		return c, nil
	}
	return Driver{
		Kind: kind, Title: title,
		Check: func(config json.RawMessage) error { _, err := decode(config); return err },
		Open: func(ctx context.Context, config json.RawMessage, env Env) (Provider, error) {
			c, err := decode(config)
			if err != nil {
				return nil, err
			}
			return open(ctx, c, env)
		},
	}
}

// Set is the drivers that a program has.
type Set []Driver

// Driver finds the driver of a kind.
func (s Set) Driver(kind string) (Driver, error) {
	for _, d := range s {
		if d.Kind == kind {
			return d, nil
		}
	}
	known := make([]string, len(s))
	for i, d := range s {
		known[i] = d.Kind
	}
	return Driver{}, &Error{Op: "providers: open", Object: kind, Reason: Unsupported,
		Msg: "no such kind of provider; there are: " + strings.Join(known, ", ")}
}

// capabilities is every capability there is, by the name that users see.
var capabilities = []struct {
	name string
	has  func(Provider) bool
}{
	{"inventory", is[Inventory]},
	{"snapshot", is[Snapshotter]},
	{"disk-source", is[DiskSource]},
	{"power", is[PowerManager]},
	{"drives", is[DriveManager]},
	{"clone", is[Cloner]},
	{"disk-leaser", is[DiskLeaser]},
	{"infrastructure", is[Surveyor]},
	{"history", is[Historian]},
	{"metrics", is[Gauger]},
	{"package-import", is[PackageImporter]},
	{"change-tracking", is[ChangeTracker]},
}

func is[C any](p Provider) bool { _, ok := p.(C); return ok }

// Capabilities lists what p can do, sorted by name.
func Capabilities(p Provider) []string {
	var out []string
	for _, c := range capabilities {
		if c.has(p) {
			out = append(out, c.name)
		}
	}
	slices.Sort(out)
	return out
}

// As is p as capability C, or an Unsupported error.
func As[C any](p Provider) (C, error) {
	c, ok := p.(C)
	if !ok {
		return c, &Error{Op: p.Kind() + ": use as " + fmt.Sprintf("%T", (*C)(nil))[len("*providers."):], Reason: Unsupported,
			Msg: "this provider cannot do that"}
	}
	return c, nil
}

// Secret is a string that hides itself wherever it is printed, logged or encoded.
type Secret string

const redacted = "[redacted]"

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Reveal is the secret itself, for the one call that needs it.
func (s Secret) Reveal() string { return string(s) }

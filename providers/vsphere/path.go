package vsphere

import (
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// vSphere stores the names of things with three characters escaped, so that a path of them can be
// taken apart: "a/b" is "a%2fb".
var (
	escaper   = strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c")
	unescaper = strings.NewReplacer("%25", "%", "%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`)
)

func unescape(s string) string { return unescaper.Replace(s) }

// maxDepth bounds a path, against a server whose folders lie in one another.
const maxDepth = 128

// tree is what lies in what.
type tree map[types.ManagedObjectReference]node

type node struct {
	name   string // as stored
	parent *types.ManagedObjectReference
}

// add takes an entity as the property collector answered it; others are ignored.
func (t tree) add(entity any) {
	switch e := entity.(type) {
	case mo.VirtualMachine:
		t.put(e.ManagedEntity, e.ParentVApp)
	case mo.VirtualApp:
		// A vApp lies in a folder, or in another vApp that is its parent among the resource pools.
		if e.ParentFolder != nil {
			e.ManagedEntity.Parent = nil
		}
		t.put(e.ManagedEntity, e.ParentFolder)
	case mo.Folder:
		t.put(e.ManagedEntity, nil)
	case mo.Datacenter:
		t.put(e.ManagedEntity, nil)
	}
}

func (t tree) put(e mo.ManagedEntity, other *types.ManagedObjectReference) {
	n := node{name: e.Name, parent: e.Parent}
	if n.name == "" {
		n.name = e.Self.Value
	}
	if n.parent == nil {
		n.parent = other
	}
	t[e.Self] = n
}

// path is the inventory path of ref: "/datacenter/vm/folder/name", without the root folder.
func (t tree) path(ref types.ManagedObjectReference) string {
	var parts []string
	for len(parts) < maxDepth {
		n, ok := t[ref]
		if !ok || n.parent == nil { // the root, or what lies above is not ours to see
			break
		}
		parts = append(parts, escaper.Replace(unescape(n.name)))
		ref = *n.parent
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

// datacenter is the path of the datacenter that ref lies in, without the leading slash and spelled as
// stored; "" where there is none.
func (t tree) datacenter(ref types.ManagedObjectReference) string {
	var parts []string
	in := false
	for range maxDepth {
		n, ok := t[ref]
		if !ok || n.parent == nil {
			break
		}
		in = in || ref.Type == "Datacenter"
		if in {
			parts = append(parts, n.name)
		}
		ref = *n.parent
	}
	slices.Reverse(parts)
	return strings.Join(parts, "/")
}

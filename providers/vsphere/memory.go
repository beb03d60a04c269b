package vsphere

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"hypersdk/providers"
)

// A program that is killed cannot log out. The one after it takes up the session that it finds in its
// memory. A session may also have begun at the server while the answer to the login, or the program,
// came to an end, so that nobody knows of it. It is found by the name under which the programs of this
// memory go there, and ended, where the user may do that.

const (
	userAgent   = "hypersdk"
	tidyTimeout = 5 * time.Second
	// maxTries is how often it may stay unknown whether a session lives, although the server answers
	// other questions: a cookie that some proxy stumbles over must not be in the way for ever.
	maxTries = 5
)

// memory is what a login keeps for the program that comes after it.
type memory struct {
	providers.Memory            // nil: nothing is kept
	mu               sync.Mutex // of kept.Leases, and of what is written to the Memory
	kept             kept
	saved            bool        // the mark is in the Memory
	left             bool        // there may be sessions of which nothing but the mark is known
	leases           []keptLease // of a program that was killed
}

// kept is what lies in the Memory.
type kept struct {
	Server string `json:"server"` // URL
	User   string `json:"user"`   // as it is configured
	// Mark tells the sessions of this memory from all others: it is in the user agent. It is kept before
	// the first login.
	Mark    string       `json:"mark"`
	Session *keptSession `json:"session,omitempty"`
	Leases  []keptLease  `json:"leases,omitempty"`
}

// keptLease is a lease that has not ended.
type keptLease struct {
	Ref string `json:"ref"` // id of its object
	VM  string `json:"vm"`
}

type keptSession struct {
	Key     string       `json:"key"`
	User    string       `json:"user"` // as the server calls it
	Cookies []keptCookie `json:"cookies"`
	Tries   int          `json:"tries,omitempty"` // to find out whether it lives, in vain
}

type keptCookie struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Quoted bool   `json:"quoted,omitempty"`
}

var validMark = regexp.MustCompile(`^[A-Z2-7]{26}$`)

// recall reads what the program before has left. What is of no use is as good as nothing.
func (l *login) recall() {
	m := &l.memory
	m.kept = kept{Server: l.server.url.String(), User: l.server.user, Mark: rand.Text()}
	if m.Memory == nil {
		return
	}
	b, err := m.Load()
	if err != nil {
		l.log.Info("what was kept of the last session cannot be read", "provider", Kind, "error", err)
		return
	}
	var k kept
	if json.Unmarshal(b, &k) == nil && k.Server == m.kept.Server && k.User == m.kept.User && validMark.MatchString(k.Mark) {
		m.kept, m.saved, m.left, m.leases = k, true, true, slices.Clone(k.Leases)
	}
}

// maxLeases is how many leases are kept: more than one program has.
const maxLeases = 256

// keepLease notes a lease that has begun.
func (l *login) keepLease(ref, vm string) {
	l.noteLeases(func(all []keptLease) []keptLease {
		return append(all[max(0, len(all)-maxLeases+1):], keptLease{ref, vm})
	})
}

// dropLease notes that a lease has ended.
func (l *login) dropLease(ref string) {
	is := func(one keptLease) bool { return one.Ref == ref }
	l.noteLeases(func(all []keptLease) []keptLease {
		l.memory.leases = slices.DeleteFunc(l.memory.leases, is)
		return slices.DeleteFunc(all, is)
	})
}

// noteLeases changes what is kept of leases, as long as a session is kept, too.
func (l *login) noteLeases(change func([]keptLease) []keptLease) {
	m := &l.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.kept.Leases = change(m.kept.Leases)
	if m.Memory == nil || !m.saved {
		return
	}
	b, err := json.Marshal(m.kept)
	if err == nil {
		err = m.Save(b)
	}
	if err != nil {
		l.log.Info("a lease cannot be kept; should this program be killed, it ends by itself", "provider", Kind, "error", err)
	}
}

// leftLeases are those that a program that was killed has left on a VM; on all VMs for "".
func (l *login) leftLeases(vm string) []keptLease {
	l.memory.mu.Lock()
	defer l.memory.mu.Unlock()
	var out []keptLease
	for _, one := range l.memory.leases {
		if vm == "" || one.VM == vm {
			out = append(out, one)
		}
	}
	return out
}

// agent is the name under which the program goes at the server.
func (l *login) agent() string {
	if l.memory.Memory == nil {
		return userAgent
	}
	return userAgent + "/" + l.memory.kept.Mark
}

// keep saves a session that has just begun.
func (l *login) keep(s types.UserSession, held []*http.Cookie) {
	one := &keptSession{Key: s.Key, User: s.UserName}
	for _, c := range held {
		one.Cookies = append(one.Cookies, keptCookie{c.Name, c.Value, c.Quoted})
	}
	l.memory.mu.Lock()
	l.memory.kept.Session = one
	l.memory.mu.Unlock()
	l.save()
}

// save writes down what is to be kept. Without it the connection works all the same.
func (l *login) save() {
	m := &l.memory
	if m.Memory == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := json.Marshal(m.kept)
	if err == nil {
		err = m.Save(b)
	}
	if m.saved = err == nil; !m.saved {
		l.log.Warn("the session cannot be kept; should this program be killed, it stays until it has been idle for too long",
			"provider", Kind, "op", "login", "error", err)
	}
}

// forget clears the memory: there is no session any more.
func (l *login) forget() {
	m := &l.memory
	if m.Memory == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.Save(nil); err != nil {
		l.log.Warn("what was kept of the session cannot be deleted", "provider", Kind, "error", err)
	}
	m.saved = false
}

// adopt takes up the session that was kept and answers its cookies, or none where it does not live or
// is not the one that it is said to be. While that cannot be found out there is an error: another
// login would leave it behind.
func (l *login) adopt(ctx context.Context) ([]*http.Cookie, error) {
	one := l.memory.kept.Session
	if one == nil {
		return nil, nil
	}
	var held []*http.Cookie
	for _, c := range one.Cookies {
		held = append(held, &http.Cookie{Name: c.Name, Value: c.Value, Quoted: c.Quoted})
		if held[len(held)-1].Valid() != nil {
			return nil, nil
		}
	}
	c := l.newSOAP(&cookies{host: l.server.url.Host, held: held})
	s, err := session.NewManager(l.bare(c)).UserSession(ctx)
	if err != nil && !answered(err) && one.Tries < maxTries {
		if ctx.Err() == nil {
			one.Tries++
			l.save()
		}
		return nil, err
	}
	if s == nil || s.Key != one.Key || s.UserName != one.User {
		return nil, nil
	}
	if one.Tries > 0 {
		one.Tries = 0
		l.save()
	}
	l.log.Info("took up the session of a program that was killed", "provider", Kind, "op", "login")
	// Beside it there is another one only if two programs were killed one after the other.
	_ = l.endLeft(ctx, c, s.Key)
	return held, nil
}

// answered says whether err is the server's own word on a question rather than trouble on the way.
func answered(err error) bool {
	var status *statusError
	if errors.As(err, &status) {
		return statusReason(status.code) != providers.Throttled && status.code < http.StatusInternalServerError
	}
	var fault types.HasFault
	return errors.As(err, &fault)
}

// endLeft ends what is left: the sessions that go by our mark, but for the one of this key. Few users
// may look at sessions; such a session ends when it has been idle for too long.
func (l *login) endLeft(ctx context.Context, sc *soap.Client, key string) error {
	if !l.memory.left {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, tidyTimeout)
	defer cancel()
	c := l.bare(sc)
	manager := *c.ServiceContent.SessionManager
	var all mo.SessionManager
	err := property.DefaultCollector(c).RetrieveOne(ctx, manager, []string{"sessionList"}, &all)
	for _, s := range all.SessionList {
		if s.UserAgent != l.agent() || s.Key == key {
			continue
		}
		_, failed := methods.TerminateSession(ctx, c, &types.TerminateSession{This: manager, SessionId: []string{s.Key}})
		if !isFault[*types.NotFound](failed) {
			err = errors.Join(err, failed)
		}
	}
	l.memory.left = err != nil && !answered(err) // what was refused is not tried again
	return err
}

// bare is a client of the server that does not renew its session.
func (l *login) bare(sc *soap.Client) *vim25.Client {
	return &vim25.Client{Client: sc, ServiceContent: l.plain.ServiceContent, RoundTripper: sc}
}

package workflows

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"hypersdk/activities"
)

// Turns is the state of admission: who runs, who waits, and in what order. It is carried from run to
// run of the workflow, so the names in it are short.
type Turns struct {
	Limit   int       `json:"limit"`
	Running []Turn    `json:"running,omitempty"`
	Waiting []Turn    `json:"waiting,omitempty"` // by priority, then by arrival
	Next    int64     `json:"next,omitempty"`    // Seq of the next to arrive
	Checked time.Time `json:"checked,omitzero"`  // when it was last looked whether those that run still live
}

// Turn is a job that runs or waits.
type Turn struct {
	Job      string `json:"j"`
	Key      string `json:"k"`
	VM       string `json:"v,omitempty"`
	Priority int    `json:"p,omitempty"`
	Seq      int64  `json:"s"`
}

func order(a, b Turn) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Seq, b.Seq))
}

func of(job string) func(Turn) bool { return func(t Turn) bool { return t.Job == job } }

// ask puts a job into the queue. One that asks again keeps its place, unless its priority changed;
// running says that it was admitted before and should be told again.
func (q *Turns) ask(t activities.Ticket) (running bool) {
	if slices.ContainsFunc(q.Running, of(t.Job)) {
		return true
	}
	n := Turn{Job: t.Job, Key: t.Key, VM: t.VM, Priority: t.Priority, Seq: q.Next}
	if i := slices.IndexFunc(q.Waiting, of(t.Job)); i >= 0 {
		n.Seq = q.Waiting[i].Seq
		q.Waiting = slices.Delete(q.Waiting, i, i+1)
	} else {
		q.Next++
	}
	at, _ := slices.BinarySearchFunc(q.Waiting, n, order)
	q.Waiting = slices.Insert(q.Waiting, at, n)
	return false
}

// release takes a job out, whether it runs or waits.
func (q *Turns) release(job string) {
	q.Running = slices.DeleteFunc(q.Running, of(job))
	if i := slices.IndexFunc(q.Waiting, of(job)); i >= 0 {
		q.Waiting = slices.Delete(q.Waiting, i, i+1)
	}
}

// next moves the first job that may run from those that wait to those that run.
func (q *Turns) next() (job string, ok bool) {
	if len(q.Running) >= q.Limit {
		return "", false
	}
	i := slices.IndexFunc(q.Waiting, func(t Turn) bool { return q.owner(t.Key) == nil })
	if i < 0 {
		return "", false
	}
	t := q.Waiting[i]
	q.Waiting = slices.Delete(q.Waiting, i, i+1)
	q.Running = append(q.Running, t)
	return t.Job, true
}

// owner is who works on the VM with this key, nil where nobody does.
func (q *Turns) owner(key string) *Turn {
	i := slices.IndexFunc(q.Running, func(t Turn) bool { return t.Key == key })
	if i < 0 {
		return nil
	}
	return &q.Running[i]
}

// why says what each of these jobs waits for; of all, but at most MaxWaiting, where none is named.
func (q *Turns) why(jobs []string) map[string]string {
	want := make(map[string]bool, len(jobs))
	for _, j := range jobs {
		want[j] = true
	}
	out := map[string]string{}
	for ahead, t := range q.Waiting {
		if len(jobs) > 0 && !want[t.Job] {
			continue
		}
		if len(out) == MaxWaiting {
			break
		}
		out[t.Job] = q.sentence(t, ahead)
	}
	return out
}

func (q *Turns) sentence(t Turn, ahead int) string {
	if o := q.owner(t.Key); o != nil && strings.HasPrefix(t.Key, activities.ChainKey) {
		return fmt.Sprintf("chain %s is being worked on by job %s", cmp.Or(o.VM, t.VM), o.Job)
	} else if o != nil {
		return fmt.Sprintf("vm %s is being exported by job %s", cmp.Or(o.VM, t.VM), o.Job)
	}
	limit := fmt.Sprintf("the limit is %s at once", count(q.Limit, "job"))
	if ahead == 0 {
		return "it is next; " + limit
	}
	return count(ahead, "job") + " ahead; " + limit
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

package connections_test

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"hypersdk/providers"
	"hypersdk/providers/connections"
	"hypersdk/providers/connections/keys"
)

// remembering are options with a folder for sessions and one configured connection.
func remembering(t *testing.T, p *platform) connections.Options {
	t.Helper()
	o := options(t, p)
	o.Sessions = filepath.Join(t.TempDir(), "sessions")
	o.Static["a"] = connections.Config{Kind: "fake", Config: config("vc")}
	return o
}

// kill ends a process that has connections without a logout.
func kill(t *testing.T, p *platform, c *connections.Connections) {
	t.Helper()
	p.unplug(true)
	require.NoError(t, c.Close())
	p.unplug(false)
}

func (p *platform) unplug(out bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unplugged = out
}

// live is the sessions that live.
func (p *platform) live() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.sessions))
}

func session(t *testing.T, c *connections.Connections, name string) string {
	t.Helper()
	got, err := c.Open(t.Context(), name)
	require.NoError(t, err)
	return got.(*provider).session
}

// kept is the files of a folder of sessions, without its lock.
func kept(t *testing.T, o connections.Options) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(o.Sessions, "*"))
	require.NoError(t, err)
	return slices.DeleteFunc(files, func(f string) bool { return filepath.Base(f) == "lock" })
}

func TestASessionOutlivesItsProcess(t *testing.T) {
	p := newPlatform()
	o := remembering(t, p)
	o.Static["same"] = o.Static["a"]
	first := connections.New(o)
	require.NoError(t, first.Put(t.Context(), "job-1", "fake", config("job's")))
	require.Equal(t, "session-1", session(t, first, "a"))
	require.Equal(t, "session-2", session(t, first, "job-1"))
	kill(t, p, first)

	second := connections.New(o)
	require.Equal(t, "session-1", session(t, second, "same"), "whatever the name by which it is opened")
	require.Equal(t, "session-2", session(t, second, "job-1"), "those of jobs too")
	kill(t, p, second)

	third := connections.New(o)
	require.Equal(t, "session-2", session(t, third, "job-1"))
	require.Equal(t, "session-1", session(t, third, "a"))
	require.NoError(t, third.Close())
	require.Empty(t, p.live())
	require.Empty(t, kept(t, o), "nothing is kept of what has ended")
	require.Equal(t, "session-3", session(t, open(t, o), "a"))
}

func TestAnotherConfigurationNeverSeesIt(t *testing.T) {
	for name, other := range map[string]connections.Config{
		"another server":   {Kind: "fake", Config: config("elsewhere")},
		"another password": {Kind: "fake", Config: []byte(`{"server":"vc","password":"another"}`)},
		"another field":    {Kind: "fake", Config: []byte(`{"server":"vc","password":"` + password + `","region":"x"}`)},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform()
			o := remembering(t, p)
			first := connections.New(o)
			session(t, first, "a")
			kill(t, p, first)
			old := kept(t, o)

			o.Static["a"] = other
			second := connections.New(o)
			require.Equal(t, "session-2", session(t, second, "a"))
			kill(t, p, second)
			files := slices.DeleteFunc(kept(t, o), func(f string) bool { return f == old[0] })
			require.Len(t, files, 1)
			require.NoError(t, os.Rename(old[0], files[0]))
			_, err := open(t, o).Open(t.Context(), "a")
			require.ErrorIs(t, err, keys.ErrDamaged, "not even if its file is put there")
		})
	}
}

func TestWhatIsKeptIsSecret(t *testing.T) {
	p := newPlatform()
	o := remembering(t, p)
	log := new(bytes.Buffer)
	o.Log = slog.New(slog.NewTextHandler(log, nil))
	conns := connections.New(o)
	session(t, conns, "a")
	st, err := os.Stat(o.Sessions)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
	files := kept(t, o)
	require.Len(t, files, 1)
	st, err = os.Stat(files[0])
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	b, err := os.ReadFile(files[0])
	require.NoError(t, err)
	require.NotContains(t, string(b), "session-1")

	other := o
	other.Sessions, other.Sealer = filepath.Join(t.TempDir(), "sessions"), sealer(t)
	require.Equal(t, "session-2", session(t, open(t, other), "a"))
	require.NotEqual(t, filepath.Base(files[0]), filepath.Base(kept(t, other)[0]), "the name of a file tells nothing without the key")

	kill(t, p, conns)
	require.NotContains(t, log.String(), "session-1")
}

func TestWhatIsDamagedIsAnErrorOfItsOwn(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string){
		"empty": func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 0)) },
		"cut":   func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 40)) },
		"garbage": func(t *testing.T, file string) {
			require.NoError(t, os.WriteFile(file, bytes.Repeat([]byte{1}, 80), 0o600))
		},
		"huge": func(t *testing.T, file string) { require.NoError(t, os.Truncate(file, 1<<40)) },
		"folder": func(t *testing.T, file string) {
			require.NoError(t, os.Remove(file))
			require.NoError(t, os.Mkdir(file, 0o700))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlatform()
			o := remembering(t, p)
			first := connections.New(o)
			session(t, first, "a")
			kill(t, p, first)
			damage(t, kept(t, o)[0])
			_, err := open(t, o).Open(t.Context(), "a")
			require.Error(t, err) // this kind of provider wants to be told so
		})
	}
}

func TestAMemoryHoldsWhatWasSavedLast(t *testing.T) {
	var memory providers.Memory
	o := remembering(t, newPlatform())
	o.Drivers = providers.Set{providers.NewDriver("fake", "Fake", fakeConfig{}, func(_ context.Context, _ fakeConfig, env providers.Env) (providers.Provider, error) {
		memory = env.Memory
		return &provider{platform: newPlatform()}, nil
	})}
	_, err := open(t, o).Open(t.Context(), "a")
	require.NoError(t, err)
	load := func() string {
		b, err := memory.Load()
		require.NoError(t, err)
		return string(b)
	}
	require.Empty(t, load())
	for _, s := range []string{"one", strings.Repeat("long", 16<<10), "two"} {
		require.NoError(t, memory.Save([]byte(s)))
		require.Equal(t, s, load())
		require.Len(t, kept(t, o), 1)
	}
	require.Error(t, memory.Save(make([]byte, 64<<10+1)))
	require.Equal(t, "two", load(), "what cannot be saved leaves what there was")
	for range 2 {
		require.NoError(t, memory.Save(nil))
		require.Empty(t, load())
		require.Empty(t, kept(t, o))
	}
	require.NoError(t, os.RemoveAll(o.Sessions))
	require.Error(t, memory.Save([]byte("x")))
}

func TestOneProcessHasTheSessions(t *testing.T) {
	p := newPlatform()
	o := remembering(t, p)
	log := new(bytes.Buffer)
	first := connections.New(o)
	require.Equal(t, "session-1", session(t, first, "a"))

	o.Log = slog.New(slog.NewTextHandler(log, nil))
	second := connections.New(o)
	second.Resume()
	require.Equal(t, "session-2", session(t, second, "a"), "the session of the other one is not touched")
	require.Contains(t, log.String(), "another process has it")
	require.NoError(t, second.Close())
	require.Equal(t, []string{"session-1"}, p.live())

	kill(t, p, first)
	require.Equal(t, "session-1", session(t, open(t, o), "a"))
}

func TestNothingIsKeptWithoutAFolderOrOfAConnectionForOnce(t *testing.T) {
	p := newPlatform()
	o := remembering(t, p)
	once, err := open(t, o).OpenOnce(t.Context(), "fake", config("vc"))
	require.NoError(t, err)
	require.Nil(t, once.(*provider).memory)
	require.NoError(t, once.Close())

	o.Sessions = ""
	conns := open(t, o)
	conns.Resume()
	got, err := conns.Open(t.Context(), "a")
	require.NoError(t, err)
	require.Nil(t, got.(*provider).memory)
}

func TestASessionThatNobodyComesForEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		o := remembering(t, p)
		first := connections.New(o)
		require.NoError(t, first.Put(t.Context(), "job-1", "fake", config("job's")))
		session(t, first, "a")
		session(t, first, "job-1")
		require.NoError(t, first.Put(t.Context(), "job-2", "fake", config("another job's")))
		session(t, first, "job-2")
		kill(t, p, first)
		require.Len(t, p.live(), 3)
		require.NoError(t, os.Remove(filepath.Join(o.Dir, "job-2.enc"))) // as if it had been killed while it forgot
		require.NoError(t, os.WriteFile(kept(t, o)[0]+".next", nil, 0o600))

		second := open(t, o)
		second.Resume()
		synctest.Wait()
		require.Len(t, kept(t, o), 2, "what nobody can take up any more is deleted")
		require.Equal(t, "session-2", session(t, second, "job-1"))
		pass(time.Minute)
		require.Contains(t, p.live(), "session-1", "somebody may come")
		pass(5 * time.Minute)
		require.Equal(t, []string{"session-2", "session-3"}, p.live())
		require.EqualValues(t, 5, p.opened.Load())
	})
}

func TestForgetEndsTheSessionThatAKilledProcessLeft(t *testing.T) {
	for name, down := range map[string]bool{"it can be reached": false, "it cannot": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlatform()
				o := remembering(t, p)
				first := connections.New(o)
				require.NoError(t, first.Put(t.Context(), "job-1", "fake", config("job's")))
				session(t, first, "job-1")
				kill(t, p, first)

				if down {
					p.fail(&providers.Error{Op: "fake: open", Reason: providers.Unavailable})
				}
				second := open(t, o)
				require.NoError(t, second.Forget(t.Context(), "job-1"))
				synctest.Wait()
				require.Empty(t, kept(t, o))
				require.Equal(t, down, len(p.live()) == 1)
				require.NoError(t, second.Put(t.Context(), "job-1", "fake", config("job's")))
				require.NoError(t, second.Forget(t.Context(), "job-1"))
				synctest.Wait()
				require.EqualValues(t, 2, p.opened.Load(), "where there is none, none is made")
			})
		})
	}
}

// The memory is that of one provider at a time: whoever comes while a session is being ended must not
// find in it what is about to go.
func TestASessionThatIsBeingEndedIsNotTakenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlatform()
		p.leaves = 3 * time.Second
		o := remembering(t, p)
		o.Idle = time.Minute
		conns := open(t, o)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := conns.Open(ctx, "a")
		require.NoError(t, err)
		cancel()
		pass(61 * time.Second)
		require.EqualValues(t, 1, p.closed.Load())
		require.Equal(t, []string{"session-1"}, p.live(), "it is being ended")

		for range 2 {
			require.Equal(t, "session-2", session(t, conns, "a"))
		}
		require.EqualValues(t, 2, p.opened.Load())
		require.Equal(t, []string{"session-2"}, p.live())
		require.Len(t, kept(t, o), 1)
		kill(t, p, conns)
		require.Equal(t, "session-2", session(t, open(t, o), "a"), "and it is the new one that is kept")
	})
}

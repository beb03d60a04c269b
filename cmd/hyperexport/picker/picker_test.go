package picker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/stretchr/testify/require"

	"hypersdk/cmd/terminal"
	"hypersdk/providers"
)

// user drives a model without a terminal.
type user struct {
	t *testing.T
	m *model
}

func newUser(t *testing.T, s Source) *user {
	t.Helper()
	if s.VMs == nil {
		s.VMs = func(context.Context) ([]providers.VM, error) { return inventoryOf("db-01", "web-01", "web-02"), nil }
	}
	if s.Plan == nil {
		s.Plan = func(_ context.Context, c Choice) ([]string, bool, error) {
			return []string{"plan of " + c.VMs[0].Name, "  into " + c.Output + " as " + c.Format.Name}, false, nil
		}
	}
	if s.Formats == nil {
		s.Formats = []Format{{Name: "qcow2"}, {Name: "qcow2", Compress: true}, {Name: "raw"}}
	}
	s.Server = "vc.example.com"
	u := &user{t: t, m: newModel(t.Context(), s)}
	u.send(tea.WindowSizeMsg{Width: 100, Height: 20})
	u.run(u.m.Init())
	return u
}

func inventoryOf(names ...string) (vms []providers.VM) {
	for i, n := range names {
		vms = append(vms, providers.VM{ID: providers.VMID(fmt.Sprint("vm-", i)), Name: n, Path: "/DC0/vm/" + n, PowerState: providers.PowerOn, NumCPU: 2, MemoryMB: 4096, StorageBytes: 1 << 30, GuestOS: "Debian"})
	}
	return vms
}

func (u *user) run(cmd tea.Cmd) {
	if cmd == nil {
		return
	}
	switch msg := cmd().(type) {
	case inventory, description, plan, tea.QuitMsg:
		u.send(msg)
	}
}

func (u *user) send(msg tea.Msg) {
	if _, ok := msg.(tea.QuitMsg); ok {
		return
	}
	_, cmd := u.m.Update(msg)
	u.run(cmd)
}

var named = map[string]rune{
	"enter": tea.KeyEnter, "esc": tea.KeyEscape, "up": tea.KeyUp, "down": tea.KeyDown, "tab": tea.KeyTab, "right": tea.KeyRight,
	"pgdown": tea.KeyPgDown, "pgup": tea.KeyPgUp, "backspace": tea.KeyBackspace,
}

// keys presses keys by their names; what is no name is typed.
func (u *user) keys(names ...string) {
	for _, n := range names {
		switch code, ok := named[n]; {
		case ok:
			u.send(tea.KeyPressMsg{Code: code})
		case strings.HasPrefix(n, "ctrl+"):
			u.send(tea.KeyPressMsg{Code: rune(n[5]), Mod: tea.ModCtrl})
		default:
			for _, r := range n {
				u.send(tea.KeyPressMsg{Code: r, Text: string(r)})
			}
		}
	}
}

var styles = regexp.MustCompile("\x1b\\[[0-9;]*m")

// sees is the screen without its colours.
func (u *user) sees() string {
	return styles.ReplaceAllString(strings.Join(u.m.lines(), "\n"), "")
}

func TestFromSearchToConfirmation(t *testing.T) {
	u := newUser(t, Source{Output: "/exports"})
	require.Contains(t, u.sees(), "3 VMs")
	u.keys("web 2")
	require.Contains(t, u.sees(), "1 of 3 VMs")
	require.NotContains(t, u.sees(), "db-01")
	u.keys("enter")
	require.Contains(t, u.sees(), "Export web-02 in which format?")
	u.keys("down", "enter")
	require.Contains(t, u.sees(), "> /exports")
	u.keys("backspace", "z", "enter")
	require.Contains(t, u.sees(), "plan of web-02")
	require.Contains(t, u.sees(), "into /exportz as qcow2")
	require.False(t, u.m.chosen)
	u.keys("enter")
	require.True(t, u.m.chosen)
	c := u.m.choice()
	require.Equal(t, "web-02", c.VMs[0].Name)
	require.Equal(t, Format{Name: "qcow2", Compress: true}, c.Format)
	require.Equal(t, "/exportz", c.Output)
}

func TestBackThroughTheQuestions(t *testing.T) {
	u := newUser(t, Source{Output: "/exports"})
	u.keys("enter", "enter", "enter")
	require.Equal(t, confirm, u.m.screen)
	for _, want := range []screen{output, format, list} {
		u.keys("esc")
		require.Equal(t, want, u.m.screen)
	}
	require.False(t, u.m.chosen)
}

func TestSeveralAreMarked(t *testing.T) {
	u := newUser(t, Source{})
	u.keys("web", "ctrl+a", "esc")
	require.Contains(t, u.sees(), "3 VMs, 2 marked")
	u.keys("tab")
	require.Contains(t, u.sees(), "3 marked")
	u.keys("up", "tab")
	require.Len(t, u.m.selection(), 2)
	require.Equal(t, "web-01", u.m.selection()[0].Name, "not the one under the cursor")
	u.keys("enter")
	require.Contains(t, u.sees(), "Export 2 VMs")
}

func TestWhatIsFixedIsNotAsked(t *testing.T) {
	u := newUser(t, Source{Formats: []Format{{Name: "raw"}}, Output: "/exports", OutputFixed: true})
	u.keys("enter")
	require.Equal(t, confirm, u.m.screen)
	require.Contains(t, u.sees(), "into /exports as raw")
	u.keys("esc")
	require.Equal(t, list, u.m.screen)
}

func TestWhatCannotBeIsNotConfirmed(t *testing.T) {
	u := newUser(t, Source{OutputFixed: true, Output: "/exports", Plan: func(context.Context, Choice) ([]string, bool, error) {
		return []string{"db-01", "  refused  no space"}, true, nil
	}})
	u.keys("enter", "enter", "enter", "y")
	require.Contains(t, u.sees(), "cannot be exported like this")
	require.False(t, u.m.chosen)
	u = newUser(t, Source{OutputFixed: true, Output: "/exports", Plan: func(context.Context, Choice) ([]string, bool, error) {
		return nil, false, errors.New("the vCenter is away")
	}})
	u.keys("enter", "enter", "enter")
	require.Contains(t, u.sees(), "the vCenter is away")
	require.False(t, u.m.chosen)
}

func TestDetails(t *testing.T) {
	u := newUser(t, Source{Describe: func(_ context.Context, vm providers.VM) ([][2]string, error) {
		if vm.Name == "db-01" {
			return nil, errors.New("it is gone")
		}
		return [][2]string{{"Name", vm.Name}, {"Empty", ""}, {"Networks", "one\ntwo"}}, nil
	}})
	u.keys("right")
	require.Contains(t, u.sees(), "it is gone")
	u.keys("esc", "down", "right")
	require.Contains(t, u.sees(), "Name       web-01\nNetworks   one\n           two")
	require.NotContains(t, u.sees(), "Empty")
	u.keys("enter")
	require.Equal(t, format, u.m.screen)
}

func TestAnInventoryThatCannotBeReadEndsIt(t *testing.T) {
	u := newUser(t, Source{VMs: func(context.Context) ([]providers.VM, error) { return nil, errors.New("login failure") }})
	require.ErrorContains(t, u.m.err, "login failure")
}

func TestAnEmptyInventory(t *testing.T) {
	u := newUser(t, Source{VMs: func(context.Context) ([]providers.VM, error) { return nil, nil }})
	require.Contains(t, u.sees(), "there are no VMs")
	u.keys("enter", "tab", "right", "down", "pgdown", "ctrl+a", "x", "enter")
	require.Equal(t, list, u.m.screen)
}

// Whatever VMs are called and however small the terminal is, no screen is larger than it, and nothing
// but styles is sent beside text.
func TestScreensFitAndDoNoHarm(t *testing.T) {
	names := []string{"\x1b]0;owned\a\x1b[2J", "a\nb\r\tc", "\u202egnp.exe", strings.Repeat("日本語", 60), "\x9b31m", "", strings.Repeat("x", 3000)}
	for width := 1; width < 130; width += 7 {
		for _, height := range []int{1, 3, 7, 12, 40} {
			u := newUser(t, Source{
				VMs: func(context.Context) ([]providers.VM, error) {
					vms := inventoryOf(names...)
					for i := range vms {
						vms[i].GuestOS, vms[i].PowerState = names[i], providers.Power(names[i])
					}
					return vms, nil
				},
				Describe: func(_ context.Context, vm providers.VM) ([][2]string, error) {
					return [][2]string{{vm.Name, vm.Name}, {"Annotation", strings.Join(names, "\n")}}, nil
				},
				Plan: func(_ context.Context, c Choice) ([]string, bool, error) { return append(names, names...), true, nil },
			})
			u.send(tea.WindowSizeMsg{Width: width, Height: height})
			for _, k := range []string{"", "tab", "down", "tab", "right", "down", "enter", "down", "enter", "/tmp/" + strings.Repeat("y", 300), "enter", "down", "esc", "esc", "esc", "pgdown", "zzz"} {
				u.keys(k)
				lines := u.m.lines()
				require.LessOrEqual(t, len(lines), max(1, height))
				for _, l := range lines {
					plain := styles.ReplaceAllString(l, "")
					require.NotRegexp(t, `[\x00-\x1f\x7f-\x9f\x{202e}]`, plain, "width %d, after %q", width, k)
					require.LessOrEqual(t, terminal.Width(plain), max(1, width), "after %q: %q", k, plain)
				}
			}
		}
	}
}

func TestFiveThousandVMsOpenAtOnce(t *testing.T) {
	names := make([]string, 5000)
	for i := range names {
		names[i] = fmt.Sprintf("team-%d/vm-%05d", i%10, i)
	}
	vms := inventoryOf(names...)
	begin := time.Now()
	u := newUser(t, Source{VMs: func(context.Context) ([]providers.VM, error) { return vms, nil }})
	u.sees()
	for _, k := range "team3 vm49" {
		u.keys(string(k))
		u.sees()
	}
	require.Contains(t, u.sees(), "of 5000 VMs")
	require.Less(t, time.Since(begin), 20*time.Second, "to open, and to type a query of ten letters")
	u.keys("pgdown", "pgdown", "down", "pgup")
	require.NotZero(t, u.m.top)
}

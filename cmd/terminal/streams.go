package terminal

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// Streams is the world outside of a program, so that tests can be it.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	Env      func(string) string
	// Size is that of the terminal that Out is; false where it is none.
	Size func() (width, height int, ok bool)
	// Ask prompts for a password; nil where there is nobody to ask.
	Ask func(prompt string) (string, error)
}

// System is the world that the process was started in.
func System() Streams {
	s := Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Getenv, Size: func() (int, int, bool) {
		w, h, err := term.GetSize(int(os.Stdout.Fd()))
		return w, h, err == nil && w > 0
	}}
	if stdin := int(os.Stdin.Fd()); term.IsTerminal(stdin) {
		s.Ask = func(prompt string) (string, error) {
			fmt.Fprint(os.Stderr, prompt)
			defer fmt.Fprintln(os.Stderr)
			b, err := term.ReadPassword(stdin)
			return string(b), err
		}
	}
	return s
}

// Screen is where the program writes for people.
func (s Streams) Screen() Screen { return Screen{Out: s.Out, Env: s.Env, Size: s.Size} }

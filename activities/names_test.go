package activities

import (
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestSafeName(t *testing.T) {
	long := strings.Repeat("é", 200)
	for name, want := range map[string]string{
		"web-01":            "web-01",
		"Exchange Server 2": "Exchange Server 2",
		"Käse 测试 データ":       "Käse 测试 データ",
		"a.b":               "a.b",
		"a/b":               "a_b-#",
		`a\b`:               "a_b-#",
		"it's":              "it_s-#",
		`say "hi"`:          "say _hi_-#",
		"$(reboot)":         "_(reboot)-#",
		"..":                "vm-#",
		".":                 "vm-#",
		"":                  "vm-#",
		"/":                 "_-#",
		".hidden":           "hidden-#",
		"-rf":               "rf-#",
		"dot.":              "dot-#",
		"space ":            "space-#",
		"a\nb":              "a_b-#",
		"a\x00b":            "a_b-#",
		"a\xffb":            "a_b-#",
		"a\u202eb":          "a_b-#",
		"CON":               "_CON-#",
		"con.txt":           "_con.txt-#",
		"LPT1":              "_LPT1-#",
		"COM10":             "COM10",
		"CONsole":           "CONsole",
		long:                strings.Repeat("é", 90) + "-#",
	} {
		got := SafeName(name)
		if head, altered := strings.CutSuffix(want, "#"); altered {
			require.Regexp(t, "^"+regexp.QuoteMeta(head)+"[0-9a-f]{8}$", got, "%q", name)
		} else {
			require.Equal(t, want, got)
		}
	}
	require.NotEqual(t, SafeName("a/b"), SafeName("a:b"), "different names stay different")
}

func FuzzSafeName(f *testing.F) {
	for _, s := range []string{"web", "..", "a/b", "\x00", "CON", strings.Repeat("測", 300), " .", "\u202e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		got := SafeName(name)
		require.True(t, plain(got))
		require.True(t, utf8.ValidString(got))
		require.LessOrEqual(t, len(got), maxName)
		require.NotContains(t, `.- `, got[:1])
		require.NotContains(t, ". ", got[len(got)-1:])
		require.False(t, reserved(got))
		for _, r := range got {
			require.True(t, unicode.IsPrint(r))
		}
		require.Equal(t, got, SafeName(name))
		if name == got {
			return
		}
		require.Equal(t, got, SafeName(got), "a safe name is safe")
	})
}

package terminal

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/clipperhouse/displaywidth"
)

// Clean makes text from elsewhere fit for a terminal: control characters, which could do anything to
// it, become visible.
func Clean(s string) string {
	s = strings.ToValidUTF8(s, "�")
	if !strings.ContainsFunc(s, isControl) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if isControl(r) {
			return '�'
		}
		return r
	}, s)
}

// isControl holds for what moves the cursor or turns the direction of writing, but not for a new line.
func isControl(r rune) bool {
	return r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r))
}

// Width is how many columns of a terminal text takes.
func Width(s string) int { return displaywidth.String(s) }

// Cut shortens text to a width.
func Cut(s string, w int) string {
	if w <= 0 || Width(s) <= w {
		return s
	}
	return displaywidth.TruncateString(s, w, "…")
}

// Pad fills text up to a width; a negative one fills on the left.
func Pad(s string, w int) string {
	if w < 0 {
		return strings.Repeat(" ", max(0, -w-Width(s))) + s
	}
	return s + strings.Repeat(" ", max(0, w-Width(s)))
}

// OneLine is text from elsewhere on one line.
func OneLine(s string) string { return strings.ReplaceAll(Clean(s), "\n", " ") }

// BytesText is a size for people, in units of 1024.
func BytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n), -1
	for f >= 1024 && u < len(units)-1 {
		f /= 1024
		u++
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %ciB", f, units[u])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[u])
}

// RateText is a rate in MB/s; "" where nothing moves.
func RateText(mbps float64) string {
	switch {
	case mbps <= 0:
		return ""
	case mbps < 10:
		return fmt.Sprintf("%.1f MB/s", mbps)
	}
	return fmt.Sprintf("%.0f MB/s", mbps)
}

// PercentText is a share of 100.
func PercentText(p float64) string { return fmt.Sprintf("%.1f%%", p) }

// SinceText is how long ago something was, roughly.
func SinceText(t, now time.Time) string {
	switch d := now.Sub(t); {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd ago", int(d.Hours()/24))
	}
}

package terminal

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestText(t *testing.T) {
	require.Equal(t, "a�b", Clean("a\x1bb"))
	require.Equal(t, "a�b", Clean("a\u202eb"), "text that is written backwards is a trick")
	require.Equal(t, "a�b", Clean("a\x9bb"), "a control sequence of eight bits")
	require.Equal(t, "日本…", Cut("日本語テキスト", 5))
	require.Equal(t, 6, Width("日本語"))
	require.Equal(t, "日本  ", Pad("日本", 6))
	require.Equal(t, "  日本", Pad("日本", -6))
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 40 << 30: "40 GiB", 10<<20 - 1: "10 MiB", 1 << 62: "4.0 EiB"} {
		require.Equal(t, want, BytesText(n))
	}
}

package fuzzy_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"hypersdk/cmd/terminal/fuzzy"
)

func TestTheBestIsFirst(t *testing.T) {
	texts := []string{"/dc/vm/shop/web-01", "/dc/vm/shop/web-02", "/dc/vm/db/postgres-web", "/dc/vm/db/oracle", "/dc/vm/日本語-ウェブ", "/dc/vm/w-e-b"}
	for query, want := range map[string][]int{
		"":          {0, 1, 2, 3, 4, 5},
		"WEB":       {2, 0, 1, 5},
		"web 02":    {1},
		"02 web":    {1},
		"w02":       {1},
		"shop":      {0, 1},
		"oracle":    {3},
		"orcl":      {3},
		"ウェブ":       {4},
		"xyz":       nil,
		"web01 web": {0},
	} {
		got := fuzzy.New(texts).Find(query)
		if want == nil {
			require.Empty(t, got, query)
			continue
		}
		require.Equal(t, want, got, query)
	}
}

func TestOddTextsDoNoHarm(t *testing.T) {
	x := fuzzy.New([]string{"", "\x1b[31m", "\xff\xfe", "a\xffb"})
	for _, q := range []string{"\xff", "\x1b", "a b", "ab", " ", "�"} {
		require.NotPanics(t, func() { x.Find(q) }, "%q", q)
	}
}

func BenchmarkFind(b *testing.B) {
	texts := make([]string, 5000)
	for i := range texts {
		texts[i] = fmt.Sprintf("/DC0/vm/team-%d/vm-%05d", i%10, i)
	}
	x := fuzzy.New(texts)
	for b.Loop() {
		x.Find("team3 vm49")
	}
}

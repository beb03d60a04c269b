// Package fuzzy finds texts by what somebody remembers of them: the letters of every word of a query,
// in order, anywhere in the text.
package fuzzy

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Index is texts that are searched over and over, as somebody types.
type Index struct{ texts []string }

// New is an index of texts.
func New(texts []string) *Index {
	x := &Index{texts: make([]string, len(texts))}
	for i, t := range texts {
		x.texts[i] = strings.ToLower(t)
	}
	return x
}

// Find is the texts that match, by their place in the index: the best first, equal ones in the order of
// the index. An empty query matches all of them.
func (x *Index) Find(query string) []int {
	words := strings.Fields(strings.ToLower(query))
	type hit struct{ i, score int }
	var hits []hit
	for i, t := range x.texts {
		if s, ok := scoreAll(t, words); ok {
			hits = append(hits, hit{i, s})
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int { return cmp.Compare(b.score, a.score) })
	out := make([]int, len(hits))
	for i, h := range hits {
		out[i] = h.i
	}
	return out
}

func scoreAll(text string, words []string) (sum int, ok bool) {
	for _, w := range words {
		s, ok := score(text, w)
		if !ok {
			return 0, false
		}
		sum += s
	}
	return sum, true
}

const (
	whole     = 1000 // the word is there as it is
	wordStart = 60   // and begins a word of the text
	textEnd   = 40   // or ends the text
	next      = 12   // a letter that follows the one before it
	gap       = 1    // letters between two that match, at most maxGap of them
	maxGap    = 20
)

// score says how well a word matches. Both are in lower case.
func score(text, word string) (int, bool) {
	if i := strings.LastIndex(text, word); i >= 0 {
		s := whole
		if starts(text, i) {
			s += wordStart
		} else if j := strings.Index(text, word); starts(text, j) {
			s += wordStart / 2
		}
		if i+len(word) == len(text) {
			s += textEnd
		}
		return s - min(len(text), 200)/4, true // the shorter text is more like the word
	}
	return scattered(text, word)
}

// scattered scores letters that are not all beside one another.
func scattered(text, word string) (s int, ok bool) {
	at, last := 0, -1
	for _, r := range word {
		i := strings.IndexRune(text[at:], r)
		if i < 0 {
			return 0, false
		}
		i += at
		switch {
		case i == last:
			s += next
		case starts(text, i):
			s += next
		default:
			s -= gap * min(i-max(last, 0), maxGap)
		}
		at = i + utf8.RuneLen(r)
		last = at
	}
	return s, true
}

// starts says whether a word of the text begins at i.
func starts(text string, i int) bool {
	if i == 0 {
		return true
	}
	r, _ := utf8.DecodeLastRuneInString(text[:i])
	return !unicode.IsLetter(r) && !unicode.IsDigit(r)
}

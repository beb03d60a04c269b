package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// render makes lines for people of JSON lines; what is no JSON stays as it is.
func (l *logStream) render(page []byte) []byte {
	if l.json {
		return page
	}
	var out bytes.Buffer
	for line := range bytes.Lines(page) {
		if !plainLine(&out, line) {
			_, _ = out.Write(line) // a bytes.Buffer never fails
		}
	}
	return out.Bytes()
}

// plainLine writes "time LEVEL message key=value …"; false where the line is no log record.
func plainLine(w *bytes.Buffer, line []byte) bool {
	var record map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if d.Decode(&record) != nil || record["msg"] == nil {
		return false
	}
	fmt.Fprintf(w, "%v %-5v %v", record["time"], record["level"], oneLine(record["msg"]))
	for _, k := range slices.Sorted(maps.Keys(record)) {
		if k != "time" && k != "level" && k != "msg" {
			fmt.Fprintf(w, " %s=%s", k, value(record[k]))
		}
	}
	_ = w.WriteByte('\n')
	return true
}

// value is a value of a record, quoted where it would not be one word.
func value(v any) string {
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case map[string]any, []any:
		b, _ := json.Marshal(v) // it came from JSON
		return string(b)
	default:
		s = fmt.Sprint(v)
	}
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) {
		return strconv.Quote(s)
	}
	return s
}

func oneLine(v any) string {
	return strings.NewReplacer("\n", `\n`, "\r", `\r`, "\x1b", `\x1b`).Replace(fmt.Sprint(v))
}

// lastLines are the last n lines of b.
func lastLines(b []byte, n int) []byte {
	end := len(b)
	if end > 0 && b[end-1] == '\n' {
		end--
	}
	for i := end; i > 0; i-- {
		if b[i-1] == '\n' {
			if n--; n == 0 {
				return b[i:]
			}
		}
	}
	return b
}

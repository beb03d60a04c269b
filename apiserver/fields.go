package apiserver

import (
	"encoding/json"
	"fmt"
	"path"
	"reflect"
	"slices"
	"strings"

	"hypersdk/apiserver/api"
	"hypersdk/workflows/job"
)

// object decodes an object into a struct, member by member, so that every fault is found and named.
func (s *submitted) object(prefix string, raw json.RawMessage, into reflect.Value) {
	keys, values, err := members(raw)
	if err != nil {
		s.fault(strings.TrimSuffix(prefix, "."), "must be an object")
		return
	}
	fields := fieldsOf(into)
	for _, key := range keys {
		v, name := values[key], prefix+job.Shorten(key, 60)
		f, known := fields[key]
		switch {
		case !known && slices.Contains(ignored[prefix], key):
		case !known:
			s.fault(name, "is not known%s", nearMiss(key, fields))
		case string(v) == "null": // as if it were not there
		case key == "compress" || key == "compression":
			s.compress(name, v)
		case f.Kind() == reflect.Struct || f.Kind() == reflect.Pointer && f.Type().Elem().Kind() == reflect.Struct:
			if v[0] != '{' {
				s.fault(name, "must be an object")
				continue
			}
			if f.Kind() == reflect.Pointer {
				f.Set(reflect.New(f.Type().Elem()))
				f = f.Elem()
			}
			s.object(prefix+key+".", v, f)
		case json.Unmarshal(v, f.Addr().Interface()) != nil:
			s.fault(name, "must be %s", kindName(f.Type()))
		}
	}
}

// compress is a boolean, or the name of an algorithm: which one it is to be is up to the format.
func (s *submitted) compress(name string, v json.RawMessage) {
	var word string
	if json.Unmarshal(v, &s.Compress) == nil {
		return
	}
	if json.Unmarshal(v, &word) == nil {
		switch strings.ToLower(word) {
		case "", "none", "off", "no", "false":
			s.Compress = false
			return
		case "on", "yes", "true", "zlib", "gzip", "deflate":
			s.Compress = true
			return
		}
	}
	s.fault(name, `must be true, false, "zlib" or "none"`)
}

// unify gives every spelling of a field its one meaning.
func (s *submitted) unify() {
	switch {
	case s.OutputPath == "":
		s.OutputPath = s.OutputDir
	case s.OutputDir != "" && s.OutputDir != s.OutputPath:
		s.fault("output_dir", "must not differ from output_path: they are the same field")
	}
	if p := s.OutputPath; path.IsAbs(p) && !slices.Contains(strings.Split(p, "/"), "..") {
		s.OutputPath = path.Clean(p) // a slash too many is not worth a refusal
	}
	if s.VCenterURL != "" {
		if s.VCenter != nil {
			s.fault("vcenter_url", "must not be given together with vcenter")
		} else {
			s.VCenter = &api.Credentials{Server: s.VCenterURL, Username: s.Username, Password: s.Password, Insecure: s.Insecure}
		}
	}
	s.OutputDir, s.Compression, s.VCenterURL, s.Username, s.Password, s.Insecure = "", "", "", "", "", false
}

// fieldsOf are the fields of a struct by their JSON names, with those of embedded structs.
func fieldsOf(v reflect.Value) map[string]reflect.Value {
	fields := map[string]reflect.Value{}
	for i := range v.NumField() {
		t := v.Type().Field(i)
		if t.Anonymous {
			for k, f := range fieldsOf(v.Field(i)) {
				fields[k] = f
			}
			continue
		}
		if name, _, _ := strings.Cut(t.Tag.Get("json"), ","); t.IsExported() && name != "" && name != "-" {
			fields[name] = v.Field(i)
		}
	}
	return fields
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return kindName(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.Int64:
		return "a number of seconds, or a duration such as \"5m\""
	default:
		return "an object"
	}
}

// nearMiss is "; did you mean …?" where a known field is spelled almost so.
func nearMiss(key string, fields map[string]reflect.Value) string {
	best, distance := "", max(1, len(key)/3)+1
	for name := range fields {
		if d := editDistance(key, name); d < distance || d == distance && best != "" && name < best {
			best, distance = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is how many letters have to be put in, taken out or changed to make b of a; neighbours
// that changed places and other letter cases count like one change.
func editDistance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if len(a) > 64 {
		return len(a)
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

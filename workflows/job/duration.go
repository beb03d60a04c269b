package job

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"
)

// Duration is a duration in a request: a number of seconds, or "5m30s". It is written the second way.
type Duration time.Duration

var errDuration = errors.New(`must be a number of seconds, or a duration such as "5m"`)

func (d Duration) String() string { return time.Duration(d).String() }

func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON takes 90, "90", "90s" and "1m30s".
func (d *Duration) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) != nil {
		text = string(b)
	}
	return d.UnmarshalText([]byte(text))
}

// UnmarshalText takes "90", "90s" and "1m30s".
func (d *Duration) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	var seconds float64
	if json.Unmarshal([]byte(text), &seconds) == nil {
		if math.Abs(seconds) > math.MaxInt64/2/float64(time.Second) {
			return errDuration
		}
		*d = Duration(seconds * float64(time.Second))
		return nil
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		return errDuration
	}
	*d = Duration(v)
	return nil
}

// Or is d, or other where d is nothing.
func (d Duration) Or(other time.Duration) time.Duration {
	if d == 0 {
		return other
	}
	return time.Duration(d)
}

package apiserver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/google/uuid"

	"hypersdk/apiserver/api"
)

// digest tells the jobs of a request from others. It is kept with the jobs, so that passwords have no
// part in it.
func digest(jobs []submitted) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	for _, j := range jobs {
		c := j.Submission
		if c.VCenter != nil {
			without := *c.VCenter
			without.Password = ""
			c.VCenter = &without
		}
		_ = e.Encode(c) // what was decoded from JSON can be encoded, and a hash takes everything
		_ = e.Encode(j.faults)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// jobSpace is the name space of the ids of jobs with an idempotency key.
var jobSpace = uuid.MustParse("6f0b7a52-9c1d-4a53-8a1e-0d6a3f5d7b11")

// jobID is the id of the nth job that is accepted: always the same under a key, new without.
func jobID(key string, n int) string {
	if key == "" {
		return uuid.Must(uuid.NewV7()).String()
	}
	return uuid.NewSHA1(jobSpace, []byte(key+"\x00"+strconv.Itoa(n))).String()
}

// repeated refuses a request under a key that was used for another one.
func (b *batch) repeated(ctx context.Context, first string) error {
	d, err := b.s.describe(ctx, first)
	var answer *api.Error
	switch {
	case errors.As(err, &answer) && answer.Status == http.StatusNotFound:
		return nil
	case err != nil:
		return err
	}
	var was string
	if b.s.memo(d.GetWorkflowExecutionInfo().GetMemo(), memoRequest, &was) && was != b.digest {
		return errOtherRequest()
	}
	return nil
}

func errOtherRequest() error {
	return newError(http.StatusConflict, "the idempotency key was used for a request with other jobs; use a new key")
}

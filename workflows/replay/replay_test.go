package replay

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/sdk/client"
	"google.golang.org/protobuf/encoding/protojson"

	"hypersdk/workflows"
)

// released is testdata/histories/<release>/*.json.gz: what workflows of earlier releases decided. It is
// recorded at a release, and never changed.
const released = "../testdata/histories"

// Every history that was ever released replays, and every workflow has one as soon as there was a
// release.
func TestReleasedHistories(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(released, "*", "*.json.gz"))
	require.NoError(t, err)
	releases, err := os.ReadDir(released)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	covered := map[string]bool{}
	for _, path := range files {
		t.Run(filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path)), func(t *testing.T) {
			f, err := os.Open(path)
			require.NoError(t, err)
			defer f.Close()
			name, err := Replay(f)
			require.NoError(t, err)
			covered[name] = true
		})
	}
	if len(releases) == 0 {
		return
	}
	for _, name := range workflows.Names() {
		require.True(t, covered[name], "no release has a history of the workflow %q", name)
	}
}

// sample is the history of a page of a log being fetched.
func sample(t *testing.T) *historypb.History {
	t.Helper()
	b, err := os.ReadFile("testdata/fetch-log.json")
	require.NoError(t, err)
	var h historypb.History
	require.NoError(t, protojson.Unmarshal(b, &h))
	return &h
}

// recorded is a client with one history.
type recorded struct {
	events []*historypb.HistoryEvent
	err    error
}

func (r *recorded) GetWorkflowHistory(context.Context, string, string, bool, enumspb.HistoryEventFilterType) client.HistoryEventIterator {
	return r
}

func (r *recorded) HasNext() bool { return len(r.events) > 0 }

func (r *recorded) Next() (*historypb.HistoryEvent, error) {
	e := r.events[0]
	r.events = r.events[1:]
	return e, r.err
}

// masked is a codec that turns bytes around.
type masked struct{}

func (masked) Encode(ps []*commonpb.Payload) ([]*commonpb.Payload, error) { return masked{}.Decode(ps) }

func (masked) Decode(ps []*commonpb.Payload) ([]*commonpb.Payload, error) {
	out := make([]*commonpb.Payload, len(ps))
	for i, p := range ps {
		out[i] = &commonpb.Payload{Metadata: p.Metadata, Data: bytes.Clone(p.Data)}
		for j := range out[i].Data {
			out[i].Data[j] ^= 0xff
		}
	}
	return out, nil
}

func TestDumpAndReplay(t *testing.T) {
	h := sample(t)
	var plain bytes.Buffer
	require.NoError(t, DumpHistory(t.Context(), &recorded{events: h.Events}, nil, "x", &plain))
	name, err := Replay(bytes.NewReader(plain.Bytes()))
	require.NoError(t, err)
	require.Equal(t, workflows.LogWorkflow, name)

	// Through the codec and back it is the same.
	var hidden bytes.Buffer
	require.NoError(t, DumpHistory(t.Context(), &recorded{events: sample(t).Events}, masked{}, "x", &hidden))
	require.NotEqual(t, unzip(t, plain.Bytes()), unzip(t, hidden.Bytes()))
	var masks historypb.History
	require.NoError(t, protojson.Unmarshal(unzip(t, hidden.Bytes()), &masks))
	var back bytes.Buffer
	require.NoError(t, DumpHistory(t.Context(), &recorded{events: masks.Events}, masked{}, "x", &back))
	_, err = Replay(&back)
	require.NoError(t, err)
}

func TestReplayNoticesAChange(t *testing.T) {
	h := sample(t)
	for _, e := range h.Events {
		if a := e.GetActivityTaskScheduledEventAttributes(); a != nil {
			a.ActivityType.Name = "something-else"
		}
	}
	var b bytes.Buffer
	require.NoError(t, DumpHistory(t.Context(), &recorded{events: h.Events}, nil, "x", &b))
	_, err := Replay(&b)
	require.ErrorContains(t, err, "TMPRL1100")
}

func TestBadHistories(t *testing.T) {
	broken := errors.New("no such workflow")
	require.ErrorIs(t, DumpHistory(t.Context(), &recorded{events: sample(t).Events, err: broken}, nil, "x", io.Discard), broken)
	for _, b := range [][]byte{nil, []byte("not zipped"), zip(t, "not JSON"), zip(t, "{}")} {
		_, err := Replay(bytes.NewReader(b))
		require.ErrorContains(t, err, "history")
	}
}

func zip(t *testing.T, s string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := io.WriteString(z, s)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	return b.Bytes()
}

func unzip(t *testing.T, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	require.NoError(t, err)
	out, err := io.ReadAll(z)
	require.NoError(t, err)
	return out
}

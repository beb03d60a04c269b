// Package replay makes sure that jobs outlive releases: histories of finished workflows are recorded
// with each release, and everything that was ever recorded must replay with the code of today.
package replay

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	commonpb "go.temporal.io/api/common/v1"
	enumspb "go.temporal.io/api/enums/v1"
	historypb "go.temporal.io/api/history/v1"
	"go.temporal.io/api/proxy"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/converter"
	sdklog "go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"google.golang.org/protobuf/encoding/protojson"

	"hypersdk/workflows"
)

// maxHistory is more than the server lets a history become, as JSON.
const maxHistory = 512 << 20

// Histories is the part of client.Client that recording needs.
type Histories interface {
	GetWorkflowHistory(ctx context.Context, workflowID, runID string, isLongPoll bool, filter enumspb.HistoryEventFilterType) client.HistoryEventIterator
}

// DumpHistory writes the history of the last run of a workflow as gzipped JSON. Payloads are written as
// codec decodes them, nil as they are: the file is for everyone, so what must stay secret has no
// place in a history.
func DumpHistory(ctx context.Context, c Histories, codec converter.PayloadCodec, id string, w io.Writer) error {
	h := &historypb.History{}
	events := c.GetWorkflowHistory(ctx, id, "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	for events.HasNext() {
		e, err := events.Next()
		if err != nil {
			return fmt.Errorf("history of %s: %w", id, err)
		}
		h.Events = append(h.Events, e)
	}
	if codec != nil {
		err := proxy.VisitPayloads(ctx, h, proxy.VisitPayloadsOptions{
			SkipSearchAttributes: true,
			Visitor: func(_ *proxy.VisitPayloadsContext, p []*commonpb.Payload) ([]*commonpb.Payload, error) {
				return codec.Decode(p)
			},
		})
		if err != nil {
			return fmt.Errorf("history of %s: decode: %w", id, err)
		}
	}
	b, err := protojson.Marshal(h)
	if err != nil {
		return fmt.Errorf("history of %s: %w", id, err)
	}
	z := gzip.NewWriter(w)
	_, err = z.Write(b)
	return errors.Join(err, z.Close())
}

// Replay runs today's workflows against a history that DumpHistory wrote, and answers the name of its
// workflow. It fails where they would decide otherwise now.
func Replay(r io.Reader) (name string, err error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return "", fmt.Errorf("history: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(z, maxHistory))
	if err != nil {
		return "", fmt.Errorf("history: %w", err)
	}
	var h historypb.History
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &h); err != nil {
		return "", fmt.Errorf("history: %w", err)
	}
	if len(h.Events) == 0 {
		return "", errors.New("history: it is empty")
	}
	name = h.Events[0].GetWorkflowExecutionStartedEventAttributes().GetWorkflowType().GetName()
	replayer := worker.NewWorkflowReplayer()
	workflows.Register(replayer)
	return name, replayer.ReplayWorkflowHistory(sdklog.NewStructuredLogger(slog.New(slog.DiscardHandler)), &h)
}

package worker

import (
	"context"
	"time"

	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// beatAgain is how long is waited before a heartbeat that was refused is sent again.
const beatAgain = 500 * time.Millisecond

// PatientHeartbeats lets a heartbeat take as long as the server has patience for one. The SDK gives it no
// longer than the time between two, a second here so that a cancel is heard of soon, and where that has
// passed it cancels the activity: a server that is busy, or that starts again, would cost every copy of
// its hosts the attempt.
func PatientHeartbeats(patience time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if method != workflowservice.WorkflowService_RecordActivityTaskHeartbeat_FullMethodName {
			return call(ctx, method, req, reply, cc, opts...)
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		for {
			err := call(ctx, method, req, reply, cc, opts...)
			switch status.Code(err) {
			case codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
			default:
				return err
			}
			select {
			case <-ctx.Done():
				return err
			case <-time.After(beatAgain):
			}
		}
	}
}

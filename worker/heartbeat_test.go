package worker_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"hypersdk/worker"
)

// server answers heartbeats as its function says.
type server struct {
	workflowservice.UnimplementedWorkflowServiceServer
	beat func(context.Context) error
}

func (s *server) RecordActivityTaskHeartbeat(ctx context.Context, _ *workflowservice.RecordActivityTaskHeartbeatRequest) (*workflowservice.RecordActivityTaskHeartbeatResponse, error) {
	return &workflowservice.RecordActivityTaskHeartbeatResponse{}, s.beat(ctx)
}

func (s *server) GetSystemInfo(ctx context.Context, _ *workflowservice.GetSystemInfoRequest) (*workflowservice.GetSystemInfoResponse, error) {
	return &workflowservice.GetSystemInfoResponse{}, s.beat(ctx)
}

func TestAHeartbeatMayTakeLongerThanTheTimeBetweenTwo(t *testing.T) {
	const between, patience = 20 * time.Millisecond, 5 * time.Second
	slow := func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * between):
			return nil
		}
	}
	var calls atomic.Int32
	for name, c := range map[string]struct {
		beat func(context.Context) error
		want codes.Code
	}{
		"a slow server": {slow, codes.OK},
		"a server that starts again": {func(context.Context) error {
			if calls.Add(1) < 3 {
				return status.Error(codes.Unavailable, "starting")
			}
			return nil
		}, codes.OK},
		"an activity that is gone": {func(context.Context) error { return status.Error(codes.NotFound, "gone") }, codes.NotFound},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			g := grpc.NewServer()
			workflowservice.RegisterWorkflowServiceServer(g, &server{beat: c.beat})
			go func() { _ = g.Serve(l) }()
			t.Cleanup(g.Stop)
			conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithChainUnaryInterceptor(worker.PatientHeartbeats(patience)))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, conn.Close()) })
			ctx, cancel := context.WithTimeout(t.Context(), between)
			defer cancel()
			_, err = workflowservice.NewWorkflowServiceClient(conn).RecordActivityTaskHeartbeat(ctx, &workflowservice.RecordActivityTaskHeartbeatRequest{})
			require.Equal(t, c.want, status.Code(err), "%v", err)
		})
	}
	t.Run("other calls keep their deadline", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		g := grpc.NewServer()
		workflowservice.RegisterWorkflowServiceServer(g, &server{beat: slow})
		go func() { _ = g.Serve(l) }()
		t.Cleanup(g.Stop)
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithChainUnaryInterceptor(worker.PatientHeartbeats(patience)))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, conn.Close()) })
		ctx, cancel := context.WithTimeout(t.Context(), between)
		defer cancel()
		_, err = workflowservice.NewWorkflowServiceClient(conn).GetSystemInfo(ctx, &workflowservice.GetSystemInfoRequest{})
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	})
}

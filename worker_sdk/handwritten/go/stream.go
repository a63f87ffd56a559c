package main

import (
	"context"
	"time"

	pb "github.com/romancy/romancy/worker_sdk/handwritten/go/romancyv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// connect carries the session over one stream, from hello to its end, and says why it ended. The channel is new each
// time, since a channel that cannot connect waits longer and longer by itself.
func (w *worker) connect(address string) error {
	ctx, hangUp := context.WithCancel(context.Background())
	defer hangUp()
	silence := time.AfterFunc(3*w.interval, hangUp)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxFrame)))
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := pb.NewWorkerServiceClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	w.hello.TokensInHand = nil
	for token := range w.tasks {
		w.hello.TokensInHand = append(w.hello.TokensInHand, []byte(token))
	}
	_ = stream.Send(&pb.ConnectRequest{Hello: w.hello}) // when a send fails, Recv says why
	down, ended := make(chan *pb.ConnectResponse), make(chan error, 1)
	go read(ctx, stream, down, ended)
	var up <-chan *pb.ConnectRequest // nothing follows the hello before the welcome
	var beat <-chan time.Time
	drained := false
	for {
		select {
		case err := <-ended:
			return err
		case frame := <-down:
			for _, answer := range w.receive(frame) {
				_ = stream.Send(answer)
			}
			if frame.Welcome != nil {
				up, beat = w.up, time.Tick(w.interval/2)
			}
			silence.Reset(3 * w.interval)
		case frame := <-up:
			if w.keep(frame) {
				_ = stream.Send(frame)
			}
		case <-beat:
			_ = stream.Send(&pb.ConnectRequest{})
		case <-w.terminate:
			w.draining = true
		}
		if w.draining && up != nil && !drained {
			drained = true
			_ = stream.Send(&pb.ConnectRequest{Drain: &pb.Drain{}})
		}
		if w.draining && up != nil && !w.left && len(w.tasks) == 0 {
			w.left = true
			_ = stream.Send(&pb.ConnectRequest{Goodbye: &pb.Goodbye{}})
			_ = stream.CloseSend()
			up, beat = nil, nil
		}
	}
}

func read(ctx context.Context, from pb.WorkerService_ConnectClient, down chan<- *pb.ConnectResponse,
	ended chan<- error,
) {
	for {
		frame, err := from.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case down <- frame:
		case <-ctx.Done():
			return
		}
	}
}

package main

import (
	"context"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	pb "github.com/romancy/romancy/worker_sdk/handwritten/go/romancyv1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A task is in hand until its completion is acknowledged.
type task struct {
	stop context.CancelFunc
	done *pb.ConnectRequest // carries the completion; nil while the activity runs
}

// A worker is one session. Its fields belong to one goroutine; activities speak through up.
type worker struct {
	activities     map[string]activity
	hello          *pb.Hello
	interval       time.Duration    // a frame is due so often, either way
	tasks          map[string]*task // in hand, by token
	up             chan *pb.ConnectRequest
	terminate      chan os.Signal
	failures       int // to connect, in a row
	draining, left bool
}

func work(address, name, queue string, activities map[string]activity) {
	hello := &pb.Hello{WorkerId: name, TaskQueues: []string{queue}, ActivitySlots: 100,
		ActivityTypes: slices.Collect(maps.Keys(activities)), Sdk: "by hand, in Go"}
	w := &worker{activities: activities, hello: hello, tasks: map[string]*task{}, interval: 5 * time.Second,
		up: make(chan *pb.ConnectRequest, 64), terminate: make(chan os.Signal, 1)}
	signal.Notify(w.terminate, syscall.SIGTERM, syscall.SIGINT)
	for !w.left && !(w.draining && len(w.tasks) == 0) {
		err := w.connect(address)
		switch status.Code(err) {
		case codes.InvalidArgument, codes.Aborted, codes.Unauthenticated, codes.PermissionDenied:
			log.Fatalf("refused for good: %v", err)
		}
		select {
		case <-w.terminate:
			w.draining = true
		case <-time.After(rand.N(min(100*time.Millisecond<<min(w.failures, 6), 5*time.Second))): // full jitter
			w.failures++
		}
	}
}

// receive takes in one frame and returns what is to be said to it.
func (w *worker) receive(frame *pb.ConnectResponse) (say []*pb.ConnectRequest) {
	if welcome := frame.Welcome; welcome != nil {
		w.hello.SessionId, w.failures = welcome.SessionId, 0
		w.interval = welcome.HeartbeatInterval.AsDuration()
		for _, token := range welcome.DisownedTokens {
			w.putDown(token)
		}
		for _, held := range w.tasks {
			if held.done != nil {
				say = append(say, held.done)
			}
		}
	}
	for _, t := range frame.ActivityTasks {
		if w.tasks[string(t.Token)] == nil && !w.left { // it may come twice
			ctx, stop := context.WithCancel(context.Background())
			w.tasks[string(t.Token)] = &task{stop: stop}
			go w.run(ctx, t)
		}
	}
	for _, cancellation := range frame.Cancellations {
		if held := w.tasks[string(cancellation.Token)]; held != nil {
			held.stop()
		}
	}
	for _, answer := range frame.Acknowledgements {
		if answer.Rejection != nil {
			log.Printf("a completion was refused: %v", answer.Rejection)
		}
		w.putDown(answer.Token)
	}
	return say
}

// keep holds on to a frame with a completion until that is acknowledged. False: nobody wants it any more.
func (w *worker) keep(frame *pb.ConnectRequest) bool {
	for _, completion := range frame.ActivityCompletions {
		held := w.tasks[string(completion.Token)]
		if held == nil {
			return false
		}
		held.done = frame
	}
	return true
}

// putDown ends a task that is not in hand any more.
func (w *worker) putDown(token []byte) {
	if held := w.tasks[string(token)]; held != nil {
		held.stop()
		delete(w.tasks, string(token))
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"

	pb "github.com/romancy/romancy/worker_sdk/handwritten/go/romancyv1"
)

const maxFrame = 32 << 20

type activity func(ctx context.Context, arguments []*pb.Payload, beat func(progress any)) (any, *pb.Failure)

// run makes one attempt and reports how it ended. A panic of user code is a failure like others.
func (w *worker) run(ctx context.Context, t *pb.ActivityTask) {
	completion := &pb.ActivityCompletion{Token: t.Token}
	result, failure := w.attempt(ctx, t)
	text, err := json.Marshal(result)
	if failure == nil && (err != nil || len(text) > maxFrame-1024) { // larger, it would end every stream that carried it
		problem := fmt.Sprintf("no frame can carry the result: %d bytes, %v", len(text), err)
		failure = &pb.Failure{Type: "BadResult", NonRetryable: true, Message: problem}
	}
	switch {
	case failure == nil:
		completion.Outcome = &pb.ActivityCompletion_Result{Result: &pb.Payload{Data: &pb.Payload_Json{Json: string(text)}}}
	case ctx.Err() != nil:
		completion.Outcome = &pb.ActivityCompletion_Cancelled{Cancelled: &pb.ActivityCancelledOutcome{}}
	default:
		completion.Outcome = &pb.ActivityCompletion_Failure{Failure: failure}
	}
	w.up <- &pb.ConnectRequest{ActivityCompletions: []*pb.ActivityCompletion{completion}}
}

func (w *worker) attempt(ctx context.Context, t *pb.ActivityTask) (result any, failure *pb.Failure) {
	defer func() {
		if problem := recover(); problem != nil {
			failure = &pb.Failure{Type: "Panic", Message: fmt.Sprint(problem)}
		}
	}()
	return w.activities[t.ActivityType](ctx, t.Arguments, func(progress any) {
		text, _ := json.Marshal(progress)
		details := &pb.Payload{Data: &pb.Payload_Json{Json: string(text)}}
		select {
		case w.up <- &pb.ConnectRequest{ActivityHeartbeats: []*pb.ActivityHeartbeat{{Token: t.Token, Details: details}}}:
		default: // nobody hears it now
		}
	})
}

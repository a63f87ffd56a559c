// Ships orders for Romancy, without an SDK: docs/protocol.md and the generated stubs are all that this was made from.
// This file has the activity, run.go runs it, worker.go is the session, stream.go the streams that carry it.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	pb "github.com/romancy/romancy/worker_sdk/handwritten/go/romancyv1"
)

var workTime, _ = time.ParseDuration(os.Getenv("WORK_SECONDS") + "s") // how long shipping pretends to take

func shipOrder(ctx context.Context, arguments []*pb.Payload, beat func(progress any)) (any, *pb.Failure) {
	var orderID string
	var to struct{ City, Country string }
	if len(arguments) != 2 || json.Unmarshal([]byte(arguments[0].GetJson()), &orderID) != nil ||
		json.Unmarshal([]byte(arguments[1].GetJson()), &to) != nil || to.Country == "" {
		return nil, &pb.Failure{Type: "InvalidOrder", NonRetryable: true, Message: "give an id, and an address with country"}
	}
	fmt.Printf("🚚 Shipping %s to %s, %s\n", orderID, to.City, to.Country)
	for began := time.Now(); time.Since(began) < workTime; {
		beat(map[string]float64{"done": time.Since(began).Seconds() / workTime.Seconds()})
		select {
		case <-ctx.Done():
			return nil, &pb.Failure{Type: "Interrupted", Message: "stopped before the parcel left"}
		case <-time.After(min(workTime/10, time.Second)):
		}
	}
	return map[string]string{"tracking_number": "TRACK-" + orderID, "status": "shipped"}, nil
}

func main() {
	address := cmp.Or(os.Getenv("ROMANCY_ADDRESS"), "127.0.0.1:7233")
	queue := cmp.Or(os.Getenv("ROMANCY_TASK_QUEUE"), "default")
	work(address, "shipping", queue, map[string]activity{"ship_order": shipOrder})
}

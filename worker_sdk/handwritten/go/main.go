// Ships orders for Romancy, without an SDK: docs/protocol.md and the generated stubs are all that it was made from.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "github.com/romancy/romancy/worker_sdk/handwritten/go/romancyv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

var (
	workTime, _ = time.ParseDuration(os.Getenv("WORK_SECONDS") + "s") // how long shipping pretends to take
	leaving, _  = signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	final       = []codes.Code{codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied, codes.Aborted}
	hello       = &pb.Hello{WorkerId: "shipping", ActivityTypes: []string{"ship_order"}, ActivitySlots: 100}
	stops       = map[string]context.CancelFunc{} // of the tasks in hand: those whose end is not acknowledged
	ends        sync.Map                          // of those that ended: the frame to say again on the next stream
	stream      atomic.Pointer[pb.WorkerService_ConnectClient]
	sending     sync.Mutex // on the stream
)

func ship(ctx context.Context, task *pb.ActivityTask) *pb.ActivityCompletion { // the activity: all else is protocol
	var orderID, to = "", struct{ City, Country string }{}
	if len(task.Arguments) != 2 || json.Unmarshal([]byte(task.Arguments[0].GetJson()), &orderID) != nil ||
		json.Unmarshal([]byte(task.Arguments[1].GetJson()), &to) != nil || to.Country == "" || len(orderID) > 31<<20 {
		wrong := &pb.Failure{Type: "InvalidOrder", NonRetryable: true, Message: "give an id, and an address with country"}
		return &pb.ActivityCompletion{Token: task.Token, Outcome: &pb.ActivityCompletion_Failure{Failure: wrong}}
	}
	fmt.Printf("🚚 Shipping %s to %s, %s\n", orderID, to.City, to.Country)
	for left := workTime; left > 0 && ctx.Err() == nil; left -= time.Second {
		details := &pb.Payload{Data: &pb.Payload_Json{Json: fmt.Sprint(left.Seconds())}}
		send(&pb.ConnectRequest{ActivityHeartbeats: []*pb.ActivityHeartbeat{{Token: task.Token, Details: details}}})
		time.Sleep(min(left, time.Second))
	}
	if ctx.Err() != nil {
		return &pb.ActivityCompletion{Token: task.Token, Outcome: &pb.ActivityCompletion_Cancelled{}}
	}
	text, _ := json.Marshal(map[string]string{"tracking_number": "TRACK-" + orderID, "status": "shipped"})
	shipped := &pb.Payload{Data: &pb.Payload_Json{Json: string(text)}}
	return &pb.ActivityCompletion{Token: task.Token, Outcome: &pb.ActivityCompletion_Result{Result: shipped}}
}

func send(frame *pb.ConnectRequest) {
	sending.Lock()
	defer sending.Unlock()
	_ = (*stream.Load()).Send(frame) // when it fails, Recv says why
}

func main() {
	hello.TaskQueues = []string{os.Getenv("ROMANCY_TASK_QUEUE")}
	conn, err := grpc.NewClient(os.Getenv("ROMANCY_ADDRESS"), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
	for ; err != io.EOF && (leaving.Err() == nil || len(stops) > 0); err = connect(conn) {
		if conn == nil || slices.Contains(final, status.Code(err)) {
			log.Fatal(err)
		}
		time.Sleep(rand.N(time.Second)) // full jitter: many workers may have lost the same service
		conn.ResetConnectBackoff()          // the channel would wait longer and longer by itself
	}
}

func connect(conn *grpc.ClientConn) error { // one stream, from hello to its end, which is io.EOF for who may leave
	ctx, hangUp := context.WithCancel(context.Background())
	silence := time.AfterFunc(15*time.Second, hangUp)
	fresh, err := pb.NewWorkerServiceClient(conn).Connect(ctx)
	if err != nil {
		return err
	}
	hello.TokensInHand = slices.Collect(maps.Keys(stops))
	_ = fresh.Send(&pb.ConnectRequest{Hello: hello})
	stream.Store(&fresh)
	ends.Range(func(_, end any) bool { send(end.(*pb.ConnectRequest)); return true })
	defer context.AfterFunc(leaving, func() { send(&pb.ConnectRequest{Drain: &pb.Drain{}}) })()
	for interval := 5 * time.Second; ; send(&pb.ConnectRequest{}) { // an answer to each frame: signs of life
		frame, err := fresh.Recv()
		if err != nil {
			return err
		}
		if welcome := frame.Welcome; welcome != nil {
			hello.SessionId, interval = welcome.SessionId, welcome.HeartbeatInterval.AsDuration()
		}
		silence.Reset(3 * interval)
		for _, answer := range frame.Acknowledgements {
			delete(stops, answer.Token)
			ends.Delete(answer.Token)
		}
		for _, asked := range frame.Cancellations {
			if stop := stops[asked.Token]; stop != nil {
				stop()
			}
		}
		for _, task := range frame.ActivityTasks {
			if stops[task.Token] == nil { // it may come twice
				ctx, stop := context.WithCancel(context.Background())
				stops[task.Token] = stop
				go func() {
					end := &pb.ConnectRequest{ActivityCompletions: []*pb.ActivityCompletion{ship(ctx, task)}}
					ends.Store(task.Token, end)
					send(end)
				}()
			}
		}
	}
}

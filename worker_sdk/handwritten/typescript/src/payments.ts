// Takes payments for Romancy, and gives them back, without an SDK: made from docs/protocol.md and the protos alone.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { ActivityCompletion } from '../generated/romancy/v1/ActivityCompletion';
import type { ActivityTask__Output as ActivityTask } from '../generated/romancy/v1/ActivityTask';
import type { ConnectRequest } from '../generated/romancy/v1/ConnectRequest';
import type { ConnectResponse__Output as ConnectResponse } from '../generated/romancy/v1/ConnectResponse';
import type { ProtoGrpcType } from '../generated/worker_service';

const { ROMANCY_ADDRESS = '127.0.0.1:7233', ROMANCY_TASK_QUEUE = 'default', WORK_SECONDS = '0' } = process.env;
const { OK, INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, ABORTED } = grpc.status;
const FINAL = [INVALID_ARGUMENT, UNAUTHENTICATED, PERMISSION_DENIED, ABORTED];
const MAX_FRAME = 32 * 1024 * 1024; // bytes
const loading = { includeDirs: [join(__dirname, '../../../../../protos')], longs: Number, defaults: true };
const protos = grpc.loadPackageDefinition(loadSync('romancy/v1/worker_service.proto', loading));
const { WorkerService } = (protos as unknown as ProtoGrpcType).romancy.v1;

type InHand = { stop: AbortController; completion?: ActivityCompletion };
type Activity = (args: any[], beat: (progress: unknown) => void, signal: AbortSignal) => Promise<unknown>;
const refusal = (type: string, message: string) => Object.assign(new Error(message), { type, nonRetryable: true });

const processPayment: Activity = async ([orderId, amount], beat, signal) => {
  if (!(amount > 0)) throw refusal('InvalidAmount', `the amount is ${amount}: give one above 0`);
  console.log(`💳 Processing payment for ${orderId}: $${amount.toFixed(2)}`);
  for (let left = 1000 * Number(WORK_SECONDS); left > 0; left -= 1000) {
    beat({ millisecondsLeft: left });
    await sleep(Math.min(left, 1000), undefined, { signal });
  }
  return { transaction_id: `TXN-${orderId}`, amount, status: 'completed' };
};

const refundPayment: Activity = async ([orderId, amount]) => {
  console.log(`❌ Refunding payment for ${orderId}: $${amount.toFixed(2)}`);
};

const activities: Record<string, Activity> = { process_payment: processPayment, refund_payment: refundPayment };

const activityTypes = Object.keys(activities);
const hello = { workerId: 'payments', taskQueues: [ROMANCY_TASK_QUEUE], activityTypes, activitySlots: 100 };
const inHand = new Map<string, InHand>(); // by token
let sessionId = ''; // a session outlives the streams that carry it
let leaving = false;
let stream: grpc.ClientDuplexStream<ConnectRequest, ConnectResponse> | undefined; // the newest

const send = (frame: ConnectRequest) => void stream?.write(frame);

async function attempt(task: ActivityTask, signal: AbortSignal): Promise<ActivityCompletion> {
  const { token, activityType } = task;
  const beat = (progress: unknown) =>
    send({ activityHeartbeats: [{ token, details: { json: JSON.stringify(progress) } }] });
  try {
    const args = task.arguments.map(({ json }) => JSON.parse(json ?? 'null'));
    const json = JSON.stringify((await activities[activityType]!(args, beat, signal)) ?? null);
    if (Buffer.byteLength(json) > MAX_FRAME - 1024) throw refusal('TooLarge', 'no frame can carry the result');
    return { token, result: { json } };
  } catch (error) {
    const { message, type = 'Error', nonRetryable = false } = error as ReturnType<typeof refusal>;
    return signal.aborted ? { token, cancelled: {} } : { token, failure: { message, type, nonRetryable } };
  }
}

async function run(task: ActivityTask): Promise<void> {
  const held: InHand = { stop: new AbortController() };
  inHand.set(task.token, held);
  held.completion = await attempt(task, held.stop.signal);
  send({ activityCompletions: [held.completion] });
}

function receive(frame: ConnectResponse): void {
  for (const { token } of frame.acknowledgements) inHand.delete(token);
  for (const { token } of frame.cancellations) inHand.get(token)?.stop.abort();
  for (const task of frame.activityTasks) if (!inHand.has(task.token)) void run(task); // it may come twice
  send({}); // an answer to each frame: as many signs of life as are due
}

/** One stream, from hello to end. Its client is new: one that cannot connect waits longer and longer by itself. */
async function connect(): Promise<grpc.StatusObject> {
  const options = { 'grpc.max_receive_message_length': MAX_FRAME };
  const client = new WorkerService(ROMANCY_ADDRESS, grpc.credentials.createInsecure(), options);
  const newest = (stream = client.connect());
  const hangUp = () => newest.cancel();
  let interval = 5000;
  let silence = setTimeout(hangUp, 3 * interval);
  newest.on('error', () => {}); // the status says it too
  newest.on('data', (frame: ConnectResponse) => {
    if (frame.welcome) {
      const { seconds, nanos } = frame.welcome.heartbeatInterval!;
      [sessionId, interval] = [frame.welcome.sessionId, 1000 * Number(seconds) + nanos / 1e6];
    }
    clearTimeout(silence);
    silence = setTimeout(hangUp, 3 * interval);
    receive(frame);
  });
  send({ hello: { ...hello, sessionId, tokensInHand: [...inHand.keys()] } });
  for (const { completion } of inHand.values()) if (completion) send({ activityCompletions: [completion] });
  if (leaving) send({ drain: {} });
  const status = await new Promise<grpc.StatusObject>((resolve) => newest.once('status', resolve));
  clearTimeout(silence);
  client.close();
  return status;
}

async function work(): Promise<void> {
  for (const signal of ['SIGTERM', 'SIGINT']) {
    process.on(signal, () => {
      leaving = true;
      send({ drain: {} });
    });
  }
  while (!leaving || inHand.size > 0) {
    const { code, details } = await connect();
    if (code === OK) return; // the service let it go
    if (FINAL.includes(code)) throw new Error(`refused for good: ${details}`);
    await sleep(Math.random() * 1000); // full jitter: many workers may have lost the same service
  }
}

void work();

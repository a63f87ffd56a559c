// An activity worker made from the protos alone. docs/protocol.md has the reason of every frame.
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { Duration__Output as Duration } from '../generated/google/protobuf/Duration';
import type { ActivityCompletion } from '../generated/romancy/v1/ActivityCompletion';
import type { ActivityTask__Output as ActivityTask } from '../generated/romancy/v1/ActivityTask';
import type { ConnectRequest } from '../generated/romancy/v1/ConnectRequest';
import type { ConnectResponse__Output as ConnectResponse } from '../generated/romancy/v1/ConnectResponse';
import type { Failure } from '../generated/romancy/v1/Failure';
import type { ProtoGrpcType } from '../generated/worker_service';

const maxFrame = 32 * 1024 * 1024;
const { INVALID_ARGUMENT, ABORTED, UNAUTHENTICATED, PERMISSION_DENIED } = grpc.status;
const includeDirs = [join(__dirname, '../../../../../protos')];
const contract = loadSync('romancy/v1/worker_service.proto', { includeDirs, longs: Number, enums: String, defaults: true, oneofs: true });
const { WorkerService } = (grpc.loadPackageDefinition(contract) as unknown as ProtoGrpcType).romancy.v1;
const milliseconds = (duration: Duration | null) => Number(duration?.seconds ?? 0) * 1000 + (duration?.nanos ?? 0) / 1e6;

export type Beat = (progress: unknown) => void;
export type Activity = (args: unknown[], beat: Beat, signal: AbortSignal) => Promise<unknown>;
export class ActivityError extends Error {
  constructor(readonly type: string, message: string, readonly nonRetryable: boolean) { super(message); }
}

/** A task is in hand until its completion is acknowledged. */
interface Held { token: Buffer; stop: AbortController; completion?: ActivityCompletion }

/** One session. It outlives the streams that carry it. */
export class Worker {
  private sessionId = '';
  private inHand = new Map<string, Held>();
  private stream?: grpc.ClientDuplexStream<ConnectRequest, ConnectResponse>; // from its welcome to its end
  private interval = 5000;
  private timers: Record<'silence' | 'beat' | 'lapse', NodeJS.Timeout | undefined> = { silence: undefined, beat: undefined, lapse: undefined };
  private failures = 0;
  private draining = false;
  private left = false;

  constructor(private address: string, private queue: string, private activities: Record<string, Activity>) {}

  async work(): Promise<void> {
    for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => this.drain());
    while (!this.left && !(this.draining && this.inHand.size === 0)) {
      const { code, details } = await this.connect();
      if ([INVALID_ARGUMENT, ABORTED, UNAUTHENTICATED, PERMISSION_DENIED].includes(code)) throw new Error(`refused for good: ${details}`);
      await sleep(Math.random() * Math.min(5000, 100 * 2 ** this.failures++)); // full jitter
    }
    clearTimeout(this.timers.lapse);
  }

  /** One stream, from hello to end. Its client is new too: one that cannot connect waits longer and longer by itself. */
  private async connect(): Promise<grpc.StatusObject> {
    const client = new WorkerService(this.address, grpc.credentials.createInsecure(), { 'grpc.max_receive_message_length': maxFrame });
    const stream = client.connect();
    stream.on('error', () => {}); // the status says it too
    stream.on('data', (frame: ConnectResponse) => this.receive(stream, frame));
    this.restart('silence', 3 * this.interval, () => stream.cancel());
    stream.write({ hello: {
      workerId: 'payments', sessionId: this.sessionId, tokensInHand: [...this.inHand.values()].map((held) => held.token),
      taskQueues: [this.queue], activityTypes: Object.keys(this.activities), activitySlots: 100, sdk: 'by hand, in TypeScript',
    } });
    const end = await new Promise<grpc.StatusObject>((resolve) => stream.once('status', resolve));
    this.stream = undefined;
    clearTimeout(this.timers.silence);
    clearInterval(this.timers.beat);
    client.close();
    return end;
  }

  private restart(timer: 'silence' | 'lapse', delay: number, then: () => void): void {
    clearTimeout(this.timers[timer]);
    this.timers[timer] = setTimeout(then, delay);
  }
}

// An activity worker made from the contract alone. docs/protocol.md has the reason of every frame.
import { setTimeout as sleep } from 'node:timers/promises';
import { credentials, status, type ClientDuplexStream, type StatusObject } from '@grpc/grpc-js';
import { attempt, type Activity } from './activity';
import { MAX_FRAME, WorkerService, milliseconds } from './contract';
import type { ActivityCompletion, ActivityTask, ConnectRequest, ConnectResponse, Hello } from './contract';

const HOPELESS = [status.INVALID_ARGUMENT, status.ABORTED, status.UNAUTHENTICATED, status.PERMISSION_DENIED];
const nameOf = (token: Uint8Array) => Buffer.from(token).toString('base64');

type Stream = ClientDuplexStream<ConnectRequest, ConnectResponse>;
interface InHand { token: Buffer; stop: AbortController; completion?: ActivityCompletion }

/** One session. It outlives the streams that carry it. */
export class Worker {
  private inHand = new Map<string, InHand>(); // what runs, and what is not acknowledged yet
  private stream?: Stream; // from its welcome to its end
  private session = { id: '', interval: 5000 };
  private failures = 0; // to connect, in a row
  private draining = false;
  private left = false;

  constructor(private address: string, private hello: Hello, private activities: Record<string, Activity>) {}

  async work(): Promise<void> {
    for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, () => this.drain());
    while (!this.left && !(this.draining && this.inHand.size === 0)) {
      const { code, details } = await this.connect();
      if (HOPELESS.includes(code)) throw new Error(`refused for good: ${details}`);
      if (!this.left) await sleep(Math.random() * Math.min(5000, 100 * 2 ** this.failures++)); // full jitter
    }
  }

  /** One stream, from hello to end. Its client is new: one that cannot connect waits longer and longer by itself. */
  private async connect(): Promise<StatusObject> {
    const client = new WorkerService(this.address, credentials.createInsecure(), {
      'grpc.max_receive_message_length': MAX_FRAME,
    });
    const stream = client.connect();
    const hangUp = () => stream.cancel();
    let silence = setTimeout(hangUp, 3 * this.session.interval);
    let beating: NodeJS.Timeout | undefined;
    stream.on('error', () => {}); // the status says it too
    stream.on('data', (frame: ConnectResponse) => {
      this.receive(stream, frame);
      clearTimeout(silence);
      silence = setTimeout(hangUp, 3 * this.session.interval);
      beating ??= setInterval(() => this.send({}), this.session.interval / 2);
    });
    const tokensInHand = [...this.inHand.values()].map(({ token }) => token);
    stream.write({ hello: { ...this.hello, sessionId: this.session.id, tokensInHand } });
    const end = await new Promise<StatusObject>((resolve) => stream.once('status', resolve));
    this.stream = undefined;
    clearTimeout(silence);
    clearInterval(beating);
    client.close();
    return end;
  }

  private receive(stream: Stream, frame: ConnectResponse): void {
    if (frame.welcome) {
      const { sessionId: id, heartbeatInterval, disownedTokens } = frame.welcome;
      this.session = { id, interval: milliseconds(heartbeatInterval) };
      [this.stream, this.failures] = [stream, 0];
      for (const token of disownedTokens) this.putDown(nameOf(token));
      for (const { completion } of this.inHand.values()) {
        if (completion) this.send({ activityCompletions: [completion] });
      }
      if (this.draining) this.send({ drain: {} });
    }
    for (const task of frame.activityTasks) {
      if (!this.inHand.has(nameOf(task.token)) && !this.left) void this.run(task); // it may come twice
    }
    for (const { token } of frame.cancellations) this.inHand.get(nameOf(token))?.stop.abort();
    for (const { token, rejection } of frame.acknowledgements) {
      if (rejection) console.error(`a completion was refused: ${rejection.reason}: ${rejection.message}`);
      this.putDown(nameOf(token));
    }
    this.leaveIfDone();
  }

  private async run(task: ActivityTask): Promise<void> {
    const { token, activityType } = task;
    const held: InHand = { token, stop: new AbortController() };
    this.inHand.set(nameOf(token), held);
    const beat = (json: string) => this.send({ activityHeartbeats: [{ token, details: { json } }] });
    const outcome = await attempt(this.activities[activityType]!, task, beat, held.stop.signal);
    if (this.inHand.get(nameOf(token)) !== held) return; // it is not ours any more
    held.completion = { token, ...outcome };
    this.send({ activityCompletions: [held.completion] });
  }

  private drain(): void {
    this.draining = true;
    this.send({ drain: {} });
    this.leaveIfDone();
  }

  private leaveIfDone(): void {
    if (!this.draining || this.left || !this.stream || this.inHand.size > 0) return;
    this.left = true;
    this.send({ goodbye: {} });
    this.stream.end();
    this.stream = undefined;
  }

  private putDown(key: string): void {
    this.inHand.get(key)?.stop.abort();
    this.inHand.delete(key);
  }

  private send(frame: ConnectRequest): void {
    this.stream?.write(frame); // between streams nobody hears it: completions are sent again, heartbeats follow
  }
}

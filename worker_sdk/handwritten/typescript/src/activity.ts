// How one attempt of an activity is made, and what its end means. Whatever user code throws stays in here.
import { MAX_FRAME } from './contract';
import type { ActivityCompletion, ActivityTask } from './contract';

export type Beat = (progress: unknown) => void;
export type Activity = (args: unknown[], beat: Beat, signal: AbortSignal) => Promise<unknown>;

export class ActivityError extends Error {
  constructor(readonly type: string, message: string, readonly nonRetryable = false) {
    super(message);
  }
}

export async function attempt(
  activity: Activity,
  task: ActivityTask,
  beat: (json: string) => void,
  signal: AbortSignal,
): Promise<ActivityCompletion> {
  try {
    const args = task.arguments.map(({ json }) => JSON.parse(json ?? 'null'));
    const result = await activity(args, (progress) => beat(JSON.stringify(progress)), signal);
    const json = JSON.stringify(result ?? null);
    if (Buffer.byteLength(json) <= MAX_FRAME - 1024) return { result: { json } };
    throw new ActivityError('TooLarge', 'no frame can carry the result: return where it is kept', true);
  } catch (error) {
    if (signal.aborted) return { cancelled: {} };
    const known = error instanceof ActivityError ? error : new ActivityError('Error', String(error));
    return { failure: { message: known.message, type: known.type, nonRetryable: known.nonRetryable } };
  }
}

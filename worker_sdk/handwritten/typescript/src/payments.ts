// Takes payments for Romancy, and gives them back, without an SDK. The protocol is in worker.ts.
import { setTimeout as sleep } from 'node:timers/promises';
import { ActivityError, type Activity } from './activity';
import { Worker } from './worker';

const workMs = 1000 * Number(process.env.WORK_SECONDS ?? 0); // how long a payment pretends to take

const checked = (orderId: unknown, amount: unknown): [string, number] => {
  if (typeof orderId === 'string' && typeof amount === 'number' && amount > 0) return [orderId, amount];
  throw new ActivityError('InvalidAmount', `give an id and an amount above 0, not ${JSON.stringify(amount)}`, true);
};

const processPayment: Activity = async ([orderId, amount], beat, signal) => {
  const [order, dollars] = checked(orderId, amount);
  console.log(`💳 Processing payment for ${order}: $${dollars.toFixed(2)}`);
  for (const end = Date.now() + workMs; Date.now() < end; ) {
    beat({ millisecondsLeft: end - Date.now() });
    await sleep(Math.min(workMs / 10, 1000), undefined, { signal });
  }
  return { transaction_id: `TXN-${order}`, amount: dollars, status: 'completed' };
};

const refundPayment: Activity = async ([orderId, amount]) => {
  const [order, dollars] = checked(orderId, amount);
  console.log(`❌ Refunding payment for ${order}: $${dollars.toFixed(2)}`);
};

const { ROMANCY_ADDRESS = '127.0.0.1:7233', ROMANCY_TASK_QUEUE = 'default' } = process.env;
const activities = { process_payment: processPayment, refund_payment: refundPayment };
const hello = {
  workerId: 'payments',
  taskQueues: [ROMANCY_TASK_QUEUE],
  activityTypes: Object.keys(activities),
  activitySlots: 100,
  sdk: 'by hand, in TypeScript',
};
new Worker(ROMANCY_ADDRESS, hello, activities).work().catch((error: Error) => {
  console.error(error.message);
  process.exitCode = 1;
});

// Takes payments for Romancy, and gives them back, without an SDK. The activities are here, the protocol in worker.ts.
import { setTimeout as sleep } from 'node:timers/promises';
import { ActivityError, work, type Activity } from './worker';

const workMs = Number(process.env.WORK_MS ?? 0); // how long a payment pretends to take

const checked = (orderId: unknown, amount: unknown): [string, number] => {
  if (typeof orderId === 'string' && typeof amount === 'number' && amount > 0) return [orderId, amount];
  throw new ActivityError('InvalidAmount', `give an order id and an amount above 0, not ${JSON.stringify(amount)}`, true);
};

const processPayment: Activity = async (task, orderId, amount) => {
  const [order, dollars] = checked(orderId, amount);
  console.log(`💳 Processing payment for ${order}: $${dollars.toFixed(2)}`);
  for (const end = Date.now() + workMs; Date.now() < end; ) {
    task.beat({ millisecondsLeft: end - Date.now() });
    await sleep(Math.min(workMs / 10, 1000), undefined, { signal: task.signal });
  }
  return { transaction_id: `TXN-${order}`, amount: dollars, status: 'completed' };
};

const refundPayment: Activity = async (_, orderId, amount) => {
  const [order, dollars] = checked(orderId, amount);
  console.log(`❌ Refunding payment for ${order}: $${dollars.toFixed(2)}`);
};

void work('payments', { process_payment: processPayment, refund_payment: refundPayment });

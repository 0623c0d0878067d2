// A moderate load for a long time, while devices reconnect. Nothing may be lost and deliveries may not become slower; the memory at
// the end of the summary shows whether the server's memory grows.

import { allWell, gather, once, settings, sleep } from './lib/crowd.js';
import { Exchange, messagesCount } from './lib/messaging.js';

/** Messages per second from each device. */
const RATE = 1;
/** Interval at which one device of each crowd reconnects. */
const RECONNECT_EVERY_MS = 2000;

export const options = {
  scenarios: { soak: once(`${settings.seconds + 120}s`) },
  thresholds: {
    ...allWell(),
    ...messagesCount,
    'delivery_ms{part:first}': ['p(95)<500'],
    'delivery_ms{part:last}': ['p(95)<500'],
  },
};

export default () => gather(async (members) => {
  const exchange = new Exchange(members);
  const until = Date.now() + settings.seconds * 1000;
  const comingAndGoing = async () => {
    for (let turn = 0; Date.now() + 2 * RECONNECT_EVERY_MS < until; turn += 1) {
      await sleep(RECONNECT_EVERY_MS);
      await exchange.all[turn % exchange.all.length].reconnect();
    }
  };
  const writing = async () => {
    for (const part of ['first', 'middle', 'last']) {
      await exchange.write({ seconds: settings.seconds / 3, rate: RATE, tags: { part } });
    }
  };
  await Promise.all([writing(), comingAndGoing()]);
  await exchange.settle();
});

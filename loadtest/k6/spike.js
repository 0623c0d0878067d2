// A tenth of the devices are connected the whole time. In the middle the others connect at once, write for a while and leave.
// Nothing may be lost, and deliveries must then be as fast as before.

import { allWell, gather, settings } from './lib/crowd.js';
import { Exchange, messagesCount } from './lib/messaging.js';

/** Messages per second from each device. */
const RATE = 5;
const few = Math.max(1, Math.floor(settings.crowds / 10));
const third = settings.seconds / 3;

export const options = {
  scenarios: {
    steady: { executor: 'per-vu-iterations', exec: 'steady', vus: few, iterations: 1, maxDuration: '10m' },
    spike: {
      executor: 'per-vu-iterations',
      exec: 'spike',
      vus: settings.crowds - few,
      iterations: 1,
      startTime: `${third}s`,
      maxDuration: '10m',
    },
  },
  thresholds: {
    ...allWell(),
    ...messagesCount,
    'delivery_ms{part:before}': ['p(95)<500'],
    'delivery_ms{part:during}': ['p(95)<5000'],
    'delivery_ms{part:after}': ['p(95)<500'],
    connect_ms: ['p(95)<5000'],
  },
};

export const steady = () => gather(async (members) => {
  const exchange = new Exchange(members);
  for (const part of ['before', 'during', 'after']) await exchange.write({ seconds: third, rate: RATE, tags: { part } });
  await exchange.settle();
});

export const spike = () => gather(async (members) => {
  const exchange = new Exchange(members);
  await exchange.write({ seconds: third / 2, rate: RATE, tags: { part: 'during' } });
  await exchange.settle();
});

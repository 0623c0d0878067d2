// Devices write to each other as fast as they get replies. Each accepted message must arrive once, in order, and be acked.

import { allWell, gather, once, settings } from './lib/crowd.js';
import { Exchange, messagesCount } from './lib/messaging.js';

const PIPELINE = 4;

export const options = {
  scenarios: { messaging: once() },
  thresholds: { ...allWell(), ...messagesCount, delivery_ms: ['p(95)<2000'] },
};

export default () => gather(async (members) => {
  const exchange = new Exchange(members);
  await exchange.write({ seconds: settings.seconds, pipeline: PIPELINE });
  await exchange.settle();
  await exchange.findNothing();
});

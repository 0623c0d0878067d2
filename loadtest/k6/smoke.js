// A little of everything, for a few seconds. Only counts are judged, not times, so it works on any machine.

import http from 'k6/http';
import { check } from 'k6';

import { allWell, gather, once, settings } from './lib/crowd.js';
import { claimEverything, claimsCount } from './lib/claiming.js';
import { Exchange, messagesCount } from './lib/messaging.js';

const PIPELINE = 4;

export const options = {
  scenarios: { smoke: once('60s') },
  thresholds: { ...allWell(), ...claimsCount, ...messagesCount, checks: ['rate==1'] },
};

const refusedWith = async (code, call) => {
  const problem = await call.then(() => ({}), (problem) => problem);
  check(problem, { [`the request fails with ${code}`]: () => problem.code === code });
};

export default () => gather(async (members) => {
  const base = settings.url.replace(/^ws/, 'http').replace(/\/v1\/socket$/, '');
  check(http.get(`${base}/healthz`), { 'healthz: 200': ({ status }) => status === 200 });
  check(http.get(`${base}/readyz`), { 'readyz: ready': (answer) => answer.json('status') === 'ready' });
  const [member] = members;
  const session = (token) => http.get(`${base}/v1/auth/session`, { headers: { Authorization: `Bearer ${token}` } });
  check(session(member.seed.token), {
    'session: has its device': (answer) => answer.json('device_id') === member.seed.device_id,
  });
  check(session('nobody'), { 'session: 401 with another token': ({ status }) => status === 401 });
  await refusedWith('unknown_op', member.call('keys.forge', {}));
  await refusedWith('bad_request', member.call('keys.claim', { user_id: member.seed.user_id }));
  await refusedWith('not_found', member.call('keys.fetch', { user_id: crypto.randomUUID() }));

  await claimEverything(members);
  const exchange = new Exchange(members);
  await exchange.write({ seconds: settings.seconds, pipeline: PIPELINE });
  await exchange.settle();
  await exchange.findNothing();
});

// All devices connect at once, as after the restart of a node, several times. Each must get its welcome and a reply.

import { check } from 'k6';

import { allWell, gather, settings } from './lib/crowd.js';

const ROUNDS = 5;

export const options = {
  scenarios: { storm: { executor: 'per-vu-iterations', vus: settings.crowds, iterations: ROUNDS, maxDuration: '10m' } },
  thresholds: {
    ...allWell(ROUNDS),
    connected: [`count==${settings.crowds * settings.sockets * ROUNDS}`],
    checks: ['rate==1'],
    connect_ms: ['p(95)<3000'],
  },
};

export default () => gather(async (members) => {
  const sessions = await Promise.all(members.map((member) => member.call('devices.list', {})));
  for (const [n, { devices }] of sessions.entries()) {
    const current = devices.find((device) => device.current);
    check(current, { 'it is the device of its token': () => current.device_id === members[n].seed.device_id });
  }
});

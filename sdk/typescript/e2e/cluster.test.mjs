// Two nodes with PostgreSQL and Redis behind a load balancer. They are restarted one after the other, and killed, while people write to each
// other: no message is lost, none comes twice, their order is kept.
//
//     ROUNDS=5 ../../scripts/services run node --test e2e/cluster.test.mjs

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { after, before, test } from 'node:test';
import { msgpack } from '@sealwire/client/msgpack';
import { Proxy } from '../test-support/proxy.mjs';
import { Server, skip as skipServer } from '../test-support/server.mjs';
import { closeClients, openClient, until } from './support.mjs';

const { DATABASE_URL, REDIS_URL } = process.env;
const skip = skipServer || (DATABASE_URL && REDIS_URL ? false : 'no DATABASE_URL and REDIS_URL: run it with scripts/services');
const ROUNDS = Number(process.env.ROUNDS ?? 2);
/** Messages that arrive between two restarts, at least. */
const BETWEEN = 30;

let balancer;
const nodes = [];
before(async () => {
  if (skip) return;
  const env = {
    SEALWIRE__DATABASE__URL: DATABASE_URL,
    SEALWIRE__BUS__URL: REDIS_URL,
    SEALWIRE__AUTH__SECRET: randomBytes(32).toString('base64'),
  };
  nodes.push(await Server.start(env));
  nodes.push(await Server.start({ ...env, SEALWIRE__MAILER__URL: `file:${nodes[0].dir}/mail` }));
  balancer = await Proxy.start(...nodes.map(({ port }) => port));
});
after(async () => {
  await closeClients();
  await balancer?.stop();
  await Promise.all(nodes.map((node) => node.stop()));
});

test(`two nodes are restarted ${ROUNDS} times each, and killed once each`, { skip }, async () => {
  const open = (options) => openClient(balancer.url, { timeoutMs: 5000, ...options });
  const [alice, phone, laptop] = [open(), open({ codec: msgpack }), open()];
  await nodes[0].signIn(alice, 'alice@cluster.example');
  await nodes[0].signIn(phone, 'bob@cluster.example');
  await nodes[0].signIn(laptop, 'bob@cluster.example');
  const clients = [alice, phone, laptop];
  const [toAlice, toBob] = [alice.account.userId, phone.account.userId];
  const drained = new Map(clients.map((client) => [client, 0]));
  for (const client of clients) client.on('server.draining', () => drained.set(client, drained.get(client) + 1));

  let stop = false;
  /** Sends numbered messages until the end, some at a time. Returns how many. */
  const write = async (client, to, name) => {
    const under = [];
    let n = 0;
    for (; !stop; n++) {
      under.push(client.send(to, `${name} ${n}`));
      if (under.length >= 4) await under.shift();
    }
    await Promise.all(under);
    return n;
  };
  const writing = Promise.all([write(alice, toBob, 'alice'), write(phone, toAlice, 'phone'), write(laptop, toAlice, 'laptop')]);
  writing.catch(() => {});

  /** Waits until each client is connected and has received more. */
  const flows = () => {
    const before = clients.map(({ inbox }) => inbox.length);
    const grown = () => clients.every(({ inbox, state }, i) => state === 'connected' && inbox.length >= before[i] + BETWEEN);
    return until(grown, () => `messages arrive again: ${clients.map(({ inbox, states }) => `${inbox.length} ${states.slice(-3)}`)}`);
  };
  await flows();
  for (let round = 0; round < ROUNDS; round++) {
    for (const node of nodes) {
      await node.end('SIGTERM');
      assert.equal(node.process.exitCode, 0);
      await flows();
      await node.restart();
      await flows();
    }
  }
  for (const node of nodes) {
    await node.kill();
    await flows();
    await node.restart();
    await flows();
  }
  stop = true;
  const [fromAlice, fromPhone, fromLaptop] = await writing;
  await until(() => alice.inbox.length >= fromPhone + fromLaptop && phone.inbox.length >= fromAlice && laptop.inbox.length >= fromAlice);

  const numbered = (name, count) => Array.from({ length: count }, (_, i) => `${name} ${i}`);
  const from = (client, name) => client.inbox.filter((text) => text.startsWith(`${name} `));
  assert.deepEqual(from(alice, 'phone'), numbered('phone', fromPhone));
  assert.deepEqual(from(alice, 'laptop'), numbered('laptop', fromLaptop));
  for (const device of [phone, laptop]) assert.deepEqual(device.inbox, numbered('alice', fromAlice));
  assert.equal(alice.inbox.length, fromPhone + fromLaptop);
  for (const client of clients) {
    assert.deepEqual(client.problems, []);
    assert.deepEqual(await client.pending(), []);
    // A node that stops has told its clients; after the first restart of all, each client is on the other node.
    assert(drained.get(client) >= 2 * ROUNDS - 1, `it was drained ${drained.get(client)} times`);
  }
  const { one_time } = await alice.request('keys.status');
  assert.equal(one_time, 98, 'each device of Bob has taken one key');
  console.log(`${fromAlice + fromPhone + fromLaptop} messages`);
});

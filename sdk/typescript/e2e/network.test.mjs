// Bad networks and the life of a device, over a real server.

import assert from 'node:assert/strict';
import { cpSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { msgpack } from '@sealwire/client/msgpack';
import { fileStorage } from '@sealwire/client/node';
import { seeded } from '../test-support/adapter-contract.mjs';
import { Proxy } from '../test-support/proxy.mjs';
import { Server, skip } from '../test-support/server.mjs';
import { closeClients, newSeed, openClient, until } from './support.mjs';

let server;
let dir;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'sealwire-network-'));
  if (!skip) server = await Server.start();
});
const proxies = [];
after(async () => {
  await Promise.all(proxies.map((proxy) => proxy.stop()));
  await closeClients();
  await server?.stop();
  await rm(dir, { recursive: true, force: true });
});

const open = (options) => openClient(server.url, options);

test('cut, half-open, delayed and slow connections', { skip }, async () => {
  const random = seeded(newSeed());
  for (let i = 0; i < 2; i++) proxies.push(await Proxy.start(server.port));
  const [alice, bob] = [open({ url: proxies[0].url, timeoutMs: 1500 }), open({ url: proxies[1].url, timeoutMs: 1500, codec: msgpack })];
  await server.signIn(alice, 'alice@network.example');
  await server.signIn(bob, 'bob@network.example');
  const COUNT = 150;
  let sent = 0;
  const write = async (client, to, name) => {
    const under = [];
    for (let i = 0; i < COUNT; i++) {
      under.push(client.send(to, `${name} ${i} ${'x'.repeat(Math.floor(random() * 3000))}`).then(() => sent++));
      await pause(random() * 120);
    }
    await Promise.all(under);
  };
  let done = false;
  const writing = Promise.all([write(alice, bob.account.userId, 'a'), write(bob, alice.account.userId, 'b')]).finally(() => (done = true));
  const seen = new Set();
  // Each connection is cut at least once; the rest is chance.
  for (const proxy of proxies) proxy.cut();
  await until(() => alice.states.includes('waiting') && bob.states.includes('waiting'));
  while (!done) {
    for (const proxy of proxies) {
      const choice = random();
      proxy.ms = 5 + random() * 100;
      proxy.mode = choice < 0.35 ? 'pass' : choice < 0.5 ? 'delay' : choice < 0.65 ? 'slow' : choice < 0.8 ? 'hang' : choice < 0.9 ? 'refuse' : 'cut';
      seen.add(proxy.mode);
      if (proxy.mode === 'cut') {
        proxy.mode = 'pass';
        proxy.cut();
      }
    }
    await pause(random() * 2500);
    // After a while without any confirmation, the network gets better.
    for (const proxy of proxies) if (proxy.mode === 'hang' || proxy.mode === 'refuse') proxy.mode = 'pass';
    await pause(random() * 1000);
  }
  await writing;
  for (const proxy of proxies) proxy.mode = 'pass';
  const numbers = (client) => client.inbox.map((text) => text.split(' ').slice(0, 2).join(' '));
  await until(() => alice.inbox.length >= COUNT && bob.inbox.length >= COUNT, 'all has arrived', 90_000).catch((error) => assert.fail(`${error.message}: ${sent} sent, ${alice.inbox.length} and ${bob.inbox.length} have arrived, ${alice.states.slice(-5)}, ${bob.states.slice(-5)}`));
  await pause(500);
  assert.deepEqual(numbers(bob), Array.from({ length: COUNT }, (_, i) => `a ${i}`));
  assert.deepEqual(numbers(alice), Array.from({ length: COUNT }, (_, i) => `b ${i}`));
  assert.deepEqual([...alice.problems, ...bob.problems], []);
  await Promise.all([alice.close(), bob.close()]);
  console.log([...seen].join(' '));
});

test('a server that is stopped and started again', { skip }, async () => {
  const [alice, bob] = [open(), open()];
  await server.signIn(alice, 'alice@drain.example');
  await server.signIn(bob, 'bob@drain.example');
  const draining = alice.once('server.draining');
  const sends = Array.from({ length: 20 }, (_, i) => alice.send(bob.account.userId, `${i}`));
  await server.end('SIGTERM');
  const { reconnect_in_ms } = await draining;
  const { status } = alice;
  assert.equal(status.state, 'waiting');
  assert(status.retryAt - Date.now() <= reconnect_in_ms);
  await server.restart();
  await Promise.all(sends);
  await until(() => bob.inbox.length === 20);
  assert.deepEqual(bob.inbox, Array.from({ length: 20 }, (_, i) => `${i}`));
});

test('a device that is revoked deletes its data, and the other one forgets it', { skip }, async () => {
  const [alice, phone, laptop] = [open(), open(), open()];
  await server.signIn(alice, 'alice@revoke.example');
  await server.signIn(phone, 'bob@revoke.example');
  await server.signIn(laptop, 'bob@revoke.example');
  const bob = phone.account.userId;
  assert.equal((await alice.send(bob, 'one')).stored, 2);
  const { deviceId } = laptop.account;
  await phone.request('devices.revoke', { device_id: deviceId });
  await until(() => laptop.state === 'signed-out');
  assert.equal(laptop.reason, 'device_revoked');
  assert.equal(laptop.account, null);
  assert.equal((await alice.send(bob, 'two')).stored, 1);
  await server.signIn(laptop, 'bob@revoke.example');
  assert.notEqual(laptop.account.deviceId, deviceId);
  assert.equal((await alice.send(bob, 'three')).stored, 2);
  await until(() => laptop.inbox.includes('three') && phone.inbox.length === 3);
  assert.deepEqual([...alice.problems, ...phone.problems], []);
});

test('signing in again proves the device, and keeps its keys and messages', { skip }, async () => {
  const [alice, erin] = [open(), open()];
  await server.signIn(alice, 'alice@again.example');
  await server.signIn(erin, 'erin@again.example');
  const { userId, deviceId } = erin.account;
  await alice.send(userId, 'one');
  await until(() => erin.inbox.length === 1);
  await erin.logout();
  await alice.send(userId, 'two');
  await server.signIn(erin, 'erin@again.example');
  assert.equal(erin.account.deviceId, deviceId);
  await until(() => erin.inbox.length === 2);
  await erin.send(alice.account.userId, 'still me');
  await until(() => alice.inbox.length === 1);
  assert.deepEqual([...alice.problems, ...erin.problems], []);
});

test('connections that earlier processes had begun come late, and the client comes back after each', { skip }, async () => {
  const path = join(dir, 'late');
  const proxy = await Proxy.start(server.port);
  proxies.push(proxy);
  const start = () => open({ url: proxy.url, storage: fileStorage(path) });
  const bob = open();
  await server.signIn(bob, 'bob@late.example');
  const first = start();
  await server.signIn(first, 'alice@late.example');
  await first.close();
  proxy.cut();
  proxy.mode = 'hold';
  for (let i = 1; i <= 3; i++) {
    const past = start();
    past.connect().catch(() => {});
    await until(() => proxy.held === i);
    await past.close();
  }
  proxy.mode = 'pass';
  const alice = start();
  let welcomes = 0;
  alice.on('welcome', () => {
    welcomes++;
    if (proxy.held > 0) proxy.release();
  });
  await alice.connect();
  const sent = alice.send(bob.account.userId, 'hello');
  await until(() => welcomes === 4 && alice.state === 'connected');
  await sent;
  await bob.send(alice.account.userId, 'hello Alice');
  await until(() => alice.inbox.length === 1 && bob.inbox.length === 1);
  assert(!alice.states.includes('displaced'), `${alice.states}`);
  assert.deepEqual([...alice.problems, ...bob.problems], []);
});

test('two clients with copies of one storage do not displace each other for ever', { skip }, async () => {
  const path = join(dir, 'displaced');
  const one = open({ storage: fileStorage(path) });
  await server.signIn(one, 'carol@displaced.example');
  await one.close();
  cpSync(path, `${path}-copy`);
  const [first, second] = [open({ storage: fileStorage(path) }), open({ storage: fileStorage(`${path}-copy`) })];
  await first.connect();
  await second.connect();
  await until(() => first.state === 'ended' || second.state === 'ended');
  const [loser, winner] = first.state === 'ended' ? [first, second] : [second, first];
  assert.equal(loser.reason, 'displaced');
  await until(() => winner.state === 'connected');
  const states = [...loser.states, ...winner.states];
  await winner.request('devices.list');
  await pause(1500);
  assert.deepEqual([...loser.states, ...winner.states], states);
});

test('after a restore from an older copy, the device can be written to again, and writes', { skip }, async () => {
  const path = join(dir, 'restore');
  const [alice, dave] = [open(), open({ storage: fileStorage(path) })];
  await server.signIn(alice, 'alice@restore.example');
  await server.signIn(dave, 'dave@restore.example');
  const { userId, deviceId } = dave.account;
  await alice.send(userId, 'one');
  await until(() => dave.inbox.length === 1);
  await dave.send(alice.account.userId, 'hello');
  await dave.close();
  cpSync(path, `${path}-backup`);
  // The life that will be lost: messages, and new keys.
  const lost = open({ storage: fileStorage(path) });
  await lost.connect();
  await alice.send(userId, 'two');
  await lost.send(alice.account.userId, 'from the lost life');
  for (let i = 0; i < 85; i++) await alice.request('keys.claim', { user_id: userId, claim_id: crypto.randomUUID(), device_ids: [deviceId] });
  await until(async () => (await lost.request('keys.status')).pool_version > 1);
  await until(() => lost.inbox.length === 1);
  await lost.close();

  const restored = open({ storage: fileStorage(`${path}-backup`) });
  let noticed = false;
  restored.on('restored', () => (noticed = true));
  await restored.connect();
  assert(noticed);
  const status = await restored.request('keys.status');
  assert.equal(status.one_time, 100);
  assert(status.signed_prekey.key_id > 10_000);
  // It opens new sessions in both directions.
  await restored.send(alice.account.userId, 'I am back');
  await until(() => alice.inbox.includes('I am back'));
  await alice.send(userId, 'welcome back');
  await until(() => restored.inbox.includes('welcome back'));
  assert.deepEqual(restored.problems, []);
  assert.deepEqual(alice.problems, []);
  // Only once.
  await restored.close();
  noticed = false;
  await restored.connect();
  assert(!noticed);
});

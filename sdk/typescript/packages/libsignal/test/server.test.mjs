// The adapter over a real server: a conversation, and one with another client that uses libsignal directly.

import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { msgpack } from '@sealwire/client/msgpack';
import { libsignalCrypto } from '@sealwire/libsignal';
import WebSocket from 'ws';
import { Server, skip } from '../../../test-support/server.mjs';
import { until } from '../../../test-support/until.mjs';

let server;
before(async () => !skip && (server = await Server.start()));
after(() => server?.stop());
const clients = [];
after(() => Promise.all(clients.map((client) => client.close())));

function open(options = {}) {
  const client = new SealwireClient({ url: server.url, storage: memoryStorage(), crypto: libsignalCrypto(), WebSocket, ...options });
  client.inbox = [];
  client.problems = [];
  client.on('message', (m) => client.inbox.push(m.text));
  for (const event of ['error', 'undecryptable', 'untrusted']) client.on(event, (data) => client.problems.push(data));
  clients.push(client);
  return client;
}

test('a conversation with a linked device, rotation and refill', { skip }, async () => {
  const [alice, phone] = [open(), open({ codec: msgpack })];
  await server.signIn(alice, 'alice@signal.example');
  await server.signIn(phone, 'bob@signal.example', { deviceName: 'phone' });
  const bob = phone.account.userId;
  await alice.send(bob, 'one');
  await until(() => phone.inbox.length === 1);
  const laptop = open();
  await server.signIn(laptop, 'bob@signal.example', { deviceName: 'laptop' });
  const sent = await alice.send(bob, 'two');
  assert.equal(sent.stored, 2);
  await until(() => phone.inbox.length === 2 && laptop.inbox.length === 1);
  for (const device of [laptop, phone]) await device.send(alice.account.userId, 'from bob');
  await laptop.send(bob, 'a copy');
  await until(() => alice.inbox.length === 2 && phone.inbox.length === 3);
  assert.deepEqual(phone.inbox, ['one', 'two', 'a copy']);
  assert.deepEqual([...alice.problems, ...phone.problems, ...laptop.problems], []);
  const before = await phone.request('keys.status');
  assert.equal(before.one_time, 98);
  // Other people take keys until the pool runs low: it is filled again.
  for (let i = 0; i < 79; i++) await alice.request('keys.claim', { user_id: bob, claim_id: crypto.randomUUID(), device_ids: [phone.account.deviceId] });
  await until(async () => (await phone.request('keys.status')).one_time > 90);
  await until(async () => (await phone.request('keys.status')).pq_one_time > 90);
});

test('signing in again on the same device keeps its keys and its messages', { skip }, async () => {
  const storage = memoryStorage();
  const [alice, bob] = [open(), open({ storage })];
  await server.signIn(alice, 'a2@signal.example');
  await server.signIn(bob, 'b2@signal.example');
  const { userId, deviceId } = bob.account;
  await bob.logout();
  await alice.send(userId, 'while logged out');
  await server.signIn(bob, 'b2@signal.example');
  assert.equal(bob.account.deviceId, deviceId);
  await until(() => bob.inbox.length === 1);
  assert.deepEqual(bob.inbox, ['while logged out']);
});

const other = new URL('../../../../../tests/clients/client_device.mjs', import.meta.url);
const installed = existsSync(new URL('node_modules/@signalapp', other)) || existsSync(new URL('../../../../../node_modules/@signalapp', import.meta.url));

test('a conversation with the client of tests/clients', { skip: skip || (!installed && 'tests/clients is not installed: npm ci there') }, async () => {
  const { Device, MSGPACK } = await import(other);
  const harness = { url: server.url, mailDir: `${server.dir}/mail` };
  const bob = await Device.signIn(harness, 'bob.direct', MSGPACK);
  await bob.publish(20);
  const alice = open({ padding: 0 });
  await server.signIn(alice, 'alice.direct@clients.example');
  for (let i = 0; i < 5; i++) await alice.send(bob.user, `to bob ${i}`);
  assert.deepEqual(await bob.receive(5), Array.from({ length: 5 }, (_, i) => `to bob ${i}`));
  await bob.send(alice.account.userId, 'to alice 0', 'to alice 1');
  await until(() => alice.inbox.length === 2);
  await alice.send(bob.user, 'last');
  assert.deepEqual(await bob.receive(1), ['last']);
  assert.deepEqual(alice.inbox, ['to alice 0', 'to alice 1']);
  assert.deepEqual(alice.problems, []);
  await bob.socket.close();
});

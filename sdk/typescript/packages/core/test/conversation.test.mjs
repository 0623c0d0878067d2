// A conversation over a real server, with storage in memory.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { msgpack } from '@sealwire/client/msgpack';
import WebSocket from 'ws';
import { Server, skip } from '../../../test-support/server.mjs';
import { toyCrypto } from '../../../test-support/toy.mjs';
import { until } from '../../../test-support/until.mjs';

let server;
before(async () => !skip && (server = await Server.start()));
after(() => server?.stop());

const clients = [];
after(() => Promise.all(clients.map((client) => client.close())));

function open(storage = memoryStorage(), options = {}) {
  const client = new SealwireClient({ url: server.url, storage, crypto: toyCrypto(), WebSocket, ...options });
  const errors = [];
  client.on('error', (error) => errors.push(error));
  client.errors = errors;
  client.inbox = [];
  client.on('message', (m) => client.inbox.push(m.text));
  clients.push(client);
  return client;
}

test('two people write to each other', { skip }, async () => {
  const [alice, bob] = [open(), open(undefined, { codec: msgpack })];
  assert.equal(alice.state, 'ended');
  const { account } = await server.signIn(alice, 'alice@example.org', { deviceName: 'phone' });
  assert.equal(alice.state, 'connected');
  assert.deepEqual(alice.account, account);
  await server.signIn(bob, 'bob@example.org');

  const bobId = await alice.findUser('bob@example.org');
  assert.equal(bobId, bob.account.userId);
  assert.equal(await alice.findUser('nobody@example.org'), null);

  const sent = await alice.send(bobId, 'hello');
  assert.equal(sent.stored, 1);
  assert.deepEqual(sent.undelivered, []);
  await until(() => bob.inbox.length === 1);
  await bob.send(account.userId, 'hello Alice');
  await alice.send(bobId, 'how are you?');
  await until(() => bob.inbox.length === 2 && alice.inbox.length === 1);
  assert.deepEqual(bob.inbox, ['hello', 'how are you?']);
  assert.deepEqual(alice.inbox, ['hello Alice']);
  const { one_time } = await bob.request('keys.status');
  assert.equal(one_time, 99);
  const { devices } = await alice.request('devices.list');
  assert.equal(devices[0].name, 'phone');
  assert.deepEqual([alice.errors, bob.errors], [[], []]);
});

test('many messages keep their order', { skip }, async () => {
  const [alice, bob] = [open(), open()];
  await server.signIn(alice, 'a2@example.org');
  await server.signIn(bob, 'b2@example.org');
  const texts = Array.from({ length: 100 }, (_, i) => `message ${i}`);
  await Promise.all(texts.map((text) => alice.send(bob.account.userId, text)));
  await until(() => bob.inbox.length === 100);
  assert.deepEqual(bob.inbox, texts);
  assert.deepEqual(await alice.pending(), []);
});

test('messages wait while the client is offline, also over a restart', { skip }, async () => {
  const storage = memoryStorage();
  const [alice, bob] = [open(storage), open()];
  await server.signIn(alice, 'a3@example.org');
  await server.signIn(bob, 'b3@example.org');
  const to = bob.account.userId;
  await server.kill();
  const sends = [alice.send(to, 'one', { messageId: '11111111-1111-4111-8111-111111111111' }), alice.send(to, 'two')];
  await until(async () => (await alice.pending()).length === 2);
  await alice.close();
  await server.restart();
  const again = open(storage);
  await again.connect();
  await until(() => bob.inbox.length === 2);
  assert.deepEqual(bob.inbox, ['one', 'two']);
  // The same id again: it was sent, and is not sent a second time.
  const sent = await again.send(to, 'one', { messageId: '11111111-1111-4111-8111-111111111111' });
  assert.equal(sent.stored, 1);
  await again.send(to, 'three');
  await until(() => bob.inbox.length === 3);
  assert.deepEqual(bob.inbox, ['one', 'two', 'three']);
  void sends;
});

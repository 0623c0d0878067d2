// Push wake-ups: registering, confirming, and what is remembered. Against a server that does what the test says.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { withPush } from '@sealwire/client/push';
import WebSocket from 'ws';
import { Fake, refusal } from '../../../test-support/fake.mjs';
import { toyCrypto } from '../../../test-support/toy.mjs';

const KEY = 'BEl62iUYgUivxIkv69yViEuiBIa-Ib9-SkvMeAtA3LFgDzkrxZJjSgSnfckjBJuBkr3qBUYIHBQFLXYp5Nksh8U';
const OTHER_KEY = 'BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4';
const TARGET = { kind: 'webpush', endpoint: 'https://push.example.net/a', p256dh: 'p', auth: 'a' };

let fake;
let client;
let storage;

beforeEach(async () => {
  fake = await Fake.start();
  fake.push = { state: 'none', vapid_public_key: KEY, kinds: ['webpush', 'fcm'] };
  fake.ops['push.register'] = () => ({ state: (fake.push.state = 'unconfirmed') });
  fake.ops['push.confirm'] = () => ({ state: (fake.push.state = 'active') });
  fake.ops['push.test'] = fake.ops['push.remove'] = () => ({});
  storage = memoryStorage();
  client = open();
});
afterEach(async () => {
  await client.close();
  await fake.stop();
});

function open() {
  const opened = new SealwireClient({ url: fake.url, storage, crypto: toyCrypto(), WebSocket, random: () => 0.02 });
  opened.on('error', () => {});
  return withPush(opened);
}

async function signIn() {
  await client.signIn.request('alice@example.org');
  await client.signIn.verify('12345678');
}

/** Closes the client, and opens another one on the same storage, as after a restart of the app. */
async function restart() {
  await client.close();
  client = open();
  await client.connect();
}

/** A service worker whose push service gives each subscription a new endpoint. */
class Worker {
  subscription = null;
  subscribed = 0;
  pushManager = {
    getSubscription: async () => this.subscription,
    subscribe: async ({ userVisibleOnly, applicationServerKey }) => {
      assert(userVisibleOnly);
      const endpoint = `https://push.example.net/${++this.subscribed}`;
      this.subscription = {
        options: { applicationServerKey: Uint8Array.from(Buffer.from(applicationServerKey, 'base64url')).buffer },
        toJSON: () => ({ endpoint, expirationTime: null, keys: { p256dh: 'p', auth: 'a' } }),
        unsubscribe: async () => {
          this.subscription = null;
          return true;
        },
      };
      return this.subscription;
    },
  };
}

test('a browser subscribes with the key of the server, registers, and confirms what was pushed', async () => {
  await signIn();
  const worker = new Worker();
  assert.deepEqual(await client.push.status(), { state: 'none', kinds: ['webpush', 'fcm'], vapidPublicKey: KEY });
  assert.equal(await client.push.subscribe(worker), 'unconfirmed');
  assert.deepEqual(fake.of('push.register'), [{ ...TARGET, endpoint: 'https://push.example.net/1' }]);
  assert.equal(await client.push.receive({ sealwire: 'confirm', nonce: 'n' }), 'confirmed');
  assert.deepEqual(fake.of('push.confirm'), [{ nonce: 'n' }]);
  assert.equal((await client.push.status()).state, 'active');
});

test('what the server knows is not registered again, also after a restart', async () => {
  await signIn();
  const worker = new Worker();
  await client.push.subscribe(worker);
  await restart();
  assert.equal(await client.push.subscribe(worker), 'unconfirmed');
  await client.push.receive({ sealwire: 'confirm', nonce: 'n' });
  await restart();
  assert.equal(await client.push.subscribe(worker), 'active');
  assert.deepEqual([fake.of('push.register').length, worker.subscribed], [1, 1]);
});

test('a target that the server has removed is registered again', async () => {
  await signIn();
  await client.push.register(TARGET);
  await client.push.receive({ sealwire: 'confirm', nonce: 'n' });
  fake.push.state = 'none';
  await restart();
  assert.equal(await client.push.register(TARGET), 'unconfirmed');
  assert.equal(fake.of('push.register').length, 2);
});

test('another target, or another key of the server, is registered', async () => {
  await signIn();
  const worker = new Worker();
  await client.push.subscribe(worker);
  fake.push.vapid_public_key = OTHER_KEY;
  await restart();
  await client.push.subscribe(worker);
  assert.deepEqual(fake.of('push.register').map(({ endpoint }) => endpoint), ['https://push.example.net/1', 'https://push.example.net/2']);
  await client.push.register({ kind: 'fcm', token: 't' });
  assert.deepEqual(fake.of('push.register')[2], { kind: 'fcm', token: 't' });
});

test('a registration whose nonce cannot come any more is repeated', async (t) => {
  await signIn();
  await client.push.register(TARGET);
  const now = Date.now();
  t.mock.method(Date, 'now', () => now + 600_001);
  assert.equal(await client.push.register(TARGET), 'unconfirmed');
  assert.equal(fake.of('push.register').length, 2);
});

test('kinds that the server does not send to are not registered', async () => {
  fake.push.kinds = ['apns'];
  await signIn();
  const worker = new Worker();
  assert.equal(await client.push.subscribe(worker), 'none');
  assert.equal(await client.push.register(TARGET), 'none');
  assert.deepEqual([worker.subscribed, fake.of('push.register').length], [0, 0]);
});

test('a server without push has no kinds', async () => {
  fake.push = undefined;
  await signIn();
  assert.deepEqual(await client.push.status(), { state: 'none', kinds: [], vapidPublicKey: null });
  assert.equal(await client.push.subscribe(new Worker()), 'none');
});

test('the status waits for the first connection', async () => {
  const status = client.push.status();
  await assert.rejects(client.push.status({ signal: AbortSignal.abort() }), { name: 'AbortError' });
  await signIn();
  assert.equal((await status).vapidPublicKey, KEY);
});

test('contents that mean nothing are ignored, and so are old nonces', async () => {
  await signIn();
  assert.equal(await client.push.receive({ sealwire: 'wake' }), 'wake');
  for (const content of [null, undefined, 'wake', {}, { sealwire: 'later' }]) assert.equal(await client.push.receive(content), null);
  assert.equal(fake.of('push.confirm').length, 0);
  fake.ops['push.confirm'] = () => {
    throw refusal('not_found');
  };
  assert.equal(await client.push.receive({ sealwire: 'confirm', nonce: 'old' }), null);
  fake.ops['push.confirm'] = () => {
    throw refusal('bad_request');
  };
  await assert.rejects(client.push.receive({ sealwire: 'confirm', nonce: 1 }), { code: 'bad_request' });
});

test('wake-ups can be tested and ended', async () => {
  await signIn();
  const worker = new Worker();
  await client.push.subscribe(worker);
  await client.push.test();
  await client.push.remove(worker);
  assert.deepEqual([fake.of('push.test').length, fake.of('push.remove').length], [1, 1]);
  assert.deepEqual([worker.subscription, (await client.push.status()).state], [null, 'none']);
  assert.equal(await client.push.subscribe(worker), 'unconfirmed');
});

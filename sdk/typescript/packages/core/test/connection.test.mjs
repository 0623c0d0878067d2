// The state of the connection: closes, refusals, draining, renewal. Against a server that does what the test says.

import assert from 'node:assert/strict';
import { afterEach, beforeEach, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import WebSocket from 'ws';
import { Fake, refusal, SILENCE } from '../../../test-support/fake.mjs';
import { toyCrypto } from '../../../test-support/toy.mjs';
import { until } from '../../../test-support/until.mjs';

let fake;
let client;
let states;

beforeEach(async () => {
  fake = await Fake.start();
  client = open();
});
afterEach(async () => {
  await client.close();
  await fake.stop();
});

function open(options = {}) {
  states = [];
  const opened = new SealwireClient({
    url: fake.url, storage: memoryStorage(), crypto: toyCrypto(), WebSocket, random: () => 0.02, ...options,
  });
  opened.on('state', ({ state, reason }) => states.push(reason ? `${state}: ${reason}` : state));
  opened.on('error', () => {});
  return opened;
}

async function signIn() {
  await client.signIn.request('alice@example.org');
  await client.signIn.verify('12345678');
}

test('a new client is signed out once it is started', async () => {
  await assert.rejects(client.connect(), { name: 'StateError', code: 'signed_out', retryable: false });
  assert.equal(client.state, 'signed-out');
  assert.equal(client.reason, null);
  assert.equal(client.account, null);
});

test('signing in connects and publishes a complete set', async () => {
  await signIn();
  assert.equal(client.state, 'connected');
  const [first] = fake.of('keys.publish');
  assert.equal(first.suite, 'ed25519-x3dh');
  assert.equal(first.identity_key, await client.identityKey());
  assert.equal(first.one_time_prekeys.length, 100);
  assert(first.signed_prekey.signature);
});

for (const code of [4000, 4001, 4002, 4003, 4004, 4321, 1001, 1011, 1012]) {
  test(`after a close with ${code} it connects again`, async () => {
    await signIn();
    fake.sockets.at(-1).close(code);
    await client.once('welcome');
    assert.equal(fake.upgrades, 2);
    assert.equal(client.state, 'connected');
  });
}

test('after a connection that broke it connects again, with longer waits after each failure', async () => {
  await client.close();
  client = open({ random: () => 0.25 });
  await signIn();
  const waits = [];
  client.on('state', ({ state, retryAt }) => state === 'waiting' && waits.push(retryAt - Date.now()));
  fake.upgrade = () => (fake.upgrades < 5 ? { status: 502 } : null);
  fake.sockets.at(-1).drop();
  await client.once('welcome');
  assert.equal(waits.length, 4);
  for (const [i, expected] of [250, 500, 1000, 2000].entries()) assert(Math.abs(waits[i] - expected) < 30, `${waits}`);
});

for (const [code, state, reason] of [
  [4503, 'ended', 'displaced'],
  [4504, 'ended', 'protocol_error'],
  [4505, 'ended', 'frame_too_large'],
  [4999, 'ended', 'closed_4999'],
  [4500, 'signed-out', 'logged_out'],
  [4501, 'signed-out', 'expired'],
]) {
  test(`a close with ${code} ends the connection and keeps the data`, async () => {
    await signIn();
    const identity = await client.identityKey();
    fake.onSocket = (socket) => socket.close(code);
    fake.sockets.at(-1).close(code);
    await client.once('state', { fits: (change) => change.state === state });
    fake.onSocket = undefined;
    assert.equal(client.reason, reason);
    assert.equal(client.account.email, 'alice@example.org');
    assert.equal(await client.identityKey(), identity);
    await assert.rejects(client.connect({ signal: AbortSignal.timeout(2000) }), state === 'signed-out' ? { code: 'signed_out' } : () => true)
      .catch((error) => assert.equal(client.state, 'connected', error));
  });
}

for (const [code, reason] of [[4502, 'device_revoked'], [4506, 'account_deleted']]) {
  test(`a close with ${code} deletes the data`, async () => {
    await signIn();
    const identity = await client.identityKey();
    await client.data.write({ note: 'secret' });
    fake.sockets.at(-1).send('session.revoked', { reason });
    fake.sockets.at(-1).close(code);
    await client.once('state', { fits: ({ state }) => state === 'signed-out' });
    assert.equal(client.reason, reason);
    assert.equal(client.account, null);
    assert.equal(await client.data.get('note'), undefined);
    assert.notEqual(await client.identityKey(), identity);
  });
}

test('displaced soon after each welcome by connections of closed tabs, it comes back', async () => {
  await signIn();
  fake.onSocket = (socket) => fake.upgrades <= 5 && socket.close(4503);
  fake.sockets.at(-1).close(4503);
  await until(() => fake.upgrades === 6 && client.state === 'connected');
  await client.request('devices.list');
});

test('displaced again and again, it ends, and comes back by connect()', async () => {
  await signIn();
  fake.onSocket = (socket) => socket.close(4503);
  fake.sockets.at(-1).close(4503);
  await until(() => client.state === 'ended');
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.equal(fake.upgrades, 6);
  assert.equal(client.reason, 'displaced');
  fake.onSocket = undefined;
  await client.connect();
  assert.equal(fake.upgrades, 7);
});

test('while the server drains, it waits as long as the server says', async () => {
  await signIn();
  fake.sockets.at(-1).send('server.draining', { reconnect_in_ms: 300 });
  fake.sockets.at(-1).close(4000);
  const { retryAt } = await client.once('state', { fits: ({ state }) => state === 'waiting' });
  assert(Math.abs(retryAt - Date.now() - 300) < 50);
  await client.once('welcome');
});

test('a refusal in a browser says how long to wait', async () => {
  await signIn();
  fake.upgrade = () => fake.upgrades < 3 ? { error: refusal('rate_limited', { retryable: true, retry_after_ms: 400 }), close: 4004 } : null;
  fake.sockets.at(-1).drop();
  const change = await client.once('state', { fits: ({ error }) => error !== null });
  assert.equal(change.error.code, 'rate_limited');
  assert(change.retryAt - Date.now() >= 350);
  await client.once('welcome');
});

test('an upgrade refused over HTTP is explained by GET /v1/auth/session', async () => {
  await signIn();
  fake.upgrade = () => ({ status: 429 });
  fake.http['GET /v1/auth/session'] = () => [429, refusal('rate_limited', { retryable: true, retry_after_ms: 12_000 }), { 'retry-after': '12' }];
  fake.sockets.at(-1).drop();
  const change = await client.once('state', { fits: ({ error }) => error !== null });
  assert(change.retryAt - Date.now() > 11_000);
});

for (const [reason, wiped] of [
  ['unknown', false], ['expired', false], ['logged_out', false], ['superseded', false], ['device_revoked', true], ['account_deleted', true],
]) {
  for (const how of ['browser', 'http']) {
    test(`a token refused as ${reason} (${how})`, async () => {
      await signIn();
      const error = refusal('unauthorized', { details: { reason } });
      fake.upgrade = () => (how === 'browser' ? { error, close: 4507 } : { status: 401 });
      fake.http['GET /v1/auth/session'] = () => [401, error];
      fake.sockets.at(-1).drop();
      await client.once('state', { fits: ({ state }) => state === 'signed-out' });
      assert.equal(client.reason, reason);
      assert.equal(client.account === null, wiped);
    });
  }
}

test('signing in again names the device and proves its identity', async () => {
  await signIn();
  fake.sockets.at(-1).close(4501);
  await client.once('state', { fits: ({ state }) => state === 'signed-out' });
  await signIn();
  const [first, second] = fake.calls.filter(({ path }) => path === '/v1/auth/verify').map(({ body }) => body);
  assert.equal(first.device.id, undefined);
  assert.equal(second.device.id, Fake.DEVICE);
  const { createPublicKey, verify } = await import('node:crypto');
  const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: Buffer.from(await client.identityKey(), 'base64').toString('base64url') }, format: 'jwk' });
  const hex = (id) => Buffer.from(id.replaceAll('-', ''), 'hex');
  const text = Buffer.concat([Buffer.from('sealwire-device-proof-v1'), hex(second.challenge_id), hex(Fake.DEVICE)]);
  assert.equal(text.length, 56);
  assert(verify(null, text, key, Buffer.from(second.device.proof, 'base64')));
});

test('the data of another account is not mixed with a new one', async () => {
  await signIn();
  fake.sockets.at(-1).close(4501);
  await client.once('state', { fits: ({ state }) => state === 'signed-out' });
  fake.http['POST /v1/auth/verify'] = (body) => body.device.id ? [404, refusal('unknown_device')] : [201, fake.session()];
  await client.signIn.request('bob@example.org');
  await assert.rejects(client.signIn.verify('12345678'), { code: 'other_account' });
  await client.wipe();
  fake.keys = { ...fake.keys, identity_key: null, suite: null };
  await client.signIn.request('bob@example.org');
  await client.signIn.verify('12345678');
  assert.equal(client.account.email, 'bob@example.org');
});

test('a session is renewed when less than half of its life is left, and the new token presented', async () => {
  const storage = memoryStorage();
  await client.close();
  client = open({ storage });
  fake.sessionMs = 1000_000;
  await signIn();
  assert.equal(fake.of('session.renew').length, 0);
  fake.sessionMs = 400_000;
  fake.sockets.at(-1).drop();
  await client.once('welcome');
  await until(async () => (await storage.get('account')).tokens.length === 1 && (await storage.get('account')).tokens[0].token === 'token-2');
  const presented = fake.calls.find(({ method, path, token }) => method === 'GET' && path === '/v1/auth/session' && token === 'token-2');
  assert(presented);
  fake.sockets.at(-1).drop();
  await client.once('welcome');
  assert.equal(fake.sockets[0].token, 'token-2');
});

test('if the renewed token was lost by the server, the old one is used', async () => {
  const storage = memoryStorage();
  await client.close();
  client = open({ storage });
  fake.sessionMs = 1000_000;
  await signIn();
  fake.sessionMs = 400_000;
  // The presentation fails, and then the renewed token is not valid.
  fake.http['GET /v1/auth/session'] = (_, token) => (token === 'token-2' ? [503, refusal('unavailable', { retryable: true })] : [200, fake.session()]);
  fake.sockets.at(-1).drop();
  await client.once('welcome');
  await until(async () => (await storage.get('account')).tokens.length === 2);
  fake.upgrade = (token) => (token === 'token-2' ? { error: refusal('unauthorized', { details: { reason: 'superseded' } }), close: 4507 } : null);
  fake.sockets.at(-1).drop();
  await client.once('welcome');
  assert.equal(fake.sockets[0].token, 'token-1');
});

test('a clock that is wrong does not matter', async () => {
  fake.clockMs = 400 * 86_400_000;
  await signIn();
  await client.request('devices.list');
  assert.equal(fake.of('session.renew').length, 0);
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(fake.of('session.renew').length, 0);
  assert.equal(fake.of('keys.publish').length, 1);
});

test('a request is repeated over the next connection', async () => {
  await signIn();
  fake.ops['devices.list'] = (_, socket) => {
    fake.ops['devices.list'] = undefined;
    socket.drop();
    return SILENCE;
  };
  assert.deepEqual(await client.request('devices.list'), { devices: [] });
  assert.equal(fake.of('devices.list').length, 2);
});

test('a revocation whose reply was lost has succeeded if the repeat does not find the device', async () => {
  await signIn();
  fake.ops['devices.revoke'] = (_, socket) => {
    fake.ops['devices.revoke'] = () => { throw refusal('unknown_device'); };
    socket.drop();
    return SILENCE;
  };
  assert.deepEqual(await client.request('devices.revoke', { device_id: Fake.DEVICE }), {});
  await assert.rejects(client.request('devices.revoke', { device_id: Fake.DEVICE }), { name: 'ServerError', code: 'unknown_device' });
});

test('a request ends after its time and when it is aborted', async () => {
  await signIn();
  fake.ops['devices.list'] = () => SILENCE;
  await assert.rejects(client.request('devices.list', {}, { timeoutMs: 50 }), { name: 'ConnectionError', code: 'timeout', retryable: true });
  await assert.rejects(client.request('devices.list', {}, { signal: AbortSignal.timeout(50) }), { name: 'TimeoutError' });
  await assert.rejects(client.request('devices.list', {}, { signal: AbortSignal.abort() }), { name: 'AbortError' });
  assert.equal(client.state, 'connected');
});

test('a connection on which nothing is answered is replaced', async () => {
  await client.close();
  client = open({ timeoutMs: 200 });
  await signIn();
  fake.ops['devices.list'] = () => { fake.ops['devices.list'] = undefined; return SILENCE; };
  assert.deepEqual(await client.request('devices.list', {}, { timeoutMs: 5000 }), { devices: [] });
  assert.equal(fake.upgrades, 2);
});

test('events of a newer server are passed on under their names', async () => {
  await signIn();
  const unknown = client.once('moon.phase');
  fake.sockets.at(-1).send('moon.phase', { phase: 'full' });
  assert.deepEqual(await unknown, { phase: 'full' });
  await client.request('devices.list');
  assert.equal(client.state, 'connected');
});

test('another identity key on the server ends the client', async () => {
  fake.keys = { ...fake.keys, identity_key: 'c29tZWJvZHkgZWxzZQ==', suite: 'ed25519-x3dh' };
  await assert.rejects(signIn(), { code: 'ended' });
  assert.equal(client.reason, 'identity_conflict');
});

test('logout ends the session and keeps the device', async () => {
  await signIn();
  await client.logout();
  assert.equal(client.state, 'signed-out');
  assert.equal(client.reason, 'logged_out');
  assert.deepEqual(fake.calls.at(-1), { method: 'DELETE', path: '/v1/auth/session', body: null, token: 'token-1' });
  assert.equal(client.account.deviceId, Fake.DEVICE);
});

test('no more requests are under way than the server allows', async () => {
  await signIn();
  let open = 0;
  let most = 0;
  fake.ops['devices.list'] = async () => {
    most = Math.max(most, ++open);
    await new Promise((resolve) => setTimeout(resolve, 5));
    open--;
    return { devices: [] };
  };
  await Promise.all(Array.from({ length: 300 }, () => client.request('devices.list')));
  assert.equal(most, 64);
});

test('requests that are aborted while they wait for a free place do not stop the others', async () => {
  await signIn();
  let open;
  const gate = new Promise((resolve) => (open = resolve));
  fake.ops['devices.list'] = () => gate;
  const first = Array.from({ length: 64 }, () => client.request('devices.list'));
  await until(() => fake.of('devices.list').length === 64);
  const controllers = Array.from({ length: 100 }, () => new AbortController());
  const aborted = controllers.map(({ signal }) => client.request('devices.list', {}, { signal }));
  const last = client.request('keys.status');
  await new Promise((resolve) => setTimeout(resolve, 50));
  for (const controller of controllers) controller.abort();
  for (const request of aborted) await assert.rejects(request, { name: 'AbortError' });
  open({ devices: [] });
  await Promise.all([...first, last]);
});

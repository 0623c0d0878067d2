// Signing in, staying signed in, and being refused, over a real server.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { after, before, test } from 'node:test';
import { memoryStorage } from '@sealwire/client';
import WebSocket from 'ws';
import { Server, skip } from '../test-support/server.mjs';
import { closeClients, openClient, until } from './support.mjs';

const ORIGIN = 'https://app.example';
let server;
const servers = [];
async function start(env) {
  const server = await Server.start({ SEALWIRE__SERVER__ALLOWED_ORIGINS: ORIGIN, SEALWIRE__AUTH__DEVICE_AGE_HOURS: '0', ...env });
  servers.push(server);
  return server;
}
before(async () => !skip && (server = await start()));
after(async () => {
  await closeClients();
  await Promise.all(servers.map((server) => server.stop()));
});

/** A client whose HTTP requests are noted in `calls`. */
function open({ url = server.url, ...options } = {}) {
  const calls = [];
  const client = openClient(url, {
    fetch: async (input, init) => {
      const response = await fetch(input, init);
      const answer = await response.clone().json().catch(() => null);
      calls.push({ path: new URL(input).pathname, status: response.status, body: JSON.parse(init.body ?? 'null'), answer });
      return response;
    },
    ...options,
  });
  client.calls = (path) => calls.filter((call) => call.path === path);
  return client;
}

/** The `WebSocket` of a page: it names its origin, and sees nothing of a response that is no upgrade. */
class PageSocket extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { origin: ORIGIN });
  }
}

const statuses = (calls) => calls.map(({ status }) => status);

// --- Proofs of work ------------------------------------------------------------------------------------------------

test('a server that asks everybody for a proof of work gets it', { skip }, async () => {
  const server = await start({ SEALWIRE__LIMITS__SIGNUP_PROOF_BITS: '14' });
  const client = open({ url: server.url });
  await server.signIn(client, 'alice@proof.example');
  assert.equal(client.state, 'connected');
  const [refused, served] = client.calls('/v1/auth/otp');
  assert.deepEqual([refused.status, served.status], [429, 202]);
  const { algorithm, bits, salt } = refused.answer.error.details.proof;
  assert.deepEqual([algorithm, bits], ['sha256-leading-zeros', 14]);
  assert.equal(served.body.proof.salt, salt);
  // From here on the network is known, and needs none.
  await client.logout();
  await server.signIn(client, 'alice@proof.example');
  assert.deepEqual(statuses(client.calls('/v1/auth/otp')), [429, 202, 202]);
});

test('beyond the limits of codes and of guesses, a proof of work is made', { skip }, async () => {
  const server = await start({ SEALWIRE__LIMITS__OTP_PER_EMAIL_HOUR: '1', SEALWIRE__LIMITS__VERIFY_PER_NETWORK_MINUTE: '1' });
  const client = open({ url: server.url });
  await server.code('bob@proof.example', () => client.signIn.request('bob@proof.example'));
  const code = await server.code('bob@proof.example', () => client.signIn.request('bob@proof.example'));
  assert.deepEqual(statuses(client.calls('/v1/auth/otp')), [202, 429, 202]);
  const wrong = code === '00000000' ? '11111111' : '00000000';
  await assert.rejects(client.signIn.verify(wrong), { name: 'ServerError', code: 'invalid_code' });
  await client.signIn.verify(code);
  assert.equal(client.state, 'connected');
  const verify = client.calls('/v1/auth/verify');
  assert.deepEqual(statuses(verify), [401, 429, 201]);
  assert.equal(verify[2].body.proof.salt, verify[1].answer.error.details.proof.salt);
});

test('making a proof of work can be aborted', { skip }, async () => {
  const server = await start({ SEALWIRE__LIMITS__SIGNUP_PROOF_BITS: '24' });
  const client = open({ url: server.url });
  const controller = new AbortController();
  const request = client.signIn.request('carol@proof.example', { signal: controller.signal });
  await until(() => client.calls('/v1/auth/otp').length === 1);
  controller.abort();
  await assert.rejects(request, { name: 'AbortError' });
  assert.deepEqual(await server.mails(), []);
});

// --- Approval under a lock -----------------------------------------------------------------------------------------

/** A person with a phone, whose account is locked. */
async function locked(email) {
  const phone = open();
  await server.signIn(phone, email, { deviceName: 'phone' });
  const key = randomBytes(32);
  await phone.request('account.lock', { recovery_key_hash: createHash('sha256').update(key).digest('base64') });
  return { phone, recoveryKey: key.toString('base64') };
}

/** Asks for a new device. Returns the number that it shows, and the request as the phone gets it. */
async function ask(phone, laptop, email) {
  const requested = phone.once('devices.requested');
  const { account, approval } = await server.signIn(laptop, email, { deviceName: 'laptop' });
  assert.equal(account, undefined);
  assert.match(approval.number, /^\d\d$/);
  const request = await requested;
  assert.equal(request.device_name, 'laptop');
  return { number: approval.number, request_id: request.request_id };
}

test('under a lock another device approves a new one, over restarts of the new device and of the server', { skip }, async () => {
  const email = 'frank@lock.example';
  const { phone } = await locked(email);
  const storage = memoryStorage();
  const before = open({ storage });
  const { number, request_id } = await ask(phone, before, email);
  await before.close();
  await server.kill();
  await server.restart();
  const laptop = open({ storage });
  assert.equal((await laptop.signIn.pending()).number, number);
  await until(() => phone.state === 'connected');
  const approved = laptop.signIn.approval();
  await until(() => laptop.calls('/v1/auth/approval').some(({ status }) => status === 202));
  await phone.request('devices.decide', { request_id, approve: true, number });
  assert.equal((await approved).userId, phone.account.userId);
  assert.equal(laptop.state, 'connected');
  assert.equal(await laptop.signIn.pending(), null);
  await laptop.send(phone.account.userId, 'from the laptop');
  await until(() => phone.inbox.includes('from the laptop'));
});

test('under a lock another device refuses a new one, also by a wrong number', { skip }, async () => {
  const email = 'grace@lock.example';
  const { phone } = await locked(email);
  for (const wrong of [false, true]) {
    const laptop = open();
    const { number, request_id } = await ask(phone, laptop, email);
    const decided = wrong
      ? phone.request('devices.decide', { request_id, approve: true, number: number === '00' ? '01' : '00' }).catch(({ code }) => code)
      : phone.request('devices.decide', { request_id, approve: false });
    assert.deepEqual(await decided, wrong ? 'denied' : {});
    await assert.rejects(laptop.signIn.approval(), { name: 'ServerError', code: 'denied' });
    assert.equal(await laptop.signIn.pending(), null);
    assert.equal(laptop.account, null);
  }
});

test('under a lock the recovery key needs no approval, and another key does not open it', { skip }, async () => {
  const email = 'heidi@lock.example';
  const { phone, recoveryKey } = await locked(email);
  const laptop = open();
  const code = await server.code(email, () => laptop.signIn.request(email));
  const other = randomBytes(32).toString('base64');
  await assert.rejects(laptop.signIn.verify(code, { recoveryKey: other }), { code: 'invalid_code' });
  const { account } = await laptop.signIn.verify(code, { recoveryKey });
  assert.equal(account.userId, phone.account.userId);
  assert.equal(laptop.state, 'connected');
});

// --- Tokens that are refused ---------------------------------------------------------------------------------------

const token = async (storage) => (await storage.get('account')).tokens[0].token;
const session = (server, token, method = 'GET') => fetch(`${server.url}/v1/auth/session`, { method, headers: { authorization: `Bearer ${token}` } });

/** Renews a session as another client would, and presents the new token. */
async function renew(server, token) {
  const ws = new WebSocket(`${server.url.replace('http', 'ws')}/v1/socket`, ['sealwire.v1.json', `sealwire.token.${token}`]);
  const renewed = await new Promise((resolve, reject) => {
    ws.on('error', reject);
    ws.on('open', () => ws.send(JSON.stringify({ id: 1, op: 'session.renew' })));
    ws.on('message', (data) => JSON.parse(data).id === 1 && resolve(JSON.parse(data).result.token));
  });
  ws.terminate();
  assert.equal((await session(server, renewed)).status, 200);
}

/** What ends a session while its client is closed: `(server, {storage, other, client, email})`. */
const ends = {
  async unknown(_, { storage }) {
    const account = await storage.get('account');
    account.tokens[0].token = 'A'.repeat(43);
    await storage.write(new Map([['account', account]]));
  },
  async expired(server, { storage }) {
    await until(async () => (await session(server, await token(storage))).status === 401);
  },
  logged_out: async (server, { storage }) => assert.equal((await session(server, await token(storage), 'DELETE')).status, 204),
  superseded: async (server, { storage }) => renew(server, await token(storage)),
  device_revoked: (_, { other, client }) => other.request('devices.revoke', { device_id: client.account.deviceId }),
  async account_deleted(server, { other, email }) {
    let challenge;
    const code = await server.code(email, async () => (challenge = await other.requestCode(email, 'delete')));
    await other.request('account.delete', { challenge_id: challenge.challenge_id, code });
  },
};

for (const [reason, end] of Object.entries(ends)) {
  for (const page of [true, false]) {
    test(`a token that is refused as ${reason}, ${page ? 'in a browser' : 'over HTTP'}`, { skip }, async () => {
      const ofTest = reason === 'expired' ? await start({ SEALWIRE__AUTH__SESSION_DAYS: '0.00003' }) : server;
      const email = `${reason}-${page}@refused.example`.replaceAll('_', '-');
      const storage = memoryStorage();
      const client = open({ url: ofTest.url, storage, ...(page && { WebSocket: PageSocket }) });
      await ofTest.signIn(client, email);
      const { deviceId } = client.account;
      await client.data.write({ note: 'mine' });
      const other = open({ url: ofTest.url });
      if (['device_revoked', 'account_deleted'].includes(reason)) await ofTest.signIn(other, email);
      await client.close();
      await end(ofTest, { storage, other, client, email });
      await assert.rejects(client.connect(), { name: 'StateError', code: 'signed_out' });
      assert.equal(client.reason, reason);
      assert.equal(client.calls('/v1/auth/session').length, page ? 0 : 1);
      const deleted = reason === 'device_revoked' || reason === 'account_deleted';
      assert.equal(client.account?.deviceId, deleted ? undefined : deviceId);
      assert.equal(await client.data.get('note'), deleted ? undefined : 'mine');
      // It can sign in again: as the same device, or as a new one.
      await ofTest.signIn(client, email);
      assert.equal(client.account.deviceId === deviceId, !deleted);
      assert.deepEqual(client.problems, []);
    });
  }
}

test('a session that expires while it is connected', { skip }, async () => {
  const server = await start({ SEALWIRE__AUTH__SESSION_DAYS: '0.00003' });
  const client = open({ url: server.url });
  await server.signIn(client, 'alice@expired.example');
  await until(() => client.state === 'signed-out');
  assert.equal(client.reason, 'expired');
  assert.equal(client.account.email, 'alice@expired.example');
});

// --- Upgrades that are refused -------------------------------------------------------------------------------------

for (const [code, setting] of [['rate_limited', 'SEALWIRE__LIMITS__CONNECTIONS_PER_NETWORK'], ['unavailable', 'SEALWIRE__SERVER__MAX_CONNECTIONS']]) {
  for (const page of [true, false]) {
    test(`an upgrade that is refused as ${code} is tried again, ${page ? 'in a browser' : 'over HTTP'}`, { skip }, async () => {
      const server = await start({ [setting]: '1' });
      const [alice, bob] = [open({ url: server.url }), open({ url: server.url, ...(page && { WebSocket: PageSocket }) })];
      await server.signIn(alice, 'alice@full.example');
      const refused = bob.once('state', { fits: ({ state }) => state === 'waiting' });
      const signedIn = server.signIn(bob, 'bob@full.example');
      const { error, retryAt } = await refused;
      if (page) {
        assert.equal(error.code, code);
        assert(retryAt - Date.now() <= error.retry_after_ms + 1000);
      }
      await alice.close();
      await signedIn;
      assert.equal(bob.state, 'connected');
    });
  }
}

// --- Clocks that are wrong -----------------------------------------------------------------------------------------

/** Runs `work` with a local clock that is wrong by `ms`. The server has its own. */
async function withClock(ms, work) {
  const { now } = Date;
  Date.now = () => now() + ms;
  try {
    await work();
  } finally {
    Date.now = now;
  }
}

const DAY = 86_400_000;
for (const [name, ms] of [['a year ahead', 365 * DAY], ['a year behind', -365 * DAY]]) {
  test(`a clock that is ${name}`, { skip }, async () => {
    const server = await start({ SEALWIRE__AUTH__SESSION_DAYS: '0.0002' });
    const storage = memoryStorage();
    const bob = open({ url: server.url });
    await withClock(ms, async () => {
      const alice = open({ url: server.url, storage });
      await server.signIn(bob, 'bob@clock.example');
      await server.signIn(alice, 'alice@clock.example');
      await alice.send(bob.account.userId, 'hello');
      await bob.send(alice.account.userId, 'hello Alice');
      await until(() => alice.inbox.length === 1 && bob.inbox.length === 1);
      // The keys are not replaced, and the session is not renewed, as long as the server's clock does not ask for it.
      const first = await token(storage);
      const { signed_prekey } = await alice.request('keys.status');
      await alice.close();
      await alice.connect();
      assert.deepEqual((await alice.request('keys.status')).signed_prekey, signed_prekey);
      assert.equal(await token(storage), first);
      // It is renewed when half of its life is over.
      await until(async () => {
        await alice.close();
        await alice.connect();
        return (await token(storage)) !== first;
      });
      await until(async () => (await storage.get('account')).tokens.length === 1);
      assert.equal((await session(server, await token(storage))).status, 200);
      await alice.send(bob.account.userId, 'still here');
      await until(() => bob.inbox.length === 2);
      assert.deepEqual([...alice.problems, ...bob.problems], []);
    });
  });
}

test('a clock that is set while the client is connected', { skip }, async () => {
  const [alice, bob] = [open(), open()];
  await server.signIn(alice, 'alice@jump.example');
  await server.signIn(bob, 'bob@jump.example');
  const { signed_prekey } = await alice.request('keys.status');
  for (const ms of [40 * DAY, -40 * DAY]) {
    await withClock(ms, async () => {
      const { messageId } = await alice.send(bob.account.userId, `${ms}`);
      // What was sent is still known.
      await alice.send(bob.account.userId, `${ms}`, { messageId });
      assert.deepEqual((await alice.request('keys.status')).signed_prekey, signed_prekey);
    });
  }
  await until(() => bob.inbox.length >= 2);
  assert.deepEqual(bob.inbox, [`${40 * DAY}`, `${-40 * DAY}`]);
  assert.deepEqual([...alice.problems, ...bob.problems], []);
});

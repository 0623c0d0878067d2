// Sending, receiving and keys against a server that does what the test says.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { afterEach, beforeEach, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import WebSocket from 'ws';
import { Fake, refusal, SILENCE } from '../../../test-support/fake.mjs';
import { toyCrypto } from '../../../test-support/toy.mjs';
import { until } from '../../../test-support/until.mjs';

const BOB = '0190a6f8-5555-4666-8777-ba9876543210';
const PHONE = '1d2c3b4a-6666-4777-8888-abcdefabcdef';
const LAPTOP = '9c1d7e52-7a0f-4b3e-8c61-2f4f5a6b7c8d';

let fake;
let client;
let storage;
let reports;

beforeEach(async () => {
  fake = await Fake.start();
  storage = memoryStorage();
  client = open();
  await client.signIn.request('alice@example.org');
  await client.signIn.verify('12345678');
});
afterEach(async () => {
  await client.close();
  await fake.stop();
});

function open(options = {}) {
  reports = [];
  const opened = new SealwireClient({ url: fake.url, storage, crypto: toyCrypto(), WebSocket, random: () => 0.02, ...options });
  for (const event of ['error', 'failed', 'sent', 'untrusted', 'undecryptable', 'restored']) opened.on(event, (data) => reports.push([event, data]));
  return opened;
}

const bundle = (device_id, fields = {}) => ({
  device_id, registration_id: 1, suite: 'ed25519-x3dh', identity_key: 'aWRlbnRpdHk=',
  signed_prekey: { key_id: 1, public_key: 'a2V5', signature: 'c2ln', expires_at: fake.time(1e6) },
  one_time_prekey: { key_id: 7, public_key: 'a2V5' }, one_time: 'claimed', pq_prekey: null, ...fields,
});

/** Lets claims give a bundle for each of these devices. */
function devices(...ids) {
  fake.ops['keys.claim'] = ({ device_ids }) => ({
    bundles: ids.filter((id) => !device_ids || device_ids.includes(id)).map((id) => bundle(id)),
    unavailable: [],
  });
}

const named = (request) => request.messages.map(({ device_id }) => device_id);
const content = (message) => JSON.parse(Buffer.from(message.content, 'base64'));

test('a first message claims keys of all devices, later ones do not', async () => {
  devices(PHONE, LAPTOP);
  await client.send(BOB, 'one');
  await client.send(BOB, 'two');
  const claims = fake.of('keys.claim');
  assert.equal(claims.length, 1);
  assert.deepEqual(claims[0].suites, ['ed25519-x3dh']);
  assert.deepEqual(fake.of('messages.send').map(named), [[PHONE, LAPTOP], [PHONE, LAPTOP]]);
});

test('a claim whose reply is lost is repeated under its id, also after a restart', async () => {
  fake.ops['keys.claim'] = () => SILENCE;
  const lost = client.send(BOB, 'one', { messageId: PHONE });
  lost.catch(() => {});
  await until(() => fake.of('keys.claim').length === 1);
  fake.sockets.at(-1).drop();
  await until(() => fake.of('keys.claim').length === 2);
  await client.close();
  devices(PHONE);
  client = open();
  await client.connect();
  await client.send(BOB, 'one', { messageId: PHONE });
  const claims = fake.of('keys.claim');
  assert.equal(claims.length, 3);
  assert.equal(new Set(claims.map(({ claim_id }) => claim_id)).size, 1);
});

test('a send whose reply is lost is repeated with the same bytes, also after a restart', async () => {
  devices(PHONE);
  fake.ops['messages.send'] = () => SILENCE;
  client.send(BOB, 'one').catch(() => {});
  await until(() => fake.of('messages.send').length === 1);
  fake.sockets.at(-1).drop();
  await until(() => fake.of('messages.send').length === 2);
  await client.close();
  fake.ops['messages.send'] = undefined;
  client = open();
  await client.connect();
  await until(async () => (await client.pending()).length === 0);
  const sends = fake.of('messages.send');
  assert.equal(sends.length, 3);
  assert.deepEqual(sends[1], sends[0]);
  assert.deepEqual(sends[2], sends[0]);
});

test('after a mismatch only what is missing is encrypted, and what is extra is left out', async () => {
  devices(PHONE, LAPTOP);
  await client.send(BOB, 'one');
  const TABLET = 'aaaaaaaa-0000-4000-8000-000000000001';
  devices(PHONE, TABLET);
  fake.ops['messages.send'] = (params) => {
    if (!named(params).includes(TABLET)) throw refusal('devices_mismatch', { details: { missing: [TABLET], extra: [LAPTOP] } });
    return { accepted_at: fake.time(), duplicate: false, stored: 2, undelivered: [] };
  };
  await client.send(BOB, 'two');
  const [, first, second] = fake.of('messages.send');
  assert.deepEqual([named(first), named(second)], [[PHONE, LAPTOP], [PHONE, TABLET]]);
  assert.equal(first.message_id, second.message_id);
  assert.deepEqual(second.messages[0], first.messages[0]);
  assert.deepEqual(fake.of('keys.claim').at(-1).device_ids, [TABLET]);
  await client.send(BOB, 'three');
  assert.deepEqual(named(fake.of('messages.send').at(-1)), [PHONE, TABLET]);
});

test('devices of another suite, and those that cannot be trusted, are skipped', async () => {
  fake.ops['keys.claim'] = () => ({
    bundles: [bundle(PHONE), { ...bundle(LAPTOP), device_id: LAPTOP }],
    unavailable: [{ device_id: BOB, reason: 'other_suite' }, { device_id: Fake.USER, reason: 'signed_prekey_expired' }],
  });
  await client.close();
  const crypto = toyCrypto();
  const { openSession } = crypto;
  crypto.openSession = async (tx, self, device, ...rest) => {
    if (device.deviceId === LAPTOP) {
      const { CryptoError } = await import('@sealwire/client');
      tx.set('toy/half-done', 1);
      throw new CryptoError('untrusted', 'a signature does not verify');
    }
    return openSession(tx, self, device, ...rest);
  };
  client = open({ crypto });
  await client.connect();
  const sent = await client.send(BOB, 'one');
  const [request] = fake.of('messages.send');
  assert.deepEqual(named(request), [PHONE]);
  assert.deepEqual(request.skip.sort(), [BOB, LAPTOP].sort());
  assert.deepEqual(sent.skipped.sort(), [BOB, LAPTOP].sort());
  assert.equal(await storage.get('toy/half-done'), undefined);
  assert.deepEqual(reports.find(([event]) => event === 'untrusted')[1], { device: { userId: BOB, deviceId: LAPTOP }, message: 'a signature does not verify' });
});

test('a message that nobody can read is refused', async () => {
  fake.ops['keys.claim'] = () => ({ bundles: [], unavailable: [{ device_id: PHONE, reason: 'other_suite' }] });
  await assert.rejects(client.send(BOB, 'one'), { name: 'StateError', code: 'untrusted' });
  assert.deepEqual(await client.pending(), []);
});

for (const code of ['not_found', 'no_devices', 'mailbox_full', 'id_conflict', 'payload_too_large']) {
  test(`${code} ends a send, and the next goes on`, async () => {
    devices(PHONE);
    fake.ops['messages.send'] = () => {
      fake.ops['messages.send'] = undefined;
      throw refusal(code, { retryable: code === 'mailbox_full' });
    };
    const [first, second] = await Promise.allSettled([client.send(BOB, 'one'), client.send(BOB, 'two')]);
    assert.equal(first.reason.code, code);
    assert.equal(second.status, 'fulfilled');
    assert.deepEqual(reports.map(([event]) => event).sort(), ['failed', 'sent']);
  });
}

test('a send that the server cannot do now is repeated after the time that it says', async () => {
  devices(PHONE);
  let tries = 0;
  const times = [];
  fake.ops['messages.send'] = () => {
    times.push(Date.now());
    if (++tries < 4) throw refusal('rate_limited', { retryable: true, retry_after_ms: 60 });
    return { accepted_at: fake.time(), duplicate: false, stored: 1, undelivered: [] };
  };
  await Promise.all([client.send(BOB, 'one'), client.send(BOB, 'two')]);
  assert(times[3] - times[0] >= 180);
  const bodies = fake.of('messages.send').map(({ messages: [message] }) => content(message).n);
  assert.deepEqual(bodies, [1, 1, 1, 1, 2]);
});

test('recipients do not wait for each other', async () => {
  devices(PHONE);
  fake.ops['messages.send'] = ({ to }) => (to === BOB ? SILENCE : { accepted_at: fake.time(), duplicate: false, stored: 1, undelivered: [] });
  client.send(BOB, 'stuck').catch(() => {});
  await until(() => fake.of('messages.send').length === 1);
  await client.send(Fake.USER, 'to my other devices');
});

test('a signal stops a message that was not sent, and no other', async () => {
  devices(PHONE);
  fake.sockets.at(-1).close(4504);
  await until(() => client.state === 'ended');
  const controller = new AbortController();
  const one = client.send(BOB, 'one', { signal: controller.signal });
  const two = client.send(BOB, 'two');
  await until(async () => (await client.pending()).length === 2);
  controller.abort();
  await assert.rejects(one, { name: 'AbortError' });
  await client.connect();
  await two;
  assert.equal(fake.of('messages.send').length, 1);
  assert.deepEqual(await client.pending(), []);
});

test('an ephemeral message is not stored, and needs a connection', async () => {
  devices(PHONE);
  await client.send(BOB, 'typing', { ephemeral: true });
  assert.equal(fake.of('messages.send')[0].ephemeral, true);
  assert.deepEqual(await storage.list('outbox/'), []);
  fake.sockets.at(-1).close(4504);
  await until(() => client.state === 'ended');
  await assert.rejects(client.send(BOB, 'typing', { ephemeral: true }), { code: 'offline', retryable: true });
});

test('ttl, access, urgency and padding', async () => {
  devices(PHONE);
  await client.send(BOB, 'x', { ttlS: 60, access: 'a2V5', urgent: false });
  await client.send(BOB, new Uint8Array(160));
  const [first, second] = fake.of('messages.send');
  assert.equal(first.ttl_s, 60);
  assert.equal(first.access, 'a2V5');
  assert.deepEqual([first.urgent, 'urgent' in second], [false, false]);
  assert.equal(fake.of('keys.claim')[0].access, 'a2V5');
  const lengths = [first, second].map(({ messages: [message] }) => Buffer.from(content(message).body, 'base64').length);
  assert.deepEqual(lengths, [160, 320]);
});

// --- Receiving ------------------------------------------------------------------------------------------------------

/** A message of Bob's phone, as the server delivers it. */
function envelope(seq, n, body, fields = {}) {
  const padded = Buffer.concat([Buffer.from(body), Buffer.from([0x80]), Buffer.alloc(20)]);
  const sealed = { n, from: PHONE, oneTime: null, body: padded.toString('base64') };
  return {
    seq, message_id: `00000000-0000-4000-8000-${String(n).padStart(12, '0')}`, from: { user_id: BOB, device_id: PHONE }, type: 3,
    content: Buffer.from(JSON.stringify(sealed)).toString('base64'), accepted_at: fake.time(), ephemeral: false, ...fields,
  };
}
const deliver = (...envelopes) => envelopes.forEach((data) => fake.sockets.at(-1).send('message', data));
const acked = () => fake.of('messages.ack').flatMap(({ seqs }) => seqs);

test('a message is acked when its handler has settled, and messages do not overtake each other', async () => {
  let release;
  const seen = [];
  client.on('message', async (m) => {
    seen.push([m.text, m.id, m.from, m.again]);
    if (m.seq === 1) await new Promise((resolve) => (release = resolve));
  });
  deliver(envelope(1, 1, 'one'), envelope(2, 2, 'two'), envelope(1, 1, 'one'));
  await until(() => release);
  await new Promise((resolve) => setTimeout(resolve, 250));
  assert.deepEqual(acked(), []);
  assert.equal(seen.length, 1);
  release();
  await until(() => acked().length === 2);
  const from = { userId: BOB, deviceId: PHONE };
  assert.deepEqual(seen, [['one', envelope(1, 1, '').message_id, from, false], ['two', envelope(2, 2, '').message_id, from, false]]);
});

test('mailbox.drained comes when the handlers of the messages before it have settled', async () => {
  const seen = [];
  client.on('message', async (m) => {
    await new Promise((resolve) => setTimeout(resolve, 20));
    seen.push(m.text);
  });
  client.on('mailbox.drained', () => seen.push('drained'));
  deliver(envelope(1, 1, 'one'), envelope(2, 2, 'two'));
  fake.sockets.at(-1).send('mailbox.drained', {});
  deliver(envelope(3, 3, 'three'));
  await until(() => seen.length === 4);
  assert.deepEqual(seen, ['one', 'two', 'drained', 'three']);
});

test('messages wait until there is a handler', async () => {
  deliver(envelope(1, 1, 'one'));
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.deepEqual(acked(), []);
  const seen = [];
  client.on('message', (m) => seen.push(m.text));
  await until(() => acked().length === 1);
  assert.deepEqual(seen, ['one']);
});

test('a message that comes again is acked again and not shown again, also after a restart', async () => {
  const seen = [];
  client.on('message', (m) => seen.push(m.text));
  deliver(envelope(5, 1, 'one'));
  await until(() => acked().length === 1);
  await client.close();
  client = open();
  client.on('message', (m) => seen.push(m.text));
  await client.connect();
  deliver(envelope(5, 1, 'one'), envelope(7, 2, 'two'));
  await until(() => acked().length === 3);
  assert.deepEqual(seen, ['one', 'two']);
});

test('what cannot be decrypted is reported and acked', async () => {
  const seen = [];
  client.on('message', (m) => seen.push(m.text));
  deliver(
    envelope(1, 1, 'one'), envelope(2, 1, 'one'), envelope(3, 3, 'x', { content: 'AAAA' }), envelope(4, 4, 'x', { type: 130 }), envelope(5, 2, 'two'),
  );
  await until(() => acked().length === 5);
  assert.deepEqual(seen, ['one', 'two']);
  const bad = reports.filter(([event]) => event === 'undecryptable').map(([, data]) => data);
  assert.deepEqual(bad.map(({ seq }) => seq), [2, 3, 4]);
  assert.match(bad[0].message, /decrypted before/);
  assert.deepEqual(bad[0].from, { userId: BOB, deviceId: PHONE });
});

test('a handler that fails is reported, and its message acked', async () => {
  client.on('message', () => Promise.reject(new Error('oh')));
  deliver(envelope(1, 1, 'one'));
  await until(() => acked().length === 1);
  assert.equal(reports.find(([event]) => event === 'error')[1].during, 'message');
});

test('a handler may send', async () => {
  devices(PHONE);
  client.on('message', async (m) => client.send(m.from.userId, `echo ${m.text}`));
  deliver(envelope(1, 1, 'one'));
  await until(() => acked().length === 1);
  assert.equal(fake.of('messages.send').length, 1);
});

test('ephemeral messages are shown and not acked', async () => {
  const seen = [];
  client.on('message', (m) => seen.push([m.text, m.seq, m.ephemeral]));
  deliver(envelope(null, 1, 'typing', { ephemeral: true }), envelope(1, 2, 'one'));
  await until(() => acked().length === 1);
  assert.deepEqual(seen, [['typing', null, true], ['one', 1, false]]);
});

test('the answer to a first message needs no claim', async () => {
  client.on('message', () => {});
  deliver(envelope(1, 1, 'one'));
  await until(() => acked().length === 1);
  await client.send(BOB, 'two');
  assert.deepEqual(fake.of('keys.claim'), []);
  assert.deepEqual(named(fake.of('messages.send')[0]), [PHONE]);
});

test('a storage that fails loses nothing: the message comes again', async () => {
  await client.close();
  let broken = true;
  const inner = storage;
  storage = { ...inner, write: (batch) => ([...batch.keys()].some((key) => key.startsWith('inbox/')) && broken ? Promise.reject(new Error('disk full')) : inner.write(batch)) };
  client = open();
  const seen = [];
  client.on('message', (m) => seen.push(m.text));
  await client.connect();
  fake.onSocket = (socket) => socket.send('message', envelope(1, 1, 'one'));
  deliver(envelope(1, 1, 'one'));
  await until(() => reports.some(([event]) => event === 'error'));
  assert.deepEqual([seen, acked()], [[], []]);
  broken = false;
  await until(() => acked().length > 0);
  assert.deepEqual(seen, ['one']);
});

// --- Keys -----------------------------------------------------------------------------------------------------------

test('a pool that runs low is filled up', async () => {
  fake.keys = { ...fake.keys, one_time: 9 };
  fake.sockets.at(-1).send('prekeys.low', { kind: 'one_time', remaining: 9, threshold: 20, pool_version: 1 });
  await until(() => fake.of('keys.publish').length === 2);
  const [first, second] = fake.of('keys.publish');
  assert.equal(second.one_time_prekeys.length, 91);
  const ids = [...first.one_time_prekeys, ...second.one_time_prekeys].map(({ key_id }) => key_id);
  assert.equal(new Set(ids).size, 191);
  assert.equal(second.signed_prekey, undefined);
  // An event that was overtaken by the publish changes nothing.
  fake.sockets.at(-1).send('prekeys.low', { kind: 'one_time', remaining: 9, threshold: 20, pool_version: 1 });
  await client.request('devices.list');
  await new Promise((resolve) => setTimeout(resolve, 50));
  assert.equal(fake.of('keys.publish').length, 2);
});

test('a publish whose reply is lost is repeated with the same keys', async () => {
  fake.keys = { ...fake.keys, one_time: 0 };
  fake.ops['keys.publish'] = () => SILENCE;
  fake.sockets.at(-1).send('prekeys.low', { kind: 'one_time', remaining: 0, threshold: 20, pool_version: 1 });
  await until(() => fake.of('keys.publish').length === 2);
  await client.close();
  fake.ops['keys.publish'] = undefined;
  client = open();
  await client.connect();
  const publishes = fake.of('keys.publish');
  assert.equal(publishes.length, 3);
  assert.deepEqual(publishes[2], publishes[1]);
  assert.equal(await storage.get('keys/pending'), undefined);
});

test('the signed prekey is replaced when it expires, and after a week by the clock of the server', async () => {
  fake.sockets.at(-1).send('signed_prekey.expiring', { key_id: 1, expires_at: fake.time(1000) });
  await until(() => fake.of('keys.publish').length === 2);
  const [first, second] = fake.of('keys.publish').map(({ signed_prekey }) => signed_prekey.key_id);
  assert(second > first);
  fake.clockMs = 8 * 86_400_000;
  fake.sockets.at(-1).drop();
  await until(() => fake.of('keys.publish').length === 3);
});

test('a signed prekey that is stale is made anew with a greater id', async () => {
  fake.ops['keys.publish'] = () => {
    fake.ops['keys.publish'] = undefined;
    throw refusal('stale_signed_prekey', { details: { key_id: 5000 } });
  };
  fake.sockets.at(-1).send('signed_prekey.expiring', { key_id: 1, expires_at: fake.time(1000) });
  await until(() => fake.of('keys.publish').length === 3);
  assert.equal(fake.of('keys.publish')[2].signed_prekey.key_id, 5001);
});

/** The digest of the keys that a publish had. */
function digest({ one_time_prekeys, signed_prekey }) {
  const hash = createHash('sha256');
  const id = (n) => { const bytes = Buffer.alloc(4); bytes.writeUInt32BE(n); return bytes; };
  for (const { key_id, public_key } of one_time_prekeys) hash.update('one_time').update(id(key_id)).update(Buffer.from(public_key, 'base64'));
  return hash.update('signed').update(id(signed_prekey.key_id)).update(Buffer.from(signed_prekey.public_key, 'base64')).digest('base64');
}

test('another pool version with the same keys is only noted', async () => {
  const [first] = fake.of('keys.publish');
  fake.keys = { ...fake.keys, pool_version: 9 };
  fake.ops['keys.status'] = (params) => ({ ...fake.keys, ...(params?.digest && { digest: digest(first) }) });
  await client.close();
  await client.connect();
  assert.equal(fake.of('keys.publish').length, 1);
  assert.deepEqual(reports.filter(([event]) => event === 'restored'), []);
  await client.close();
  await client.connect();
  assert.equal(fake.of('keys.status').length, 1);
});

test('after a restore from an older copy, sessions are dropped and pools replaced by keys under new ids', async () => {
  devices(PHONE);
  await client.send(BOB, 'one');
  fake.keys = { ...fake.keys, pool_version: 4, signed_prekey: { ...fake.keys.signed_prekey, key_id: 300 } };
  fake.ops['keys.status'] = (params) => ({ ...fake.keys, ...(params?.digest && { digest: 'AAAA' }) });
  await client.close();
  await client.connect();
  const replaced = fake.of('keys.publish').at(-1);
  assert.equal(replaced.replace, true);
  assert.equal(replaced.expect_pool_version, 4);
  assert(replaced.signed_prekey.key_id > 10_000);
  assert.equal(replaced.one_time_prekeys.length, 100);
  assert.equal(reports.filter(([event]) => event === 'restored').length, 1);
  await client.send(BOB, 'two');
  assert.equal(fake.of('keys.claim').length, 2);
  // Only once.
  await client.close();
  await client.connect();
  assert.equal(fake.of('keys.publish').length, 2);
});

// --- Signing in -----------------------------------------------------------------------------------------------------

test('a proof of work is made when the server offers to accept one', async () => {
  const salt = Buffer.alloc(24, 7);
  let proofs = 0;
  const asks = (path, done) => {
    fake.http[path] = (body) => {
      if (!body.proof) return [429, refusal('rate_limited', { retryable: true, details: { proof: { algorithm: 'sha256-leading-zeros', bits: 12, salt: salt.toString('base64url') } } })];
      assert.equal(body.proof.salt, salt.toString('base64url'));
      const hash = createHash('sha256').update(salt).update(Buffer.from(body.proof.nonce, 'base64url')).digest();
      assert(hash[0] === 0 && hash[1] < 16);
      proofs++;
      return done;
    };
  };
  await client.wipe();
  fake.keys = { ...fake.keys, identity_key: null, suite: null };
  asks('POST /v1/auth/otp', [202, { challenge_id: PHONE, expires_in_s: 600, resend_in_s: 30 }]);
  asks('POST /v1/auth/verify', [201, fake.session()]);
  await client.signIn.request('alice@example.org');
  await client.signIn.verify('12345678');
  assert.equal(proofs, 2);
});

test('an unknown kind of proof is an error', async () => {
  fake.http['POST /v1/auth/otp'] = () => [429, refusal('rate_limited', { retryable: true, retry_after_ms: 1000, details: { proof: { algorithm: 'other', bits: 1, salt: '' } } })];
  await assert.rejects(client.signIn.request('alice@example.org'), { name: 'ServerError', code: 'rate_limited', retryAfterMs: 1000, status: 429 });
});

test('under a lock the sign-in waits for an approval, also over a restart', async () => {
  await client.wipe();
  fake.keys = { ...fake.keys, identity_key: null, suite: null };
  const approval = { request_id: PHONE, poll_token: 'poll', number: '07', decides_at: fake.time(1e6) };
  fake.http['POST /v1/auth/verify'] = () => [202, { approval }];
  let polls = 0;
  fake.http['POST /v1/auth/approval'] = (body) => {
    assert.deepEqual(body, { request_id: PHONE, poll_token: 'poll' });
    return ++polls === 1 ? [202, { approval: { decides_at: approval.decides_at } }] : [201, fake.session()];
  };
  await client.signIn.request('alice@example.org');
  const outcome = await client.signIn.verify('12345678');
  assert.deepEqual(outcome, { approval: { number: '07', decidesAt: approval.decides_at } });
  assert.equal(client.state, 'signed-out');
  await client.close();
  client = open();
  assert.deepEqual(await client.signIn.pending(), outcome.approval);
  const account = await client.signIn.approval();
  assert.equal(account.email, 'alice@example.org');
  assert.equal(client.state, 'connected');
  assert.equal(await client.signIn.pending(), null);
});

test('a sign-in that is refused', async () => {
  await client.wipe();
  fake.http['POST /v1/auth/verify'] = () => [202, { approval: { request_id: PHONE, poll_token: 'poll', number: '07', decides_at: fake.time(1e6) } }];
  fake.http['POST /v1/auth/approval'] = () => [403, refusal('denied')];
  await client.signIn.request('alice@example.org');
  await client.signIn.verify('12345678');
  await assert.rejects(client.signIn.approval(), { name: 'ServerError', code: 'denied' });
  assert.equal(await client.signIn.pending(), null);
  await assert.rejects(client.signIn.approval(), { code: 'no_challenge' });
});

test('a code is needed before it can be verified', async () => {
  await client.wipe();
  await assert.rejects(client.signIn.verify('12345678'), { name: 'StateError', code: 'no_challenge' });
});

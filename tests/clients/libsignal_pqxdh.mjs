// Signal's own library with a running Sealwire server, suite signal-pqxdh.
//
//     node libsignal_pqxdh.mjs URL MAIL_DIR
//
// Tests keys and sessions. `twoDevices` sends the ciphertext through the server; `crowd`, which tests only keys, passes it on within
// this script. libsignal_conversation.mjs has a whole conversation, over the TypeScript client.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Device, JSON_TEXT, MSGPACK, ids, ok } from './client_device.mjs';
import { Connection, SealwireError, http } from './sealwire.mjs';
import { SignalDevice, isFirstMessage, newRegistrationId } from './signal_device.mjs';

const [url, mailDir] = process.argv.slice(2);
const server = { url, mailDir };

/** For `assert.rejects`: the server refused with this code (over HTTP, also with this status). */
const refusal = (code, status) => (error) => {
  assert(error instanceof SealwireError, error);
  assert.deepEqual([error.code, error.status], [code, status]);
  return true;
};

const newDevice = (name, transport) => Device.signIn(server, name, transport);

/** The bundle of `device` in a reply of `keys.claim` or `keys.fetch`. */
function bundleOf(reply, { session }) {
  const found = reply.bundles.filter((bundle) => bundle.device_id === session.device_id);
  assert.equal(found.length, 1, `one bundle for ${session.device_id}`);
  return found[0];
}

/** `alice` sends two messages to all devices of a user, with which she has sessions. Each device answers both. */
async function talkThroughServer(alice, bobs) {
  for (const [text, first] of [['Hello Bob, this is a first message', true], ['How are you?', false]]) {
    await alice.send(bobs[0].user, text);
    for (const bob of bobs) {
      assert.deepEqual(await bob.receive(), [text]);
      assert.equal(bob.inbox.at(-1).first, first, 'prekeys are needed only for the first message');
      const answer = `${bob.id} says: you wrote ${text}`;
      await bob.send(alice.user, answer);
      assert.deepEqual(await alice.receive(), [answer]);
      assert.equal(alice.inbox.at(-1).first, false, 'the answer needs no prekeys');
    }
  }
}

/** `alice` starts a session from `bundle`. Then both write in turn, two messages each. */
async function talk(alice, bob, bundle) {
  await alice.signal.startSession(bundle);
  const say = async (from, to, text) => {
    const message = await from.signal.encrypt(to.session.device_id, text);
    assert.equal(await to.signal.decrypt(from.session.device_id, message), text);
    return isFirstMessage(message);
  };
  assert(await say(alice, bob, 'Hello Bob, this is a first message'));
  assert(!(await say(bob, alice, 'Hello Alice')), 'the answer needs no prekeys');
  assert(!(await say(alice, bob, 'How are you?')), 'both have the session');
  assert(!(await say(bob, alice, 'Fine')));
}

async function twoDevices(transport) {
  console.log(`Alice and two devices of Bob: ${transport.format}, token by ${transport.tokenIn}`);
  const alice = await newDevice(`alice.${transport.format}`, transport);
  const bobs = [await newDevice(`bob.${transport.format}`, transport), await newDevice(`bob.${transport.format}`, transport)];
  for (const { session, socket } of [alice, ...bobs]) {
    const { token, ...shown } = session;
    assert.deepEqual(await http(server, 'GET', '/v1/auth/session', { token }), shown);
    const { session_id, user_id, device_id, expires_at, keys, mailbox } = socket.welcome;
    assert.deepEqual({ session_id, user_id, device_id, expires_at }, shown);
    assert.deepEqual([keys.suite, keys.identity_key, keys.one_time, keys.pq_one_time], [null, null, 0, 0]);
    assert.deepEqual(mailbox, { waiting: 0, expired_total: 0 });
  }
  assert.equal(bobs[0].user, bobs[1].user);
  assert.notEqual(bobs[0].session.device_id, bobs[1].session.device_id);
  await assert.rejects(Connection.open(server, 'A'.repeat(43), transport), refusal('unauthorized', 401));
  ok('signed in by mailed code and connected; an invented token is refused');

  await alice.publish(5);
  const set = await bobs[0].publish(5);
  await bobs[1].publish(5);
  ok('all three published identity, signed prekey, last-resort key and one-time keys of both kinds');

  await alice.signInAgain(`alice.${transport.format}@clients.example`, bobs[0]);
  ok('Alice’s device signs in again with libsignal’s proof; no, foreign, misdirected and replayed proofs are refused');

  const fetched = await alice.socket.request('keys.fetch', { user_id: bobs[0].user });
  assert.equal(fetched.bundles.length, 2);
  for (const bob of bobs) {
    const bundle = bundleOf(fetched, bob);
    assert.deepEqual([bundle.one_time, bundle.one_time_prekey, bundle.pq_prekey.last_resort], ['not_requested', null, true]);
    assert.equal((await bob.socket.request('keys.status')).one_time, 5);
  }
  ok('a fetch shows both of Bob’s devices and consumes nothing');

  const claimId = randomUUID();
  const claimed = await alice.claim(bobs[0].user, claimId);
  assert.deepEqual([claimed.bundles.length, claimed.unavailable], [2, []]);
  const first = bundleOf(claimed, bobs[0]);
  assert.deepEqual(first, {
    device_id: bobs[0].session.device_id,
    registration_id: bobs[0].signal.registrationId,
    suite: 'signal-pqxdh',
    identity_key: set.identity_key,
    signed_prekey: { ...set.signed_prekey, expires_at: first.signed_prekey.expires_at },
    one_time_prekey: set.one_time_prekeys[0],
    one_time: 'claimed',
    pq_prekey: { ...set.pq_one_time[0], last_resort: false },
  });
  ok('a claim returns both bundles exactly as published, oldest one-time keys first');

  await alice.startSessions(bobs[0].user, claimed);
  await talkThroughServer(alice, bobs);
  ok('libsignal started sessions from both bundles, and messages through the server decrypt both ways');

  const repeats = await Promise.all(Array.from({ length: 8 }, () => alice.claim(bobs[0].user, claimId)));
  await alice.reconnect();
  repeats.push(await alice.claim(bobs[0].user, claimId));
  for (const repeat of repeats) {
    for (const bob of bobs) assert.deepEqual(bundleOf(repeat, bob), bundleOf(claimed, bob));
  }
  for (const bob of bobs) {
    const status = await bob.socket.request('keys.status');
    assert.deepEqual([status.one_time, status.pq_one_time], [4, 4]);
  }
  ok('the same claim_id, eight times in parallel and once after a reconnect, returns the same keys and uses up no others');

  await bobs[0].startSessions(alice.user, await bobs[0].claim(alice.user));
  await talkThroughServer(bobs[0], [alice]);
  const own = await bobs[0].claim(bobs[1].user);
  assert.equal(own.bundles.length, 1, 'the claiming device is left out');
  await bobs[0].startSessions(bobs[0].user, own);
  const answers = await bobs[1].receive(2);
  assert.equal(answers.length, 2, 'Alice’s answers went to both of Bob’s devices');
  await bobs[0].send(bobs[0].user, 'Hello other me');
  assert.deepEqual(await bobs[1].receive(), ['Hello other me']);
  ok('Bob reaches Alice with her bundle, and his own other device');

  const forged = bobs[0].signal.oneTimeKeys(3);
  forged.pq_one_time[1].signature = set.pq_last_resort.signature;
  await assert.rejects(bobs[0].socket.request('keys.publish', forged), refusal('invalid_signature'));
  const other = new SignalDevice(bobs[0].session.device_id, bobs[0].signal.registrationId);
  await assert.rejects(bobs[0].socket.request('keys.publish', other.completeSet(0)), refusal('identity_conflict'));
  const after = await bobs[0].socket.request('keys.status');
  assert.deepEqual([after.one_time, after.pq_one_time, after.identity_key], [4, 4, set.identity_key]);
  ok('an invalid signature or another identity key fails the whole publish, which changes nothing');

  assert.deepEqual(await alice.socket.request('session.logout'), {});
  assert.deepEqual(await alice.socket.waitFor('session.revoked'), { reason: 'logout' });
  assert.equal((await alice.socket.closed).code, 4500);
  await assert.rejects(http(server, 'GET', '/v1/auth/session', { token: alice.session.token }), refusal('unauthorized', 401));
  for (const { socket } of bobs) await socket.close();
  ok('logout: the reply, then the event, then close 4500; the token is invalid');
}

/** Shows that a key issued twice would fail `crowd`. Otherwise, passing it would prove nothing. */
async function sharedKeyFails() {
  console.log('Control, without the server: one one-time prekey issued to two senders');
  const [bob, eve, mallory] = [1, 2, 3].map(() => new SignalDevice(randomUUID(), newRegistrationId()));
  const { one_time_prekeys, pq_one_time, ...rest } = bob.completeSet(2);
  for (const [sender, pq_prekey] of [[eve, pq_one_time[0]], [mallory, pq_one_time[1]]]) {
    const names = { device_id: bob.deviceId, registration_id: bob.registrationId };
    await sender.startSession({ ...names, ...rest, one_time_prekey: one_time_prekeys[0], pq_prekey });
  }
  assert.equal(await bob.decrypt(eve.deviceId, await eve.encrypt(bob.deviceId, 'first')), 'first');
  await assert.rejects(bob.decrypt(mallory.deviceId, await mallory.encrypt(bob.deviceId, 'second')), /one-time prekey 100/);
  ok('the second sender’s message cannot be decrypted, so the following test would fail');
}

async function crowd() {
  const [people, devicesOfOne] = [17, 3];
  const size = people + devicesOfOne;
  console.log(`${size} parallel claimers for ${size} keys of each of Bob’s two devices, both subprotocols`);
  const bobs = [await newDevice('bob.crowd', MSGPACK), await newDevice('bob.crowd', JSON_TEXT)];
  const sets = [await bobs[0].publish(size), await bobs[1].publish(size)];

  const transports = (index) => (index % 2 ? JSON_TEXT : MSGPACK);
  const claimers = await Promise.all(Array.from({ length: people }, (_, i) => newDevice(`claimer.${i}`, transports(i))));
  for (let i = 0; i < devicesOfOne; i++) claimers.push(await newDevice('claimer.many', transports(i)));
  ok(`${people} people with one device and one with ${devicesOfOne} are connected`);

  // All use the same claim_id. It is scoped to the claiming device, so they must not share keys.
  const claimId = randomUUID();
  const claims = await Promise.all(claimers.map((claimer) => claimer.claim(bobs[0].user, claimId)));
  for (const [i, bob] of bobs.entries()) {
    const bundles = claims.map((reply) => bundleOf(reply, bob));
    assert(bundles.every(({ one_time, pq_prekey }) => one_time === 'claimed' && !pq_prekey.last_resort), 'everybody gets one-time keys');
    const sorted = (keys) => ids(keys).sort((a, b) => a - b);
    assert.deepEqual(sorted(bundles.map((bundle) => bundle.one_time_prekey)), ids(sets[i].one_time_prekeys));
    assert.deepEqual(sorted(bundles.map((bundle) => bundle.pq_prekey)), ids(sets[i].pq_one_time));
  }
  ok(`each got its own one-time prekey and one-time Kyber key from both devices: ${2 * size} of each, all different`);

  for (const [i, claimer] of claimers.entries()) {
    for (const bob of bobs) await talk(claimer, bob, bundleOf(claims[i], bob));
  }
  ok(`all ${2 * size} first messages decrypt, and the answers too`);

  for (const { socket } of bobs) {
    for (const kind of ['one_time', 'pq_one_time']) {
      await socket.waitFor('prekeys.low', (data) => data.kind === kind && data.remaining === 0);
    }
  }
  ok('both of Bob’s devices were notified that both pools are empty');

  const late = [await newDevice('late.one', MSGPACK), await newDevice('late.two', JSON_TEXT)];
  const lateClaim = randomUUID();
  for (const device of late) {
    const reply = await device.claim(bobs[0].user, lateClaim);
    for (const [i, bob] of bobs.entries()) {
      const bundle = bundleOf(reply, bob);
      assert.deepEqual([bundle.one_time, bundle.one_time_prekey], ['exhausted', null]);
      assert.deepEqual(bundle.pq_prekey, { ...sets[i].pq_last_resort, last_resort: true });
      await talk(device, bob, bundle);
    }
  }
  ok('after that the bundle says "exhausted" and has the last-resort key; two more claimers can still start sessions');

  await bobs[0].reconnect();
  assert.equal(bobs[0].socket.welcome.keys.one_time, 0);
  for (const kind of ['one_time', 'pq_one_time']) {
    await bobs[0].socket.waitFor('prekeys.low', (data) => data.kind === kind && data.remaining === 0);
  }
  const fresh = bobs[0].signal.oneTimeKeys(2);
  const issued = sets[0].one_time_prekeys[0];
  const answer = await bobs[0].socket.request('keys.publish', { ...fresh, one_time_prekeys: [issued, ...fresh.one_time_prekeys] });
  assert.deepEqual(answer.one_time, {
    accepted: ids(fresh.one_time_prekeys), duplicate: [], conflict: [], already_issued: [issued.key_id], over_cap: [], withdrawn: [],
  });
  ok('Bob is notified again when he reconnects, and refills; a key issued before is reported and not accepted again');

  const refilled = bundleOf(await late[0].claim(bobs[0].user, lateClaim, [bobs[0].id]), bobs[0]);
  assert.deepEqual([refilled.one_time, refilled.one_time_prekey], ['claimed', fresh.one_time_prekeys[0]]);
  assert.deepEqual(refilled.pq_prekey, { ...fresh.pq_one_time[0], last_resort: false });
  await talk(late[0], bobs[0], refilled);
  ok('the same claim_id after "exhausted" now returns a one-time key, and a new session with it works');

  await Promise.all([...claimers, ...bobs, ...late].map(({ socket }) => socket.close()));
}

await twoDevices(MSGPACK);
await twoDevices(JSON_TEXT);
await sharedKeyFails();
await crowd();

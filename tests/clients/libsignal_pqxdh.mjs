// Signal's own library against a running Sealwire server, suite signal-pqxdh.
//
//     node libsignal_pqxdh.mjs URL MAIL_DIR
//
// The server carries keys only; ciphertext is handed over inside this script.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Connection, SealwireError, http, signIn } from './sealwire.mjs';
import { SignalDevice, isFirstMessage, newRegistrationId } from './signal_device.mjs';

const [url, mailDir] = process.argv.slice(2);
const server = { url, mailDir };
const MSGPACK = { format: 'msgpack', tokenIn: 'header' };
const JSON_TEXT = { format: 'json', tokenIn: 'subprotocol' };
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$/;

const ok = (what) => console.log(`  ok  ${what}`);
const ids = (keys) => keys.map(({ key_id }) => key_id);
/** For `assert.rejects`: the server refused with this code (and HTTP status, where it was HTTP). */
const refusal = (code, status) => (error) => {
  assert(error instanceof SealwireError, error);
  assert.deepEqual([error.code, error.status], [code, status]);
  return true;
};

/** A device of `name`, signed in and connected, with its libsignal side: `{session, socket, signal}`. */
async function newDevice(name, transport) {
  const registrationId = newRegistrationId();
  const session = await signIn(server, `${name}@clients.example`, {
    device: { name: `${name}’s ${transport.format} device`, registration_id: registrationId },
  });
  for (const id of [session.user_id, session.device_id, session.session_id]) assert.match(id, UUID);
  const socket = await Connection.open(server, session.token, transport);
  return { session, socket, transport, signal: new SignalDevice(session.device_id, registrationId) };
}

/** Publishes the complete set and checks that every key was taken. */
async function publish(device, count) {
  const set = device.signal.completeSet(count);
  const answer = await device.socket.request('keys.publish', set);
  const none = { duplicate: [], conflict: [], already_issued: [], over_cap: [] };
  assert.deepEqual(answer.one_time, { accepted: ids(set.one_time_prekeys), ...none });
  assert.deepEqual(answer.pq_one_time, { accepted: ids(set.pq_one_time), ...none });
  const { expires_at } = answer.status.signed_prekey;
  assert.match(expires_at, TIME);
  assert.deepEqual(await device.socket.request('keys.status'), answer.status);
  assert.deepEqual(answer.status, {
    ...answer.status,
    suite: 'signal-pqxdh',
    identity_key: set.identity_key,
    signed_prekey: { key_id: set.signed_prekey.key_id, expires_at },
    pq_last_resort: { key_id: set.pq_last_resort.key_id },
    one_time: count,
    pq_one_time: count,
  });
  return set;
}

const claim = ({ socket }, { session }, claimId = randomUUID(), deviceIds) =>
  socket.request('keys.claim', { user_id: session.user_id, claim_id: claimId, device_ids: deviceIds });

/** The bundle of `device` in a reply of `keys.claim` or `keys.fetch`. */
function bundleOf(reply, { session }) {
  const found = reply.bundles.filter((bundle) => bundle.device_id === session.device_id);
  assert.equal(found.length, 1, `one bundle for ${session.device_id}`);
  return found[0];
}

/** `alice` starts a session from `bundle`; then first message, answer, and one more each way. */
async function talk(alice, bob, bundle) {
  await alice.signal.startSession(bundle);
  const say = async (from, to, text) => {
    const message = await from.signal.encrypt(to.session.device_id, text);
    assert.equal(await to.signal.decrypt(from.session.device_id, message), text);
    return isFirstMessage(message);
  };
  assert(await say(alice, bob, 'Hello Bob, this is a first message'));
  assert(!(await say(bob, alice, 'Hello Alice')), 'the answer needs no prekeys');
  assert(!(await say(alice, bob, 'How are you?')), 'the session is known to both');
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
  assert.equal(bobs[0].session.user_id, bobs[1].session.user_id);
  assert.notEqual(bobs[0].session.device_id, bobs[1].session.device_id);
  await assert.rejects(Connection.open(server, 'A'.repeat(43), transport), refusal('unauthorized', 401));
  ok('signed in by mailed code and connected; a made-up token is refused');

  await publish(alice, 5);
  const set = await publish(bobs[0], 5);
  await publish(bobs[1], 5);
  ok('all three published identity, signed prekey, last-resort key and one-time keys of both kinds');

  const fetched = await alice.socket.request('keys.fetch', { user_id: bobs[0].session.user_id });
  assert.equal(fetched.bundles.length, 2);
  for (const bob of bobs) {
    const bundle = bundleOf(fetched, bob);
    assert.deepEqual([bundle.one_time, bundle.one_time_prekey, bundle.pq_prekey.last_resort], ['not_requested', null, true]);
    assert.equal((await bob.socket.request('keys.status')).one_time, 5);
  }
  ok('a fetch shows both of Bob’s devices and consumes nothing');

  const claimId = randomUUID();
  const claimed = await claim(alice, bobs[0], claimId);
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
  ok('a claim brings both bundles, byte for byte as published, oldest one-time keys first');

  for (const bob of bobs) await talk(alice, bob, bundleOf(claimed, bob));
  ok('libsignal opened sessions from both bundles, and messages decrypt both ways');

  const repeats = await Promise.all(Array.from({ length: 8 }, () => claim(alice, bobs[0], claimId)));
  await alice.socket.close();
  alice.socket = await Connection.open(server, alice.session.token, transport);
  repeats.push(await claim(alice, bobs[0], claimId));
  for (const repeat of repeats) {
    for (const bob of bobs) assert.deepEqual(bundleOf(repeat, bob), bundleOf(claimed, bob));
  }
  for (const bob of bobs) {
    const status = await bob.socket.request('keys.status');
    assert.deepEqual([status.one_time, status.pq_one_time], [4, 4]);
  }
  ok('the same claim_id, eight times in parallel and once after a reconnect, brings the same keys and burns none');

  await talk(bobs[0], alice, bundleOf(await claim(bobs[0], alice), alice));
  const own = await claim(bobs[0], bobs[1]);
  assert.equal(own.bundles.length, 1, 'the asking device is left out');
  await talk(bobs[0], bobs[1], bundleOf(own, bobs[1]));
  ok('Bob reaches Alice from her bundle, and his own other device');

  const forged = bobs[0].signal.oneTimeKeys(3);
  forged.pq_one_time[1].signature = set.pq_last_resort.signature;
  await assert.rejects(bobs[0].socket.request('keys.publish', forged), refusal('invalid_signature'));
  const other = new SignalDevice(bobs[0].session.device_id, bobs[0].signal.registrationId);
  await assert.rejects(bobs[0].socket.request('keys.publish', other.completeSet(0)), refusal('identity_conflict'));
  const after = await bobs[0].socket.request('keys.status');
  assert.deepEqual([after.one_time, after.pq_one_time, after.identity_key], [4, 4, set.identity_key]);
  ok('one false signature or another identity key fails the whole publish and changes nothing');

  assert.deepEqual(await alice.socket.request('session.logout'), {});
  assert.deepEqual(await alice.socket.waitFor('session.revoked'), { reason: 'logout' });
  assert.equal((await alice.socket.closed).code, 4500);
  await assert.rejects(http(server, 'GET', '/v1/auth/session', { token: alice.session.token }), refusal('unauthorized', 401));
  for (const { socket } of bobs) await socket.close();
  ok('logout: the reply, then the event, then close 4500, and the token is dead');
}

/** The assertion of `crowd` in reverse: without it a passing crowd would prove nothing. */
async function sharedKeyFails() {
  console.log('Control, without the server: one one-time prekey given to two senders');
  const [bob, eve, mallory] = [1, 2, 3].map(() => new SignalDevice(randomUUID(), newRegistrationId()));
  const { one_time_prekeys, pq_one_time, ...rest } = bob.completeSet(2);
  for (const [sender, pq_prekey] of [[eve, pq_one_time[0]], [mallory, pq_one_time[1]]]) {
    const names = { device_id: bob.deviceId, registration_id: bob.registrationId };
    await sender.startSession({ ...names, ...rest, one_time_prekey: one_time_prekeys[0], pq_prekey });
  }
  assert.equal(await bob.decrypt(eve.deviceId, await eve.encrypt(bob.deviceId, 'first')), 'first');
  await assert.rejects(bob.decrypt(mallory.deviceId, await mallory.encrypt(bob.deviceId, 'second')), /one-time prekey 100/);
  ok('the second sender’s message cannot be decrypted: what follows would show it');
}

async function crowd() {
  const [people, devicesOfOne] = [17, 3];
  const size = people + devicesOfOne;
  console.log(`${size} parallel claimers on ${size} keys of each of Bob’s two devices, both subprotocols`);
  const bobs = [await newDevice('bob.crowd', MSGPACK), await newDevice('bob.crowd', JSON_TEXT)];
  const sets = [await publish(bobs[0], size), await publish(bobs[1], size)];

  const transports = (index) => (index % 2 ? JSON_TEXT : MSGPACK);
  const claimers = await Promise.all(Array.from({ length: people }, (_, i) => newDevice(`claimer.${i}`, transports(i))));
  for (let i = 0; i < devicesOfOne; i++) claimers.push(await newDevice('claimer.many', transports(i)));
  ok(`${people} people with one device and one with ${devicesOfOne} are connected`);

  // One claim_id for all: it counts per claiming device, so it must not make them share.
  const claimId = randomUUID();
  const claims = await Promise.all(claimers.map((claimer) => claim(claimer, bobs[0], claimId)));
  for (const [i, bob] of bobs.entries()) {
    const bundles = claims.map((reply) => bundleOf(reply, bob));
    assert(bundles.every(({ one_time, pq_prekey }) => one_time === 'claimed' && !pq_prekey.last_resort), 'nobody is turned away');
    const sorted = (keys) => ids(keys).sort((a, b) => a - b);
    assert.deepEqual(sorted(bundles.map((bundle) => bundle.one_time_prekey)), ids(sets[i].one_time_prekeys));
    assert.deepEqual(sorted(bundles.map((bundle) => bundle.pq_prekey)), ids(sets[i].pq_one_time));
  }
  ok(`each got a one-time prekey and a one-time Kyber key of its own from both devices: ${2 * size} of each, all different`);

  for (const [i, claimer] of claimers.entries()) {
    for (const bob of bobs) await talk(claimer, bob, bundleOf(claims[i], bob));
  }
  ok(`all ${2 * size} first messages decrypt, and the answers too`);

  for (const { socket } of bobs) {
    for (const kind of ['one_time', 'pq_one_time']) {
      await socket.waitFor('prekeys.low', (data) => data.kind === kind && data.remaining === 0);
    }
  }
  ok('both of Bob’s devices were told that both pools are empty');

  const late = [await newDevice('late.one', MSGPACK), await newDevice('late.two', JSON_TEXT)];
  const lateClaim = randomUUID();
  for (const device of late) {
    const reply = await claim(device, bobs[0], lateClaim);
    for (const [i, bob] of bobs.entries()) {
      const bundle = bundleOf(reply, bob);
      assert.deepEqual([bundle.one_time, bundle.one_time_prekey], ['exhausted', null]);
      assert.deepEqual(bundle.pq_prekey, { ...sets[i].pq_last_resort, last_resort: true });
      await talk(device, bob, bundle);
    }
  }
  ok('after that the bundle says "exhausted" and has the last-resort key; sessions of two latecomers still work');

  await bobs[0].socket.close();
  bobs[0].socket = await Connection.open(server, bobs[0].session.token, JSON_TEXT);
  assert.equal(bobs[0].socket.welcome.keys.one_time, 0);
  for (const kind of ['one_time', 'pq_one_time']) {
    await bobs[0].socket.waitFor('prekeys.low', (data) => data.kind === kind && data.remaining === 0);
  }
  const fresh = bobs[0].signal.oneTimeKeys(2);
  const issued = sets[0].one_time_prekeys[0];
  const answer = await bobs[0].socket.request('keys.publish', { ...fresh, one_time_prekeys: [issued, ...fresh.one_time_prekeys] });
  assert.deepEqual(answer.one_time, {
    accepted: ids(fresh.one_time_prekeys), duplicate: [], conflict: [], already_issued: [issued.key_id], over_cap: [],
  });
  ok('Bob, reminded of it when he reconnects, refills; a key that was issued before is reported and not taken again');

  const refilled = bundleOf(await claim(late[0], bobs[0], lateClaim, [bobs[0].session.device_id]), bobs[0]);
  assert.deepEqual([refilled.one_time, refilled.one_time_prekey], ['claimed', fresh.one_time_prekeys[0]]);
  assert.deepEqual(refilled.pq_prekey, { ...fresh.pq_one_time[0], last_resort: false });
  await talk(late[0], bobs[0], refilled);
  ok('the latecomer’s same claim_id now brings a one-time key, and a fresh session with it works');

  await Promise.all([...claimers, ...bobs, ...late].map(({ socket }) => socket.close()));
}

await twoDevices(MSGPACK);
await twoDevices(JSON_TEXT);
await sharedKeyFails();
await crowd();

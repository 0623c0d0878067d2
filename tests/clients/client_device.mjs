// One device of a person: its keys and sessions in libsignal, its socket to the server, and its messages.
//
// libsignal's sessions change with every message, so only one task at a time may use a device.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Connection, redeem, requestCode, signIn } from './sealwire.mjs';
import { SignalDevice, isFirstMessage, newRegistrationId } from './signal_device.mjs';

export const MSGPACK = { format: 'msgpack', tokenIn: 'header' };
export const JSON_TEXT = { format: 'json', tokenIn: 'subprotocol' };
export const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
export const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z$/;

export const ok = (what) => console.log(`  ok  ${what}`);
export const ids = (keys) => keys.map(({ key_id }) => key_id);

export class Device {
  /** The messages read, oldest first: `{from, text, first}`, where `from` is the sending device. */
  inbox = [];

  #server;
  /** The devices with which this one has a session, by user. */
  #sessions = new Map();

  /** Creates a device for `name`, signed in and connected. */
  static async signIn(server, name, transport) {
    const registrationId = newRegistrationId();
    const session = await signIn(server, `${name}@clients.example`, {
      device: { name: `${name}’s ${transport.format} device`, registration_id: registrationId },
    });
    for (const id of [session.user_id, session.device_id, session.session_id]) assert.match(id, UUID);
    const device = new Device(server, session, transport, registrationId);
    await device.connect();
    return device;
  }

  constructor(server, session, transport, registrationId) {
    this.#server = server;
    Object.assign(this, { session, transport, signal: new SignalDevice(session.device_id, registrationId) });
  }

  get id() {
    return this.session.device_id;
  }

  get user() {
    return this.session.user_id;
  }

  async connect() {
    this.socket = await Connection.open(this.#server, this.session.token, this.transport);
  }

  async reconnect() {
    await this.socket.close();
    await this.connect();
  }

  /** Logs out, and signs in as the same device with a proof of its identity key, after attempts that must be refused. */
  async signInAgain(email, foreign) {
    await this.socket.request('session.logout');
    await this.socket.closed;
    const code = await requestCode(this.#server, email);
    const attempts = [
      undefined,
      'no proof',
      foreign.signal.proof(code.challenge_id, this.id),
      this.signal.proof(code.challenge_id, foreign.id),
      this.signal.proof(randomUUID()),
    ];
    for (const proof of attempts) {
      const device = { id: this.id, proof };
      await assert.rejects(redeem(this.#server, code, { device }), { code: 'proof_required', status: 403 });
    }
    const proof = this.signal.proof(code.challenge_id);
    const session = await redeem(this.#server, code, { device: { id: this.id, proof } });
    assert.deepEqual([session.user_id, session.device_id], [this.user, this.id]);
    const replayed = redeem(this.#server, await requestCode(this.#server, email), { device: { id: this.id, proof } });
    await assert.rejects(replayed, { code: 'proof_required' });
    this.session = { ...this.session, ...session };
    await this.connect();
  }

  /** Publishes a complete set and checks that every key was accepted. */
  async publish(count) {
    const set = this.signal.completeSet(count);
    const answer = await this.socket.request('keys.publish', set);
    const none = { duplicate: [], conflict: [], already_issued: [], over_cap: [], withdrawn: [] };
    assert.deepEqual(answer.one_time, { accepted: ids(set.one_time_prekeys), ...none });
    assert.deepEqual(answer.pq_one_time, { accepted: ids(set.pq_one_time), ...none });
    const { expires_at } = answer.status.signed_prekey;
    assert.match(expires_at, TIME);
    assert.deepEqual(await this.socket.request('keys.status'), answer.status);
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

  claim(user, claimId = randomUUID(), deviceIds) {
    return this.socket.request('keys.claim', { user_id: user, claim_id: claimId, device_ids: deviceIds });
  }

  /** Starts a session with each device of `user` whose bundle is in the reply of a claim. */
  async startSessions(user, { bundles }) {
    for (const bundle of bundles) {
      await this.signal.startSession(bundle);
      this.#devicesOf(user).add(bundle.device_id);
    }
  }

  /** Sends texts to the known devices of a user, all at once. Returns the replies. */
  async send(user, ...texts) {
    const requests = [];
    for (const text of texts) {
      const messages = [];
      for (const deviceId of this.#devicesOf(user)) messages.push(await this.#encrypt(deviceId, text));
      requests.push({ message_id: randomUUID(), to: user, messages });
    }
    const replies = await Promise.all(requests.map((params) => this.socket.request('messages.send', params)));
    for (const { accepted_at, duplicate, undelivered } of replies) {
      assert.match(accepted_at, TIME);
      assert.deepEqual([duplicate, undelivered], [false, []]);
    }
    return replies;
  }

  /** Reads this many envelopes and acks them. Returns their texts. */
  async receive(count = 1) {
    const envelopes = [];
    while (envelopes.length < count) envelopes.push(await this.socket.waitFor('message'));
    for (const envelope of envelopes) await this.#read(envelope);
    const { acked } = await this.socket.request('messages.ack', { seqs: envelopes.map(({ seq }) => seq) });
    assert.equal(acked, count);
    return this.inbox.slice(-count).map(({ text }) => text);
  }

  /** Decrypts an envelope, which is possible only once. */
  async #read(envelope) {
    const { seq, message_id, from, type, content, accepted_at, ephemeral } = envelope;
    assert.match(message_id, UUID);
    assert.match(accepted_at, TIME);
    assert.equal(ephemeral, false);
    assert.equal(seq, this.inbox.length + 1, 'the seqs of a mailbox have no gaps');
    const sealed = { type, content: this.#fromWire(content) };
    const text = await this.signal.decrypt(from.device_id, sealed);
    this.#devicesOf(from.user_id).add(from.device_id);
    this.inbox.push({ from: from.device_id, text, first: isFirstMessage(sealed) });
  }

  async #encrypt(deviceId, text) {
    const { type, content } = await this.signal.encrypt(deviceId, text);
    return { device_id: deviceId, type, content: this.#toWire(content) };
  }

  /** Converts content for the wire: bytes in MessagePack, base64 in JSON. */
  #toWire(bytes) {
    return this.transport.format === 'json' ? Buffer.from(bytes).toString('base64') : bytes;
  }

  #fromWire(content) {
    if (this.transport.format === 'json') return Uint8Array.from(Buffer.from(content, 'base64'));
    assert(content instanceof Uint8Array, 'content is bin');
    return content;
  }

  #devicesOf(user) {
    if (!this.#sessions.has(user)) this.#sessions.set(user, new Set());
    return this.#sessions.get(user);
  }
}

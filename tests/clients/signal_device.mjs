// One device of a person in libsignal: its key records and in-memory stores, and the conversion to and from Sealwire's wire format
// (serialized keys with their type byte, in base64).

import * as signal from '@signalapp/libsignal-client';
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';

const SIGNED_PREKEY_ID = 1;
const LAST_RESORT_ID = 1; // libsignal keeps all Kyber keys in one store, so one-time keys need other ids
const FIRST_ONE_TIME_ID = 100;

const base64 = (bytes) => Buffer.from(bytes).toString('base64');
const bytes = (text) => Uint8Array.from(Buffer.from(text, 'base64'));
const publicKey = (text) => signal.PublicKey.deserialize(bytes(text));

/** The address under which sessions and identities are stored: Sealwire's device id, with 1 as libsignal's device number. */
const address = (deviceId) => signal.ProtocolAddress.new(deviceId, 1);

/** A random registration id, to send to the server at sign-in. */
export const newRegistrationId = () => randomInt(1, 16_381);

export class SignalDevice {
  #sessions = new Sessions();
  #prekeys = new Prekeys();
  #signedPrekeys = new SignedPrekeys();
  #kyberPrekeys = new KyberPrekeys();
  #identityPair = signal.IdentityKeyPair.generate();
  #identities;
  #nextOneTimeId = FIRST_ONE_TIME_ID;

  constructor(deviceId, registrationId) {
    this.deviceId = deviceId;
    this.registrationId = registrationId;
    this.#identities = new Identities(this.#identityPair, registrationId);
  }

  get identityKey() {
    return base64(this.#identityPair.publicKey.serialize());
  }

  /** Proves the identity of this device in a sign-in with this challenge. */
  proof(challengeId, deviceId = this.deviceId) {
    const uuid = (text) => Buffer.from(text.replaceAll('-', ''), 'hex');
    const text = Buffer.concat([Buffer.from('sealwire-device-proof-v1'), uuid(challengeId), uuid(deviceId)]);
    return base64(this.#identityPair.privateKey.sign(text));
  }

  /** Params of a first `keys.publish`: a complete signal-pqxdh set with `count` one-time keys of each kind. */
  completeSet(count) {
    const pair = signal.PrivateKey.generate();
    const signature = this.#sign(pair.getPublicKey());
    const record = signal.SignedPreKeyRecord.new(SIGNED_PREKEY_ID, Date.now(), pair.getPublicKey(), pair, signature);
    this.#signedPrekeys.records.set(SIGNED_PREKEY_ID, record);
    return {
      suite: 'signal-pqxdh',
      identity_key: this.identityKey,
      signed_prekey: onWire(record),
      pq_last_resort: this.#newKyberKey(LAST_RESORT_ID),
      ...this.oneTimeKeys(count),
    };
  }

  /** Params of a later `keys.publish`: `count` fresh one-time keys of each kind. */
  oneTimeKeys(count) {
    const ids = Array.from({ length: count }, () => this.#nextOneTimeId++);
    return {
      one_time_prekeys: ids.map((id) => {
        const pair = signal.PrivateKey.generate();
        this.#prekeys.records.set(id, signal.PreKeyRecord.new(id, pair.getPublicKey(), pair));
        return { key_id: id, public_key: base64(pair.getPublicKey().serialize()) };
      }),
      pq_one_time: ids.map((id) => this.#newKyberKey(id)),
    };
  }

  /** Starts a session with the device that published this bundle. libsignal verifies both signatures. */
  async startSession(bundle) {
    const { signed_prekey: signed, one_time_prekey: oneTime, pq_prekey: pq } = bundle;
    const prekeyBundle = signal.PreKeyBundle.new(
      bundle.registration_id, 1,
      oneTime && oneTime.key_id, oneTime && publicKey(oneTime.public_key),
      signed.key_id, publicKey(signed.public_key), bytes(signed.signature),
      publicKey(bundle.identity_key),
      pq.key_id, signal.KEMPublicKey.deserialize(bytes(pq.public_key)), bytes(pq.signature),
    );
    const [peer, self] = [address(bundle.device_id), address(this.deviceId)];
    await signal.processPreKeyBundle(prekeyBundle, peer, self, this.#sessions, this.#identities);
  }

  /** Encrypts for a device with which there is a session. Returns `{type, content}`. */
  async encrypt(toDeviceId, text) {
    const [peer, self] = [address(toDeviceId), address(this.deviceId)];
    const plain = Uint8Array.from(Buffer.from(text));
    const message = await signal.signalEncrypt(plain, peer, self, this.#sessions, this.#identities);
    return { type: message.type(), content: message.serialize() };
  }

  /** Decrypts what the device `fromDeviceId` encrypted. A first message also starts the session here. */
  async decrypt(fromDeviceId, { type, content }) {
    const [peer, self] = [address(fromDeviceId), address(this.deviceId)];
    const plain = type === signal.CiphertextMessageType.PreKey
      ? await signal.signalDecryptPreKey(signal.PreKeySignalMessage.deserialize(content), peer, self,
          this.#sessions, this.#identities, this.#prekeys, this.#signedPrekeys, this.#kyberPrekeys)
      : await signal.signalDecrypt(signal.SignalMessage.deserialize(content), peer, self,
          this.#sessions, this.#identities);
    return Buffer.from(plain).toString();
  }

  #newKyberKey(id) {
    const pair = signal.KEMKeyPair.generate();
    const record = signal.KyberPreKeyRecord.new(id, Date.now(), pair, this.#sign(pair.getPublicKey()));
    this.#kyberPrekeys.records.set(id, record);
    return onWire(record);
  }

  #sign(key) {
    return this.#identityPair.privateKey.sign(key.serialize());
  }
}

/** Whether a message starts a session. */
export const isFirstMessage = ({ type }) => type === signal.CiphertextMessageType.PreKey;

function onWire(record) {
  return {
    key_id: record.id(),
    public_key: base64(record.publicKey().serialize()),
    signature: base64(record.signature()),
  };
}

function take(records, id, kind) {
  const record = records.get(id);
  if (!record) throw new Error(`no ${kind} ${id}: used before, or never created`);
  return record;
}

class Sessions extends signal.SessionStore {
  records = new Map();
  async saveSession(peer, record) { this.records.set(peer.toString(), record.serialize()); }
  async getSession(peer) {
    const saved = this.records.get(peer.toString());
    return saved ? signal.SessionRecord.deserialize(saved) : null;
  }
  async getExistingSessions(peers) { return Promise.all(peers.map((peer) => this.getSession(peer))); }
}

class Identities extends signal.IdentityKeyStore {
  known = new Map();
  constructor(pair, registrationId) {
    super();
    Object.assign(this, { pair, registrationId });
  }
  async getIdentityKey() { return this.pair.privateKey; }
  async getLocalRegistrationId() { return this.registrationId; }
  async getIdentity(peer) { return this.known.get(peer.toString()) ?? null; }
  async isTrustedIdentity(peer, key) { return this.known.get(peer.toString())?.equals(key) ?? true; }
  async saveIdentity(peer, key) {
    this.known.set(peer.toString(), key);
    return signal.IdentityChange.NewOrUnchanged;
  }
}

class Prekeys extends signal.PreKeyStore {
  records = new Map();
  async savePreKey(id, record) { this.records.set(id, record); }
  async getPreKey(id) { return take(this.records, id, 'one-time prekey'); }
  async removePreKey(id) { this.records.delete(id); }
}

class SignedPrekeys extends signal.SignedPreKeyStore {
  records = new Map();
  async saveSignedPreKey(id, record) { this.records.set(id, record); }
  async getSignedPreKey(id) { return take(this.records, id, 'signed prekey'); }
}

class KyberPrekeys extends signal.KyberPreKeyStore {
  records = new Map();
  #lastResortUses = new Set();
  async saveKyberPreKey(id, record) { this.records.set(id, record); }
  async getKyberPreKey(id) { return take(this.records, id, 'Kyber prekey'); }
  /** Deletes a one-time key. The last-resort key stays, but a sender's base key may be used with it only once. */
  async markKyberPreKeyUsed(id, signedPrekeyId, baseKey) {
    if (id !== LAST_RESORT_ID) return void this.records.delete(id);
    const use = `${signedPrekeyId} ${base64(baseKey.serialize())}`;
    assert(!this.#lastResortUses.has(use), 'a replayed first message');
    this.#lastResortUses.add(use);
  }
}

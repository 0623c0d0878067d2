// A crypto adapter for libsignal: suite `signal-pqxdh`, by the libsignal profile of docs/protocol.md.
//
// Everything is kept in the transactions of the client. libsignal's stores are made anew for each call, over the transaction of that call.

import { type CryptoAdapter, CryptoError, type KeysWanted, type Transaction } from '@sealwire/client';
import type { PrekeyBundle, PublishKeysRequest, PublishedSignedKey } from '@sealwire/client/protocol';
import * as signal from '@signalapp/libsignal-client';

const IDENTITY = 'signal/identity';
const NEXT = 'signal/next-id';
const PREKEY = 'signal/prekey/';
const SIGNED = 'signal/signed/';
const KYBER = 'signal/kyber/';
const BASE_KEY = 'signal/base-key/';
const SESSION = 'signal/session/';
const KNOWN = 'signal/known/';

/** The largest registration id that the server takes. */
const MAX_REGISTRATION_ID = 16_380;

type Bytes = Uint8Array<ArrayBuffer>;

interface Identity {
  pair: Bytes;
  registrationId: number;
  [key: string]: Bytes | number;
}

/** A stored signed prekey or Kyber key. */
interface StoredKey {
  record: Bytes;
  /** When, by the server's clock, a newer one took its place; absent for the newest, and for one-time keys. */
  replacedAt?: number;
  /** Whether it is a last-resort key, which is not deleted on use. */
  lastResort?: boolean;
  [key: string]: Bytes | number | boolean | undefined;
}

const base64 = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');
const unbase64 = (text: string): Bytes => Uint8Array.from(Buffer.from(text, 'base64'));
const copy = (bytes: Uint8Array): Bytes => Uint8Array.from(bytes);
const id = (n: number) => String(n).padStart(10, '0');

/** An address in libsignal: the device id, with 1 as the device number. */
const address = (deviceId: string) => signal.ProtocolAddress.new(deviceId, 1);

/**
 * Encrypts with libsignal, whose package `@signalapp/libsignal-client` is AGPL-3.0-only: an app that contains it has to be published under
 * that licence. Runs in Node and Electron; it is native code, and not for browsers.
 */
export function libsignalCrypto(): CryptoAdapter {
  const adapter: CryptoAdapter = {
    suite: 'signal-pqxdh',
    pq: true,

    async identity(tx) {
      const { pair, registrationId } = await identity(tx);
      return { key: base64(signal.IdentityKeyPair.deserialize(pair).publicKey.serialize()), registrationId };
    },

    async sign(tx, bytes) {
      return (await privateKey(tx)).sign(copy(bytes));
    },

    async newKeys(tx, wanted) {
      return newKeys(tx, wanted);
    },

    async publicKeys(tx) {
      const keys: PublishKeysRequest = { one_time_prekeys: [], pq_one_time: [] };
      for (const [, bytes] of await tx.list<Bytes>(PREKEY)) {
        const record = signal.PreKeyRecord.deserialize(copy(bytes));
        keys.one_time_prekeys!.push({ key_id: record.id(), public_key: base64(record.publicKey().serialize()) });
      }
      for (const [, { record, replacedAt }] of await tx.list<StoredKey>(SIGNED)) {
        if (replacedAt === undefined) keys.signed_prekey = published(signal.SignedPreKeyRecord.deserialize(copy(record)));
      }
      for (const [, { record, replacedAt, lastResort }] of await tx.list<StoredKey>(KYBER)) {
        if (replacedAt !== undefined) continue;
        const key = published(signal.KyberPreKeyRecord.deserialize(copy(record)));
        if (lastResort) keys.pq_last_resort = key;
        else keys.pq_one_time!.push(key);
      }
      return keys;
    },

    async dropKeys(tx, kind, ids) {
      for (const n of ids) tx.delete((kind === 'one_time' ? PREKEY : KYBER) + id(n));
    },

    async dropReplacedKeys(tx, time) {
      for (const prefix of [SIGNED, KYBER]) {
        for (const [key, { replacedAt }] of await tx.list<StoredKey>(prefix)) {
          if (replacedAt === undefined || replacedAt >= time) continue;
          tx.delete(key);
          if (prefix !== KYBER) continue;
          for (const [used] of await tx.list(`${BASE_KEY}${key.slice(KYBER.length)}/`)) tx.delete(used);
        }
      }
    },

    async hasSession(tx, { deviceId }) {
      const stored = await tx.get<Bytes>(SESSION + deviceId);
      // libsignal does not use sessions that were not answered for long.
      return stored !== undefined && signal.SessionRecord.deserialize(copy(stored)).hasCurrentState();
    },

    async openSession(tx, self, { deviceId }, bundle) {
      if (bundle.device_id !== deviceId) throw new CryptoError('untrusted', 'the bundle is of another device');
      const stores = new Stores(tx);
      await stores.run('untrusted', async () =>
        signal.processPreKeyBundle(prekeyBundle(bundle), address(deviceId), address(self.deviceId), stores.sessions, stores.identities),
      );
    },

    async encrypt(tx, self, { deviceId }, plaintext) {
      const stores = new Stores(tx);
      return stores.run('undecryptable', async () => {
        const peer = address(deviceId);
        const message = await signal.signalEncrypt(copy(plaintext), peer, address(self.deviceId), stores.sessions, stores.identities);
        return { type: message.type(), content: message.serialize() };
      });
    },

    async decrypt(tx, self, { deviceId }, { type, content }) {
      const stores = new Stores(tx);
      return stores.run('undecryptable', async () => {
        const [peer, local, bytes] = [address(deviceId), address(self.deviceId), copy(content)];
        const { sessions, identities } = stores;
        if (type === signal.CiphertextMessageType.PreKey) {
          const message = signal.PreKeySignalMessage.deserialize(bytes);
          return signal.signalDecryptPreKey(message, peer, local, sessions, identities, stores.prekeys, stores.signed, stores.kyber);
        }
        return signal.signalDecrypt(signal.SignalMessage.deserialize(bytes), peer, local, sessions, identities);
      });
    },

    async dropSessions(tx, deviceId) {
      if (deviceId !== undefined) tx.delete(SESSION + deviceId);
      else for (const [key] of await tx.list(SESSION)) tx.delete(key);
    },
  };
  return adapter;
}

/** The fingerprint to compare with another person, for the public identity keys (base64) of one device of each. */
export function safetyNumber(own: { userId: string; identityKey: string }, other: { userId: string; identityKey: string }): string {
  const key = (text: string) => signal.PublicKey.deserialize(unbase64(text));
  const name = (userId: string): Bytes => Uint8Array.from(Buffer.from(userId));
  return signal.Fingerprint.new(5200, 2, name(own.userId), key(own.identityKey), name(other.userId), key(other.identityKey))
    .displayableFingerprint()
    .toString();
}

async function identity(tx: Transaction): Promise<Identity> {
  let stored = await tx.get<Identity>(IDENTITY);
  if (!stored) {
    const [random] = crypto.getRandomValues(new Uint32Array(1));
    stored = { pair: signal.IdentityKeyPair.generate().serialize(), registrationId: 1 + (random! % MAX_REGISTRATION_ID) };
    tx.set(IDENTITY, stored);
  }
  return { ...stored, pair: copy(stored.pair) };
}

const privateKey = async (tx: Transaction) => signal.IdentityKeyPair.deserialize((await identity(tx)).pair).privateKey;

async function newKeys(tx: Transaction, { signed, oneTime = 0, pqOneTime = 0, minId = 0, now }: KeysWanted): Promise<PublishKeysRequest> {
  const signer = await privateKey(tx);
  // One counter for all kinds: libsignal keeps one-time Kyber keys and last-resort keys in one store.
  let next = Math.max((await tx.get<number>(NEXT)) ?? 1, minId);
  const keys: PublishKeysRequest = {};

  const replace = async (prefix: string, which: (key: StoredKey) => boolean) => {
    for (const [key, stored] of await tx.list<StoredKey>(prefix)) {
      if (stored.replacedAt === undefined && which(stored)) tx.set(key, { ...stored, replacedAt: now });
    }
  };
  const kyberKey = (lastResort: boolean) => {
    const pair = signal.KEMKeyPair.generate();
    const record = signal.KyberPreKeyRecord.new(next, now, pair, signer.sign(pair.getPublicKey().serialize()));
    const stored: StoredKey = { record: record.serialize(), ...(lastResort && { lastResort }) };
    tx.set(KYBER + id(next++), stored);
    return published(record);
  };

  if (signed) {
    await replace(SIGNED, () => true);
    await replace(KYBER, ({ lastResort }) => lastResort === true);
    const pair = signal.PrivateKey.generate();
    const publicKey = pair.getPublicKey();
    const record = signal.SignedPreKeyRecord.new(next, now, publicKey, pair, signer.sign(publicKey.serialize()));
    tx.set(SIGNED + id(next++), { record: record.serialize() });
    keys.signed_prekey = published(record);
    keys.pq_last_resort = kyberKey(true);
  }
  if (oneTime > 0) {
    keys.one_time_prekeys = Array.from({ length: oneTime }, () => {
      const pair = signal.PrivateKey.generate();
      const record = signal.PreKeyRecord.new(next, pair.getPublicKey(), pair);
      tx.set(PREKEY + id(next++), record.serialize());
      return { key_id: record.id(), public_key: base64(record.publicKey().serialize()) };
    });
  }
  if (pqOneTime > 0) keys.pq_one_time = Array.from({ length: pqOneTime }, () => kyberKey(false));
  tx.set(NEXT, next);
  return keys;
}

/** A key as it is published. */
function published(record: signal.SignedPreKeyRecord | signal.KyberPreKeyRecord): PublishedSignedKey {
  return { key_id: record.id(), public_key: base64(record.publicKey().serialize()), signature: base64(record.signature()) };
}

function prekeyBundle(bundle: PrekeyBundle): signal.PreKeyBundle {
  const key = (text: string) => signal.PublicKey.deserialize(unbase64(text));
  const { signed_prekey: signed, one_time_prekey: oneTime, pq_prekey: pq } = bundle;
  if (!pq) throw new Error('the bundle has no PQ key');
  return signal.PreKeyBundle.new(
    bundle.registration_id,
    1,
    oneTime ? oneTime.key_id : null,
    oneTime ? key(oneTime.public_key) : null,
    signed.key_id,
    key(signed.public_key),
    unbase64(signed.signature),
    key(bundle.identity_key),
    pq.key_id,
    signal.KEMPublicKey.deserialize(unbase64(pq.public_key)),
    unbase64(pq.signature),
  );
}

/** libsignal's stores over one transaction. */
class Stores {
  readonly sessions: signal.SessionStore;
  readonly identities: signal.IdentityKeyStore;
  readonly prekeys: signal.PreKeyStore;
  readonly signed: signal.SignedPreKeyStore;
  readonly kyber: signal.KyberPreKeyStore;
  /** The first failure of the transaction itself, which libsignal may hide in an error of its own. */
  #failure: { error: unknown } | null = null;

  constructor(tx: Transaction) {
    const get = async <T extends Bytes | StoredKey>(key: string): Promise<T | undefined> => {
      try {
        return await tx.get<T>(key);
      } catch (error) {
        this.#failure ??= { error };
        throw error;
      }
    };
    this.sessions = new Sessions(tx, get);
    this.identities = new Identities(tx, get);
    this.prekeys = new Prekeys(tx, get);
    this.signed = new SignedPrekeys(get);
    this.kyber = new KyberPrekeys(tx, get);
  }

  /** Runs a call of libsignal. Its failures are a `CryptoError`. */
  async run<T>(code: 'undecryptable' | 'untrusted', work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (this.#failure) throw this.#failure.error;
      const untrusted = (error as signal.LibSignalErrorBase).code === signal.ErrorCode.UntrustedIdentity;
      throw new CryptoError(untrusted ? 'untrusted' : code, (error as Error).message, { cause: error });
    }
  }
}

type Get = <T extends Bytes | StoredKey>(key: string) => Promise<T | undefined>;

async function present<T extends Bytes | StoredKey>(get: Get, key: string, what: string): Promise<T> {
  const value = await get<T>(key);
  if (value === undefined) throw new Error(`no ${what}: used before, or deleted`);
  return value;
}

class Sessions extends signal.SessionStore {
  constructor(
    private readonly tx: Transaction,
    private readonly get: Get,
  ) {
    super();
  }

  async saveSession(peer: signal.ProtocolAddress, record: signal.SessionRecord): Promise<void> {
    this.tx.set(SESSION + peer.name(), record.serialize());
  }

  async getSession(peer: signal.ProtocolAddress): Promise<signal.SessionRecord | null> {
    const stored = await this.get<Bytes>(SESSION + peer.name());
    return stored ? signal.SessionRecord.deserialize(copy(stored)) : null;
  }

  async getExistingSessions(peers: signal.ProtocolAddress[]): Promise<signal.SessionRecord[]> {
    const sessions = await Promise.all(peers.map((peer) => this.getSession(peer)));
    return sessions.filter((session) => session !== null);
  }
}

class Identities extends signal.IdentityKeyStore {
  constructor(
    private readonly tx: Transaction,
    private readonly get: Get,
  ) {
    super();
  }

  async getIdentityKey(): Promise<signal.PrivateKey> {
    return privateKey(this.tx);
  }

  async getLocalRegistrationId(): Promise<number> {
    return (await identity(this.tx)).registrationId;
  }

  async getIdentity(peer: signal.ProtocolAddress): Promise<signal.PublicKey | null> {
    const stored = await this.get<Bytes>(KNOWN + peer.name());
    return stored ? signal.PublicKey.deserialize(copy(stored)) : null;
  }

  /** The first key of a device is taken; a device never changes it. */
  async isTrustedIdentity(peer: signal.ProtocolAddress, key: signal.PublicKey): Promise<boolean> {
    return (await this.getIdentity(peer))?.equals(key) ?? true;
  }

  async saveIdentity(peer: signal.ProtocolAddress, key: signal.PublicKey): Promise<signal.IdentityChange> {
    this.tx.set(KNOWN + peer.name(), key.serialize());
    return signal.IdentityChange.NewOrUnchanged;
  }
}

class Prekeys extends signal.PreKeyStore {
  constructor(
    private readonly tx: Transaction,
    private readonly get: Get,
  ) {
    super();
  }

  async savePreKey(n: number, record: signal.PreKeyRecord): Promise<void> {
    this.tx.set(PREKEY + id(n), record.serialize());
  }

  async getPreKey(n: number): Promise<signal.PreKeyRecord> {
    return signal.PreKeyRecord.deserialize(copy(await present<Bytes>(this.get, PREKEY + id(n), `one-time prekey ${n}`)));
  }

  async removePreKey(n: number): Promise<void> {
    this.tx.delete(PREKEY + id(n));
  }
}

class SignedPrekeys extends signal.SignedPreKeyStore {
  constructor(private readonly get: Get) {
    super();
  }

  saveSignedPreKey(): Promise<void> {
    return Promise.reject(new Error('signed prekeys are made by newKeys'));
  }

  async getSignedPreKey(n: number): Promise<signal.SignedPreKeyRecord> {
    return signal.SignedPreKeyRecord.deserialize(copy((await present<StoredKey>(this.get, SIGNED + id(n), `signed prekey ${n}`)).record));
  }
}

class KyberPrekeys extends signal.KyberPreKeyStore {
  constructor(
    private readonly tx: Transaction,
    private readonly get: Get,
  ) {
    super();
  }

  saveKyberPreKey(): Promise<void> {
    return Promise.reject(new Error('Kyber prekeys are made by newKeys'));
  }

  async getKyberPreKey(n: number): Promise<signal.KyberPreKeyRecord> {
    return signal.KyberPreKeyRecord.deserialize(copy((await present<StoredKey>(this.get, KYBER + id(n), `Kyber prekey ${n}`)).record));
  }

  /** A one-time key is deleted. A last-resort key stays, but may be used with a base key and a signed prekey only once. */
  async markKyberPreKeyUsed(n: number, signedId: number, baseKey: signal.PublicKey): Promise<void> {
    const { lastResort } = await present<StoredKey>(this.get, KYBER + id(n), `Kyber prekey ${n}`);
    if (!lastResort) return this.tx.delete(KYBER + id(n));
    const used = `${BASE_KEY}${id(n)}/${signedId}/${base64(baseKey.serialize())}`;
    if (await this.get<Bytes>(used)) throw new Error('a replayed first message');
    this.tx.set(used, new Uint8Array());
  }
}

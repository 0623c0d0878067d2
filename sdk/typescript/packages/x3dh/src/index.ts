// A crypto adapter for browsers and Node: suite `ed25519-x3dh`, with X3DH and the Double Ratchet on the @noble packages.
//
// The @noble packages are audited. This combination of them is not.

import { type CryptoAdapter, CryptoError, type Storage, StorageError, type Transaction } from '@sealwire/client';
import type { PublishKeysRequest } from '@sealwire/client/protocol';
import { sha512 } from '@noble/hashes/sha2.js';
import { concatBytes, hexToBytes, utf8ToBytes } from '@noble/hashes/utils.js';
import * as ratchet from './ratchet.js';
import { equal, type RatchetState } from './ratchet.js';
import { initiate, type KeyPair, newIdentity, newKeyPair, respond, sign, verify } from './x3dh.js';

const IDENTITY = 'x3dh/identity';
const NEXT = 'x3dh/next-id';
const ONE_TIME = 'x3dh/one-time/';
const SIGNED = 'x3dh/signed/';
const USED = 'x3dh/used/';
const SESSION = 'x3dh/session/';
const KNOWN = 'x3dh/known/';

/** The types of messages: of a session that both sides know, and of one whose other side has not answered. */
const RATCHET = 2;
const FIRST = 3;
/** The version that every message begins with. */
const VERSION = 1;
/** Length of what a first message has before its ratchet message: version, identity key, ephemeral key, ids of the prekeys. */
const FIRST_LENGTH = 1 + 32 + 32 + 4 + 4;
/** In the place of the id of a one-time prekey: there was none. */
const NONE = 0xffffffff;
/** Sessions with one device, the newest included: as many as libsignal keeps. Messages over older ones are lost. */
const MAX_SESSIONS = 40;
/** A session that was not answered for so long is not used any more. */
const UNANSWERED_MS = 30 * 86_400_000;

interface Session {
  /** The ephemeral key of the side that opened it, by which both know it. */
  ephemeral: Uint8Array;
  /** The associated data of all its messages. */
  ad: Uint8Array;
  ratchet: RatchetState;
  /** As long as nothing came over it: what first messages begin with. */
  opening?: Uint8Array;
  openedAt: number;
  [key: string]: Uint8Array | RatchetState | number | undefined;
}

interface StoredSigned {
  pair: KeyPair;
  signature: Uint8Array;
  /** When a newer one took its place; absent for the newest. */
  replacedAt?: number;
  [key: string]: KeyPair | Uint8Array | number | undefined;
}

const base64 = (bytes: Uint8Array) => btoa(String.fromCharCode(...bytes));
const unbase64 = (text: string) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const id = (n: number) => String(n).padStart(10, '0');

/** X3DH and the Double Ratchet in JavaScript. Works in browsers; not audited. */
export function x3dhCrypto(): CryptoAdapter {
  const adapter: CryptoAdapter = {
    suite: 'ed25519-x3dh',
    pq: false,

    async identity(tx) {
      return { key: base64((await identity(tx)).publicKey) };
    },

    async sign(tx, bytes) {
      return sign(bytes, (await identity(tx)).privateKey);
    },

    async newKeys(tx, { signed, oneTime = 0, minId = 0, now }) {
      let next = Math.max((await tx.get<number>(NEXT)) ?? 1, minId);
      const keys: PublishKeysRequest = {};
      if (signed) {
        for (const [key, stored] of await tx.list<StoredSigned>(SIGNED)) {
          if (stored.replacedAt === undefined) tx.set(key, { ...stored, replacedAt: now });
        }
        const pair = newKeyPair();
        const stored: StoredSigned = { pair, signature: sign(pair.publicKey, (await identity(tx)).privateKey) };
        keys.signed_prekey = published(next, stored);
        tx.set(SIGNED + id(next++), stored);
      }
      if (oneTime > 0) {
        keys.one_time_prekeys = Array.from({ length: oneTime }, () => {
          const pair = newKeyPair();
          tx.set(ONE_TIME + id(next), pair);
          return { key_id: next++, public_key: base64(pair.publicKey) };
        });
      }
      tx.set(NEXT, next);
      return keys;
    },

    async publicKeys(tx) {
      const keys: PublishKeysRequest = { one_time_prekeys: [] };
      for (const [key, pair] of await tx.list<KeyPair>(ONE_TIME)) {
        keys.one_time_prekeys!.push({ key_id: Number(key.slice(ONE_TIME.length)), public_key: base64(pair.publicKey) });
      }
      for (const [key, stored] of await tx.list<StoredSigned>(SIGNED)) {
        if (stored.replacedAt === undefined) keys.signed_prekey = published(Number(key.slice(SIGNED.length)), stored);
      }
      return keys;
    },

    async dropKeys(tx, _kind, ids) {
      for (const n of ids) tx.delete(ONE_TIME + id(n));
    },

    async dropReplacedKeys(tx, time) {
      for (const [key, { replacedAt }] of await tx.list<StoredSigned>(SIGNED)) {
        if (replacedAt === undefined || replacedAt >= time) continue;
        tx.delete(key);
        for (const [used] of await tx.list(`${USED}${key.slice(SIGNED.length)}/`)) tx.delete(used);
      }
    },

    async hasSession(tx, { deviceId }) {
      const [newest] = await sessions(tx, deviceId);
      return newest !== undefined && !(newest.opening && Date.now() - newest.openedAt > UNANSWERED_MS);
    },

    openSession: (tx, self, device, bundle) =>
      guard('untrusted', async () => {
        if (bundle.device_id !== device.deviceId) throw new Error('the bundle is of another device');
        if (bundle.suite !== 'ed25519-x3dh') throw new Error(`the bundle has the suite ${bundle.suite}`);
        const identityKey = unbase64(bundle.identity_key);
        const signed = unbase64(bundle.signed_prekey.public_key);
        if (!verify(unbase64(bundle.signed_prekey.signature), signed, identityKey)) {
          throw new Error('the signature of the signed prekey does not verify');
        }
        await trust(tx, device.deviceId, identityKey);
        const own = await identity(tx);
        const ephemeral = newKeyPair();
        const oneTime = bundle.one_time_prekey;
        const secret = initiate(
          { identity: own, ephemeral },
          { identityKey, signed, oneTime: oneTime ? unbase64(oneTime.public_key) : null },
        );
        const opening = new Uint8Array(FIRST_LENGTH);
        opening[0] = VERSION;
        opening.set(own.publicKey, 1);
        opening.set(ephemeral.publicKey, 33);
        const view = new DataView(opening.buffer);
        view.setUint32(65, bundle.signed_prekey.key_id);
        view.setUint32(69, oneTime ? oneTime.key_id : NONE);
        await add(tx, device.deviceId, {
          ephemeral: ephemeral.publicKey,
          ad: associatedData({ key: own.publicKey, deviceId: self.deviceId }, { key: identityKey, deviceId: device.deviceId }),
          ratchet: ratchet.initiator(secret, signed),
          opening,
          openedAt: Date.now(),
        });
      }),

    encrypt: (tx, _self, { deviceId }, plaintext) =>
      guard('undecryptable', async () => {
        const [session, ...others] = await sessions(tx, deviceId);
        if (!session) throw new Error('there is no session with the device');
        const { state, message } = ratchet.encrypt(session.ratchet, plaintext, session.ad);
        tx.set(SESSION + deviceId, [{ ...session, ratchet: state }, ...others]);
        return session.opening
          ? { type: FIRST, content: concatBytes(session.opening, message) }
          : { type: RATCHET, content: concatBytes(Uint8Array.of(VERSION), message) };
      }),

    decrypt: (tx, self, device, { type, content }) =>
      guard('undecryptable', async () => {
        if (content[0] !== VERSION) throw new Error(`an unknown version: ${content[0]}`);
        if (type === FIRST) return first(tx, self, device, content);
        const known = await sessions(tx, device.deviceId);
        let failure = new Error('there is no session with the device');
        for (const session of known) {
          try {
            return receive(tx, device.deviceId, known, session, content.subarray(1));
          } catch (error) {
            failure = error as Error;
          }
        }
        throw failure;
      }),

    async dropSessions(tx, deviceId) {
      if (deviceId !== undefined) tx.delete(SESSION + deviceId);
      else for (const [key] of await tx.list(SESSION)) tx.delete(key);
    },
  };
  return adapter;
}

/**
 * The number to compare with another person, for the public identity keys (base64) of one device of each: sixty digits, the same on
 * both sides. It is SHA-512, 5200 times, over each user id and key, as in libsignal, though not the same number.
 */
export function safetyNumber(own: { userId: string; identityKey: string }, other: { userId: string; identityKey: string }): string {
  const half = ({ userId, identityKey }: { userId: string; identityKey: string }) => {
    const key = unbase64(identityKey);
    let hash = concatBytes(utf8ToBytes('sealwire-safety-number-v1'), key, utf8ToBytes(userId));
    for (let i = 0; i < 5200; i++) hash = sha512(concatBytes(hash, key));
    let digits = '';
    for (let i = 0; i < 30; i += 5) {
      const number = hash.slice(i, i + 5).reduce((sum, byte) => sum * 256 + byte, 0);
      digits += String(number % 100_000).padStart(5, '0');
    }
    return digits;
  };
  return [half(own), half(other)].sort().join('');
}

/**
 * The public identity keys (base64) of the devices that this one has encrypted sessions with, or had: device id → key. Take these for
 * `safetyNumber`: the server may show other keys than those that it gave out before.
 *
 * @param storage the storage of the client
 */
export async function knownIdentityKeys(storage: Pick<Storage, 'list'>): Promise<Map<string, string>> {
  const entries = (await storage.list(KNOWN)) as [string, Uint8Array][];
  return new Map(entries.map(([key, identityKey]) => [key.slice(KNOWN.length), base64(identityKey)]));
}

/** Runs `work`, whose failures are a `CryptoError`, except those of the storage. */
async function guard<T>(code: 'undecryptable' | 'untrusted', work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof StorageError || error instanceof CryptoError) throw error;
    throw new CryptoError(code, (error as Error).message, { cause: error });
  }
}

async function identity(tx: Transaction): Promise<KeyPair> {
  let pair = await tx.get<KeyPair>(IDENTITY);
  if (!pair) {
    pair = newIdentity();
    tx.set(IDENTITY, pair);
  }
  return pair;
}

const published = (keyId: number, { pair, signature }: StoredSigned) => ({
  key_id: keyId,
  public_key: base64(pair.publicKey),
  signature: base64(signature),
});

/** Takes the first identity key of a device, and refuses any other: a device never changes it. */
async function trust(tx: Transaction, deviceId: string, identityKey: Uint8Array): Promise<void> {
  const known = await tx.get<Uint8Array>(KNOWN + deviceId);
  if (known && !equal(known, identityKey)) throw new CryptoError('untrusted', 'the identity key of the device has changed');
  if (!known) tx.set(KNOWN + deviceId, identityKey);
}

/** The sessions with a device, the one to send over first. */
const sessions = async (tx: Transaction, deviceId: string) => (await tx.get<Session[]>(SESSION + deviceId)) ?? [];

/** Puts a session first. */
async function add(tx: Transaction, deviceId: string, session: Session): Promise<void> {
  tx.set(SESSION + deviceId, [session, ...(await sessions(tx, deviceId))].slice(0, MAX_SESSIONS));
}

/** Both identity keys, that of the side that opened the session first; and the devices, so that nobody's messages pass for another's. */
function associatedData(opener: { key: Uint8Array; deviceId: string }, other: { key: Uint8Array; deviceId: string }): Uint8Array {
  const uuid = (text: string) => hexToBytes(text.replaceAll('-', ''));
  return concatBytes(opener.key, other.key, uuid(opener.deviceId), uuid(other.deviceId));
}

/** Decrypts over one of the `known` sessions, which is the one to send over from now on. */
function receive(tx: Transaction, deviceId: string, known: Session[], session: Session, message: Uint8Array): Uint8Array {
  const { state, plaintext } = ratchet.decrypt(session.ratchet, message, session.ad);
  const { opening: _, ...rest } = session;
  const others = known.filter((other) => other !== session);
  tx.set(SESSION + deviceId, [{ ...rest, ratchet: state }, ...others].slice(0, MAX_SESSIONS));
  return plaintext;
}

/** Decrypts a first message, and opens the session if it is not known yet. */
async function first(
  tx: Transaction,
  self: { deviceId: string },
  { deviceId }: { deviceId: string },
  content: Uint8Array,
): Promise<Uint8Array> {
  if (content.length < FIRST_LENGTH) throw new Error('the message is too short');
  const identityKey = content.slice(1, 33);
  const ephemeral = content.slice(33, 65);
  const view = new DataView(content.buffer, content.byteOffset);
  const [signedId, oneTimeId] = [view.getUint32(65), view.getUint32(69)];
  const message = content.subarray(FIRST_LENGTH);
  await trust(tx, deviceId, identityKey);

  const known = await sessions(tx, deviceId);
  const session = known.find((other) => equal(other.ephemeral, ephemeral));
  if (session) return receive(tx, deviceId, known, session, message);

  const signed = await tx.get<StoredSigned>(SIGNED + id(signedId));
  if (!signed) throw new Error(`no signed prekey ${signedId}: it was deleted, or never made`);
  let oneTime: KeyPair | null = null;
  if (oneTimeId !== NONE) {
    oneTime = (await tx.get<KeyPair>(ONE_TIME + id(oneTimeId))) ?? null;
    if (!oneTime) throw new Error(`no one-time prekey ${oneTimeId}: it was used before, or never made`);
  }
  // Without a one-time prekey nothing is deleted, so the message could be replayed once the session is gone.
  const used = `${USED}${id(signedId)}/${base64(ephemeral)}`;
  if (await tx.get(used)) throw new Error('a replayed first message');

  const own = await identity(tx);
  const secret = respond({ identity: own, signed: signed.pair, oneTime }, { identityKey, ephemeral });
  const ad = associatedData({ key: identityKey, deviceId }, { key: own.publicKey, deviceId: self.deviceId });
  const opened: Session = { ephemeral, ad, ratchet: ratchet.responder(secret, signed.pair), openedAt: Date.now() };
  const plaintext = receive(tx, deviceId, [opened, ...known], opened, message);
  if (oneTime) tx.delete(ONE_TIME + id(oneTimeId));
  else tx.set(used, 1);
  return plaintext;
}

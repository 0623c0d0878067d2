// The interface between the client and a crypto adapter, such as @sealwire/libsignal or @sealwire/x3dh.
//
// An adapter keeps everything in the transaction that it is given, and nothing in memory: the client decides what is stored together.
// The client never runs two transactions at the same time.

import type { PrekeyBundle, PublishKeysRequest, Suite } from './protocol.js';
import type { Transaction } from './storage.js';

/** A device of a user. */
export interface Address {
  userId: string;
  deviceId: string;
}

/** Ciphertext for one device. */
export interface Sealed {
  type: number;
  content: Uint8Array;
}

/** What `newKeys` is to make. */
export interface KeysWanted {
  /** A signed prekey, and under a suite with PQ keys a last-resort key. */
  signed?: boolean;
  /** How many one-time prekeys. */
  oneTime?: number;
  /** How many one-time PQ keys; ignored under a suite without. */
  pqOneTime?: number;
  /** The smallest id that new keys may have. */
  minId?: number;
  /** The time in milliseconds since 1970, by the server's clock. */
  now: number;
}

/** The kinds of one-time keys. */
export type OneTimeKind = 'one_time' | 'pq_one_time';

export interface CryptoAdapter {
  /** The suite of the device's keys. */
  readonly suite: Suite;
  /** Whether the suite has PQ keys. */
  readonly pq: boolean;

  /** Creates the identity of the device if there is none. Returns its public key in base64, and the registration id if it has one. */
  identity(tx: Transaction): Promise<{ key: string; registrationId?: number }>;

  /** A signature of the identity key, in the suite's scheme. */
  sign(tx: Transaction, bytes: Uint8Array): Promise<Uint8Array>;

  /** Makes keys, stores their private halves, and returns the public ones. Ids come from stored counters that never decrease. */
  newKeys(tx: Transaction, wanted: KeysWanted): Promise<PublishKeysRequest>;

  /** The public halves of all one-time keys whose private halves are stored, and of the newest signed prekey and last-resort key. */
  publicKeys(tx: Transaction): Promise<PublishKeysRequest>;

  /** Deletes one-time keys that were withdrawn from the server. */
  dropKeys(tx: Transaction, kind: OneTimeKind, ids: number[]): Promise<void>;

  /** Deletes signed prekeys and last-resort keys that were replaced before `time`. */
  dropReplacedKeys(tx: Transaction, time: number): Promise<void>;

  /** Whether there is an encrypted session with the device over which to send. */
  hasSession(tx: Transaction, device: Address): Promise<boolean>;

  /**
   * Opens an encrypted session. Verifies the signatures, and that the identity key is the one known for the device.
   *
   * @throws CryptoError `untrusted`
   */
  openSession(tx: Transaction, self: Address, device: Address, bundle: PrekeyBundle): Promise<void>;

  encrypt(tx: Transaction, self: Address, device: Address, plaintext: Uint8Array): Promise<Sealed>;

  /**
   * Decrypts, and opens the encrypted session if this is its first message.
   *
   * @throws CryptoError `undecryptable`, or `untrusted` if the identity key is not the one known for the device
   */
  decrypt(tx: Transaction, self: Address, device: Address, sealed: Sealed): Promise<Uint8Array>;

  /** Deletes the encrypted sessions with one device, or with all. Known identity keys stay. */
  dropSessions(tx: Transaction, deviceId?: string): Promise<void>;
}

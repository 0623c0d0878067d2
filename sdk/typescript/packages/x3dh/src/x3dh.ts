// X3DH (https://signal.org/docs/specifications/x3dh/), with Ed25519 identity keys, X25519 prekeys and SHA-256.
//
// The identity key signs prekeys as it is, and agrees on keys after its conversion to X25519.

import { ed25519, x25519 } from '@noble/curves/ed25519.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { concatBytes, utf8ToBytes } from '@noble/hashes/utils.js';

export interface KeyPair {
  privateKey: Uint8Array;
  publicKey: Uint8Array;
  [key: string]: Uint8Array;
}

/** The application's name in the key derivation. */
const INFO = utf8ToBytes('sealwire-x3dh-v1');
const SALT = new Uint8Array(32);
/** F: 32 bytes that are no encoding of a point. */
const PREFIX = new Uint8Array(32).fill(0xff);

export function newIdentity(): KeyPair {
  const { secretKey, publicKey } = ed25519.keygen();
  return { privateKey: secretKey, publicKey };
}

export function newKeyPair(): KeyPair {
  const { secretKey, publicKey } = x25519.keygen();
  return { privateKey: secretKey, publicKey };
}

/** An X25519 agreement. Throws if the other key is of low order. */
export const agree = (privateKey: Uint8Array, publicKey: Uint8Array): Uint8Array => x25519.getSharedSecret(privateKey, publicKey);

export const sign = (bytes: Uint8Array, privateKey: Uint8Array): Uint8Array => ed25519.sign(bytes, privateKey);

/** Whether the signature verifies, by the strict rules of RFC 8032. */
export function verify(signature: Uint8Array, bytes: Uint8Array, identityKey: Uint8Array): boolean {
  try {
    return ed25519.verify(signature, bytes, identityKey, { zip215: false });
  } catch {
    return false;
  }
}

const secret = (...agreements: Uint8Array[]): Uint8Array => hkdf(sha256, concatBytes(PREFIX, ...agreements), SALT, INFO, 32);

/** The shared secret on the side that opens the session. `oneTime` is null if there was no one-time prekey. */
export function initiate(
  own: { identity: KeyPair; ephemeral: KeyPair },
  other: { identityKey: Uint8Array; signed: Uint8Array; oneTime: Uint8Array | null },
): Uint8Array {
  const identity = ed25519.utils.toMontgomerySecret(own.identity.privateKey);
  const ephemeral = own.ephemeral.privateKey;
  return secret(
    agree(identity, other.signed),
    agree(ephemeral, ed25519.utils.toMontgomery(other.identityKey)),
    agree(ephemeral, other.signed),
    ...(other.oneTime ? [agree(ephemeral, other.oneTime)] : []),
  );
}

/** The shared secret on the side whose prekeys were used. */
export function respond(
  own: { identity: KeyPair; signed: KeyPair; oneTime: KeyPair | null },
  other: { identityKey: Uint8Array; ephemeral: Uint8Array },
): Uint8Array {
  return secret(
    agree(own.signed.privateKey, ed25519.utils.toMontgomery(other.identityKey)),
    agree(ed25519.utils.toMontgomerySecret(own.identity.privateKey), other.ephemeral),
    agree(own.signed.privateKey, other.ephemeral),
    ...(own.oneTime ? [agree(own.oneTime.privateKey, other.ephemeral)] : []),
  );
}

// The Double Ratchet (https://signal.org/docs/specifications/doubleratchet/), with the algorithms that its section 5.2 recommends:
// X25519, HKDF and HMAC with SHA-256, and AES-256-CBC with HMAC. Names are those of the specification.
//
// The functions do not change the state that they are given; they return the next one.

import { cbc } from '@noble/ciphers/aes.js';
import { hkdf } from '@noble/hashes/hkdf.js';
import { hmac } from '@noble/hashes/hmac.js';
import { sha256 } from '@noble/hashes/sha2.js';
import { concatBytes, utf8ToBytes } from '@noble/hashes/utils.js';
import { agree, type KeyPair, newKeyPair } from './x3dh.js';

/** Most message keys that one message may skip, and most that are kept. */
export const MAX_SKIP = 1000;
const MAX_KEPT = 2000;

/** Length of a header: ratchet key, PN and N. */
export const HEADER_LENGTH = 40;

const ROOT = utf8ToBytes('sealwire-ratchet-v1');
const MESSAGE = utf8ToBytes('sealwire-message-v1');
const ZERO = new Uint8Array(32);

/** The key of a message that has not come yet. */
interface SkippedKey {
  /** The ratchet key of its chain. */
  dh: Uint8Array;
  n: number;
  mk: Uint8Array;
  [key: string]: Uint8Array | number;
}

export interface RatchetState {
  dhs: KeyPair;
  dhr: Uint8Array | null;
  rk: Uint8Array;
  cks: Uint8Array | null;
  ckr: Uint8Array | null;
  ns: number;
  nr: number;
  pn: number;
  skipped: SkippedKey[];
  [key: string]: KeyPair | Uint8Array | SkippedKey[] | number | null;
}

/** The state of the side that opened the session; `dhr` is the signed prekey of the other. */
export function initiator(sharedSecret: Uint8Array, dhr: Uint8Array, dhs: KeyPair = newKeyPair()): RatchetState {
  const [rk, cks] = kdfRoot(sharedSecret, agree(dhs.privateKey, dhr));
  return { dhs, dhr, rk, cks, ckr: null, ns: 0, nr: 0, pn: 0, skipped: [] };
}

/** The state of the other side; `dhs` is its signed prekey. */
export function responder(sharedSecret: Uint8Array, dhs: KeyPair): RatchetState {
  return { dhs, dhr: null, rk: sharedSecret, cks: null, ckr: null, ns: 0, nr: 0, pn: 0, skipped: [] };
}

/** Encrypts. Returns header ‖ ciphertext. */
export function encrypt(state: RatchetState, plaintext: Uint8Array, ad: Uint8Array): { state: RatchetState; message: Uint8Array } {
  if (!state.cks) throw new Error('nothing was received yet');
  const [cks, mk] = kdfChain(state.cks);
  const header = new Uint8Array(HEADER_LENGTH);
  header.set(state.dhs.publicKey);
  const view = new DataView(header.buffer);
  view.setUint32(32, state.pn);
  view.setUint32(36, state.ns);
  const message = concatBytes(header, seal(mk, plaintext, concatBytes(ad, header)));
  return { state: { ...state, cks, ns: state.ns + 1 }, message };
}

/** Decrypts header ‖ ciphertext. Throws if the message was changed, was decrypted before, or is of another session. */
export function decrypt(
  state: RatchetState,
  message: Uint8Array,
  ad: Uint8Array,
  newPair: () => KeyPair = newKeyPair,
): { state: RatchetState; plaintext: Uint8Array } {
  if (message.length < HEADER_LENGTH + 48) throw new Error('the message is too short');
  const header = message.slice(0, HEADER_LENGTH);
  const view = new DataView(header.buffer);
  const dh = header.slice(0, 32);
  const [pn, n] = [view.getUint32(32), view.getUint32(36)];
  const open = (mk: Uint8Array) => unseal(mk, message.subarray(HEADER_LENGTH), concatBytes(ad, header));

  const at = state.skipped.findIndex((key) => key.n === n && equal(key.dh, dh));
  if (at >= 0) {
    const plaintext = open(state.skipped[at]!.mk);
    return { state: { ...state, skipped: state.skipped.filter((_, i) => i !== at) }, plaintext };
  }
  let next = { ...state, skipped: [...state.skipped] };
  if (!next.dhr || !equal(dh, next.dhr)) {
    if (next.ckr) skip(next, pn);
    next = step(next, dh, newPair);
  }
  if (n < next.nr) throw new Error('the message was decrypted before, or its key was deleted');
  skip(next, n);
  const [ckr, mk] = kdfChain(next.ckr!);
  const plaintext = open(mk);
  next.skipped.splice(0, next.skipped.length - MAX_KEPT);
  return { state: { ...next, ckr, nr: next.nr + 1 }, plaintext };
}

/** Keeps the keys of the messages of the present chain before `until`. Changes `state`. */
function skip(state: RatchetState, until: number): void {
  if (until - state.nr > MAX_SKIP) throw new Error('too many messages were skipped');
  while (state.nr < until) {
    const [ckr, mk] = kdfChain(state.ckr!);
    state.skipped.push({ dh: state.dhr!, n: state.nr, mk });
    state.ckr = ckr;
    state.nr++;
  }
}

/** A step of the Diffie-Hellman ratchet. */
function step(state: RatchetState, dhr: Uint8Array, newPair: () => KeyPair): RatchetState {
  const [receiving, ckr] = kdfRoot(state.rk, agree(state.dhs.privateKey, dhr));
  const dhs = newPair();
  const [rk, cks] = kdfRoot(receiving, agree(dhs.privateKey, dhr));
  return { ...state, dhs, dhr, rk, cks, ckr, pn: state.ns, ns: 0, nr: 0 };
}

/** KDF_RK: the next root key, and a chain key. */
function kdfRoot(rk: Uint8Array, dh: Uint8Array): [Uint8Array, Uint8Array] {
  const out = hkdf(sha256, dh, rk, ROOT, 64);
  return [out.slice(0, 32), out.slice(32)];
}

/** KDF_CK: the next chain key, and a message key. */
const kdfChain = (ck: Uint8Array): [Uint8Array, Uint8Array] => [
  hmac(sha256, ck, Uint8Array.of(2)),
  hmac(sha256, ck, Uint8Array.of(1)),
];

function messageKeys(mk: Uint8Array): { encryption: Uint8Array; authentication: Uint8Array; iv: Uint8Array } {
  const out = hkdf(sha256, mk, ZERO, MESSAGE, 80);
  return { encryption: out.slice(0, 32), authentication: out.slice(32, 64), iv: out.slice(64) };
}

/** ENCRYPT: ciphertext ‖ HMAC over `ad` and ciphertext. */
function seal(mk: Uint8Array, plaintext: Uint8Array, ad: Uint8Array): Uint8Array {
  const { encryption, authentication, iv } = messageKeys(mk);
  const ciphertext = cbc(encryption, iv).encrypt(plaintext);
  return concatBytes(ciphertext, hmac(sha256, authentication, concatBytes(ad, ciphertext)));
}

/** DECRYPT. */
function unseal(mk: Uint8Array, sealed: Uint8Array, ad: Uint8Array): Uint8Array {
  const { encryption, authentication, iv } = messageKeys(mk);
  const ciphertext = sealed.subarray(0, -32);
  if (!equal(hmac(sha256, authentication, concatBytes(ad, ciphertext)), sealed.subarray(-32))) {
    throw new Error('the message does not authenticate');
  }
  return cbc(encryption, iv).decrypt(ciphertext);
}

/** Compares without a branch on the contents. */
export function equal(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let i = 0; i < a.length; i++) difference |= a[i]! ^ b[i]!;
  return difference === 0;
}

// Vectors for X3DH and the Double Ratchet, made by an independent implementation.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { ed25519, x25519 } from '@noble/curves/ed25519.js';
import * as ratchet from '../dist/ratchet.js';
import { initiate, respond, sign, verify } from '../dist/x3dh.js';

const vectors = JSON.parse(readFileSync(new URL('vectors.json', import.meta.url)));
const bytes = (hex) => Uint8Array.from(Buffer.from(hex, 'hex'));
const hex = (value) => Buffer.from(value).toString('hex');
const pair = (privateKey) => ({ privateKey: bytes(privateKey), publicKey: x25519.getPublicKey(bytes(privateKey)) });
const identity = (seed) => ({ privateKey: bytes(seed), publicKey: ed25519.getPublicKey(bytes(seed)) });

for (const [i, vector] of vectors.x3dh.entries()) {
  test(`X3DH ${i}`, () => {
    const { alice, bob } = vector;
    const [a, b] = [identity(alice.identity_seed), identity(bob.identity_seed)];
    assert.equal(hex(a.publicKey), alice.identity_key);
    assert.equal(hex(b.publicKey), bob.identity_key);
    const signed = pair(bob.signed_prekey);
    assert(verify(bytes(bob.signature), signed.publicKey, b.publicKey));
    const oneTime = bob.one_time_prekey ? pair(bob.one_time_prekey) : null;
    const ephemeral = pair(vector.ephemeral_key);
    const opened = initiate({ identity: a, ephemeral }, { identityKey: b.publicKey, signed: signed.publicKey, oneTime: oneTime && oneTime.publicKey });
    assert.equal(hex(opened), vector.shared_secret);
    assert.equal(hex(respond({ identity: b, signed, oneTime }, { identityKey: a.publicKey, ephemeral: ephemeral.publicKey })), vector.shared_secret);
  });
}

test('the Double Ratchet', () => {
  const { shared_secret, associated_data, signed_prekey, steps } = vectors.double_ratchet;
  const [secret, ad, signed] = [bytes(shared_secret), bytes(associated_data), pair(signed_prekey)];
  const first = steps[0].messages[0].drawn_by_writer[0];
  const states = { alice: ratchet.initiator(secret, signed.publicKey, pair(first)), bob: ratchet.responder(secret, signed) };
  for (const { writer, messages } of steps) {
    const reader = writer === 'alice' ? 'bob' : 'alice';
    for (const { text, message } of messages) {
      const encrypted = ratchet.encrypt(states[writer], new TextEncoder().encode(text), ad);
      assert.equal(hex(encrypted.message), message);
      states[writer] = encrypted.state;
    }
    for (const { text, message, drawn_by_reader: drawn } of [...messages].reverse()) {
      const keys = [...drawn];
      const decrypted = ratchet.decrypt(states[reader], bytes(message), ad, () => pair(keys.shift()));
      assert.equal(new TextDecoder().decode(decrypted.plaintext), text);
      assert.deepEqual(keys, [], 'as many keys are drawn');
      states[reader] = decrypted.state;
      assert.throws(() => ratchet.decrypt(states[reader], bytes(message), ad));
    }
  }
});

test('a message may skip a thousand keys and no more', () => {
  const signed = pair(vectors.double_ratchet.signed_prekey);
  const secret = bytes(vectors.double_ratchet.shared_secret);
  const ad = new Uint8Array(1);
  for (const [skipped, works] of [[1000, true], [1001, false]]) {
    let alice = ratchet.initiator(secret, signed.publicKey);
    let sealed;
    for (let i = 0; i <= skipped; i++) ({ state: alice, message: sealed } = ratchet.encrypt(alice, new Uint8Array(1), ad));
    const open = () => ratchet.decrypt(ratchet.responder(secret, signed), sealed, ad);
    if (works) assert.equal(open().state.skipped.length, 1000);
    else assert.throws(open, /too many/);
  }
});

test('proofs of devices', () => {
  const { device_proofs: proofs } = JSON.parse(readFileSync(new URL('../../../../../tests/vectors/device_proofs.json', import.meta.url)));
  const uuid = (text) => bytes(text.replaceAll('-', ''));
  const own = proofs.filter(({ suite }) => suite === 'ed25519-x3dh');
  assert(own.length > 0);
  for (const { identity_key, challenge_id, device_id, proof } of own) {
    const text = Buffer.concat([Buffer.from('sealwire-device-proof-v1'), uuid(challenge_id), uuid(device_id)]);
    assert(verify(bytes(proof), new Uint8Array(text), bytes(identity_key)));
  }
});

test('signatures of strict Ed25519', () => {
  const key = identity('01'.repeat(32));
  const signature = sign(new Uint8Array([1]), key.privateKey);
  assert(verify(signature, new Uint8Array([1]), key.publicKey));
  assert(!verify(signature, new Uint8Array([2]), key.publicKey));
  // A public key of small order, for which many signatures would verify.
  const small = new Uint8Array(32);
  small[0] = 1;
  assert(!verify(Uint8Array.from([...small, ...new Uint8Array(32)]), new Uint8Array([1]), small));
  assert(!verify(new Uint8Array(10), new Uint8Array([1]), key.publicKey));
});

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { fromBase64, fromBase64Url, pad, toBase64, toBase64Url, unpad, uuid, uuidBytes } from '../dist/bytes.js';
import { sha256, solve } from '../dist/sha256.js';
import { backoff } from '../dist/time.js';

test('base64 and base64url', () => {
  for (let i = 0; i < 200; i++) {
    const bytes = new Uint8Array(randomBytes(i));
    assert.equal(toBase64(bytes), Buffer.from(bytes).toString('base64'));
    assert.deepEqual(fromBase64(toBase64(bytes)), bytes);
    assert.deepEqual(fromBase64(toBase64(bytes).replaceAll('=', '')), bytes);
    assert.equal(toBase64Url(bytes), Buffer.from(bytes).toString('base64url'));
    assert.deepEqual(fromBase64Url(toBase64Url(bytes)), bytes);
  }
  const large = new Uint8Array(randomBytes(300_000));
  assert.deepEqual(fromBase64(toBase64(large)), large);
});

test('UUIDs', () => {
  for (let i = 0; i < 100; i++) assert.match(uuid(), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.equal(Buffer.from(uuidBytes('5f2b8a34-5b0e-4d1c-9a51-4e3e1f1d2c3b')).toString('hex'), '5f2b8a345b0e4d1c9a514e3e1f1d2c3b');
});

test('padding is removed exactly', () => {
  for (let length = 0; length < 400; length++) {
    const bytes = new Uint8Array(randomBytes(length));
    const padded = pad(bytes, 160);
    assert.equal(padded.length % 160, 0);
    assert(padded.length > length && padded.length <= length + 160);
    assert.deepEqual(unpad(padded), bytes);
  }
  assert.deepEqual(unpad(pad(new Uint8Array([0x80, 0, 0]), 160)), new Uint8Array([0x80, 0, 0]));
  assert.equal(unpad(new Uint8Array([1, 2, 3])), null);
  assert.equal(unpad(new Uint8Array(8)), null);
  assert.equal(unpad(new Uint8Array()), null);
});

test('SHA-256 agrees with that of Node', () => {
  for (const length of [0, 1, 3, 55, 56, 57, 63, 64, 65, 119, 120, 1000, 100_000]) {
    const bytes = randomBytes(length);
    assert.equal(Buffer.from(sha256(bytes)).toString('hex'), createHash('sha256').update(bytes).digest('hex'));
  }
});

test('a proof of work begins with the zero bits that were asked', async () => {
  for (const bits of [0, 1, 8, 14, 18]) {
    const salt = randomBytes(24);
    const nonce = await solve(salt, bits);
    assert(nonce.length <= 32);
    const hash = createHash('sha256').update(salt).update(nonce).digest();
    assert(Math.clz32(hash.readUInt32BE()) >= bits);
  }
  await assert.rejects(solve(randomBytes(24), 60), RangeError);
  await assert.rejects(solve(randomBytes(24), 26, AbortSignal.timeout(20)), { name: 'TimeoutError' });
});

test('backoff has full jitter, doubles, and ends at a minute', () => {
  for (const [failures, bound] of [[0, 1000], [1, 2000], [5, 32_000], [6, 60_000], [40, 60_000]]) {
    assert.equal(backoff(failures, () => 0.999), 0.999 * bound);
    assert.equal(backoff(failures, () => 0), 0);
  }
});

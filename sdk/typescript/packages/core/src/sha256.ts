// SHA-256 (FIPS 180-4), synchronous. Proof of work needs millions of short hashes, for which the asynchronous
// `crypto.subtle.digest` is too slow; and `crypto.subtle` does not exist on pages that are not secure contexts.

const K = new Int32Array(64);
const H = new Int32Array(8);
{
  // The constants are the first 32 bits of the fractions of the roots of the first primes.
  const fraction = (x: number) => ((x - Math.floor(x)) * 0x100000000) | 0;
  let count = 0;
  for (let n = 2; count < 64; n++) {
    let prime = true;
    for (let d = 2; d * d <= n; d++) if (n % d === 0) prime = false;
    if (!prime) continue;
    if (count < 8) H[count] = fraction(Math.sqrt(n));
    K[count++] = fraction(Math.cbrt(n));
  }
}

const W = new Int32Array(64);

const rotate = (word: number, bits: number) => (word >>> bits) | (word << (32 - bits));

export function sha256(bytes: Uint8Array): Uint8Array {
  // The message, a bit, zeros, and the length in bits.
  const view = new DataView(new ArrayBuffer(((bytes.length + 72) >> 6) << 6));
  new Uint8Array(view.buffer).set(bytes);
  view.setUint8(bytes.length, 0x80);
  view.setUint32(view.byteLength - 8, bytes.length / 0x20000000);
  view.setUint32(view.byteLength - 4, bytes.length << 3);
  const state = H.slice();
  for (let at = 0; at < view.byteLength; at += 64) {
    let [a, b, c, d, e, f, g, h] = state as unknown as [number, number, number, number, number, number, number, number];
    for (let i = 0; i < 64; i++) {
      if (i < 16) {
        W[i] = view.getInt32(at + 4 * i);
      } else {
        const [x, y] = [W[i - 15]!, W[i - 2]!];
        const s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >>> 3);
        const s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >>> 10);
        W[i] = W[i - 16]! + s0 + W[i - 7]! + s1;
      }
      const t1 = (h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + K[i]! + W[i]!) | 0;
      const t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t1) | 0, c, b, a, (t1 + t2) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => (state[i]! += word));
  }
  state.forEach((word, i) => view.setInt32(4 * i, word));
  return new Uint8Array(view.buffer, 0, 32);
}

/** Largest work that a server may ask for; one that asks for more does not follow the protocol. */
const MAX_BITS = 26;

/**
 * A nonce with which SHA-256(salt ‖ nonce) begins with `bits` zero bits. Works in slices of some milliseconds, so that a page stays
 * usable; 24 bits take about a minute.
 */
export async function solve(salt: Uint8Array, bits: number, signal?: AbortSignal): Promise<Uint8Array> {
  if (!(bits <= MAX_BITS)) throw new RangeError(`a proof of ${bits} bits`);
  const input = new Uint8Array(salt.length + 8);
  input.set(salt);
  const nonce = new DataView(input.buffer, salt.length);
  for (let n = 0; ; ) {
    signal?.throwIfAborted();
    for (const until = performance.now() + 12; performance.now() < until; ) {
      for (let i = 0; i < 500; i++, n++) {
        nonce.setFloat64(0, n);
        const [a, b, c, d] = sha256(input);
        if (Math.clz32((a! << 24) | (b! << 16) | (c! << 8) | d!) >= bits) return input.slice(salt.length);
      }
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
}

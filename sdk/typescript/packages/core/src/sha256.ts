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

function compress(state: Int32Array, block: DataView, offset: number): void {
  for (let i = 0; i < 16; i++) W[i] = block.getInt32(offset + 4 * i);
  for (let i = 16; i < 64; i++) {
    const x = W[i - 15]!;
    const y = W[i - 2]!;
    const s0 = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const s1 = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    W[i] = (W[i - 16]! + s0 + W[i - 7]! + s1) | 0;
  }
  let a = state[0]!, b = state[1]!, c = state[2]!, d = state[3]!;
  let e = state[4]!, f = state[5]!, g = state[6]!, h = state[7]!;
  for (let i = 0; i < 64; i++) {
    const s1 = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t1 = (h + s1 + ((e & f) ^ (~e & g)) + K[i]! + W[i]!) | 0;
    const s0 = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const t2 = (s0 + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g; g = f; f = e; e = (d + t1) | 0; d = c; c = b; b = a; a = (t1 + t2) | 0;
  }
  state[0]! += a; state[1]! += b; state[2]! += c; state[3]! += d;
  state[4]! += e; state[5]! += f; state[6]! += g; state[7]! += h;
}

/** The message with its padding. */
function padded(bytes: Uint8Array): DataView {
  const view = new DataView(new ArrayBuffer(((bytes.length + 72) >> 6) << 6));
  new Uint8Array(view.buffer).set(bytes);
  view.setUint8(bytes.length, 0x80);
  view.setUint32(view.byteLength - 8, Math.floor(bytes.length / 0x20000000));
  view.setUint32(view.byteLength - 4, bytes.length << 3);
  return view;
}

function digest(view: DataView): Int32Array {
  const state = H.slice();
  for (let at = 0; at < view.byteLength; at += 64) compress(state, view, at);
  return state;
}

export function sha256(bytes: Uint8Array): Uint8Array {
  const out = new DataView(new ArrayBuffer(32));
  digest(padded(bytes)).forEach((word, i) => out.setInt32(4 * i, word));
  return new Uint8Array(out.buffer);
}

/** Largest work that a server may ask for; one that asks for more does not follow the protocol. */
const MAX_BITS = 26;

/**
 * A nonce with which SHA-256(salt ‖ nonce) begins with `bits` zero bits. Works in slices of some milliseconds, so that a page stays
 * usable; 24 bits take about half a minute.
 */
export async function solve(salt: Uint8Array, bits: number, signal?: AbortSignal): Promise<Uint8Array> {
  if (!(bits <= MAX_BITS)) throw new RangeError(`a proof of ${bits} bits is too expensive`);
  const input = new Uint8Array(salt.length + 8);
  input.set(salt);
  const view = padded(input);
  for (let n = 0; ; ) {
    signal?.throwIfAborted();
    for (const until = Date.now() + 12; Date.now() < until; ) {
      for (let i = 0; i < 500; i++, n++) {
        view.setUint32(salt.length, Math.floor(n / 0x100000000));
        view.setUint32(salt.length + 4, n);
        if (Math.clz32(digest(view)[0]!) >= bits) return new Uint8Array(view.buffer.slice(salt.length, salt.length + 8));
      }
    }
    await new Promise((resolve) => setTimeout(resolve));
  }
}

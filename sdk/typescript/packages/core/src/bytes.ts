// Encodings: base64, text, ids, padding.

/** Standard base64 with padding. */
export function toBase64(bytes: Uint8Array): string {
  let text = '';
  for (let at = 0; at < bytes.length; at += 0x8000) text += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(text);
}

/** Bytes of standard base64, with or without padding. Throws if the text is not base64. */
export const fromBase64 = (text: string): Uint8Array => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** Unpadded base64url. */
export const toBase64Url = (bytes: Uint8Array): string =>
  toBase64(bytes).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');

export const fromBase64Url = (text: string): Uint8Array => fromBase64(text.replaceAll('-', '+').replaceAll('_', '/'));

export const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

export const fromUtf8 = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

export function concat(...parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** A random (version 4) UUID. `crypto.randomUUID` does not exist on pages that are not secure contexts. */
export const uuid = (): string =>
  '10000000-1000-4000-8000-100000000000'.replace(/[018]/g, (digit) => {
    const [random] = crypto.getRandomValues(new Uint8Array(1));
    // The digit 8 keeps its highest bit, by which the variant is known.
    return (Number(digit) ^ (random! & (15 >> (Number(digit) / 4)))).toString(16);
  });

/** The 16 bytes of a UUID. */
export const uuidBytes = (id: string): Uint8Array =>
  Uint8Array.from(id.replaceAll('-', '').match(/../g) ?? [], (hex) => parseInt(hex, 16));

/** Appends `80` and zeros up to a multiple of `block` bytes, as docs/clients.md describes. */
export function pad(bytes: Uint8Array, block: number): Uint8Array {
  const padded = new Uint8Array(Math.ceil((bytes.length + 1) / block) * block);
  padded.set(bytes);
  padded[bytes.length] = 0x80;
  return padded;
}

/** Removes what `pad` appended. Returns null if the padding is missing. */
export function unpad(bytes: Uint8Array): Uint8Array | null {
  let end = bytes.length;
  while (end > 0 && bytes[end - 1] === 0) end--;
  return bytes[end - 1] === 0x80 ? bytes.slice(0, end - 1) : null;
}

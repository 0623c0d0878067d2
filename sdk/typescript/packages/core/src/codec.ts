// Encodings of the frames on the socket.

import { fromBase64, toBase64 } from './bytes.js';
import type { Content } from './protocol.js';

export interface Codec {
  /** The subprotocol that names the encoding. */
  readonly subprotocol: string;
  encode(frame: object): string | Uint8Array<ArrayBuffer>;
  decode(data: string | ArrayBuffer): unknown;
  /** Message content as this encoding carries it. */
  content(bytes: Uint8Array): Content;
}

/** JSON in text frames. */
export const json: Codec = {
  subprotocol: 'sealwire.v1.json',
  encode: (frame) => JSON.stringify(frame),
  decode: (data) => JSON.parse(data as string),
  content: toBase64,
};

/** The bytes of message content in either encoding. */
export const contentBytes = (content: Content): Uint8Array => (typeof content === 'string' ? fromBase64(content) : content);

// MessagePack in binary frames. Needs the package @msgpack/msgpack.

import { decode, encode } from '@msgpack/msgpack';
import type { Codec } from './codec.js';

/** Pass it as `codec`: frames are smaller than in JSON, since message content is not base64. */
export const msgpack: Codec = {
  subprotocol: 'sealwire.v1.msgpack',
  encode: (frame) => encode(frame, { ignoreUndefined: true }),
  decode: (data) => decode(data as ArrayBuffer),
  content: (bytes) => bytes,
};

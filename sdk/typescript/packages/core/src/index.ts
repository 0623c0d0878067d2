// @sealwire/client: a client of Sealwire, a server for end-to-end-encrypted chat.

export { SealwireClient, type ClientOptions } from './client.js';
export type { Codec } from './codec.js';
export { json } from './codec.js';
export type { Address, CryptoAdapter, KeysWanted, OneTimeKind, Sealed } from './crypto.js';
export {
  type ClientCode,
  ConnectionError,
  CryptoError,
  type ErrorFields,
  SealwireError,
  ServerError,
  StateError,
  StorageError,
} from './errors.js';
export type { Handler } from './events.js';
export type { Approval, SignInOutcome, VerifyOptions } from './signin.js';
export type { WebSocketClass, WebSocketLike } from './socket.js';
export { type Batch, memoryStorage, type Storage, type Transaction, type Value } from './storage.js';
export type {
  Account,
  ClientEvents,
  Message,
  Reason,
  SendOptions,
  Sent,
  State,
  StateChange,
  Undecryptable,
} from './types.js';

// The public types of the client, which the engine and the tabs share.

import type { Address } from './crypto.js';
import type { SealwireError } from './errors.js';
import type { ErrorBody, InvalidTokenReason, Newer, SendMessageReply, ServerEvents } from './protocol.js';
import type { Value } from './storage.js';

export type State =
  /** There is no valid session. `reason` says why, if there was one: sign in. */
  | 'signed-out'
  /** A connection is being opened. */
  | 'connecting'
  /** Messages can be sent and received. */
  | 'connected'
  /** The connection was lost; the next try follows. */
  | 'waiting'
  /** The client does not connect by itself any more. `reason` says why. */
  | 'ended';

export type Reason =
  /** With `signed-out`. After `device_revoked` and `account_deleted` the stored data was deleted. */
  | InvalidTokenReason
  /** With `ended`: another connection of this device took over. `connect()` takes it back. */
  | 'displaced'
  /** With `ended`: the server has other keys for this device than the storage. Delete the data with `wipe()` and sign in as a new device. */
  | 'identity_conflict'
  /** With `ended`: a defect of the client or of a proxy. */
  | 'protocol_error'
  | 'frame_too_large'
  /** With `ended`: `close()` was called, or `connect()` not yet. */
  | 'closed'
  | Newer;

export interface StateChange {
  state: State;
  reason: Reason | null;
  /** With `waiting`: when the next try is, in milliseconds since 1970. */
  retryAt: number | null;
  /** With `waiting`: why the last try failed, if the server said so. */
  error: ErrorBody | null;
}

/** Who is signed in. */
export interface Account {
  userId: string;
  deviceId: string;
  email: string;
}

/** A message as it goes from the engine to the tabs. */
export interface RawMessage {
  id: string;
  seq: number | null;
  from: Address;
  body: Uint8Array;
  acceptedAt: string;
  ephemeral: boolean;
  again: boolean;
}

/** A decrypted message. */
export interface Message extends RawMessage {
  /** The `messageId` that its sender drew. */
  readonly id: string;
  /** Its number in the mailbox of this device; null if it is ephemeral. */
  readonly seq: number | null;
  /** The sending device. */
  readonly from: Address;
  readonly body: Uint8Array;
  /** `body` as UTF-8 text. */
  readonly text: string;
  /** When the server accepted it (RFC 3339). */
  readonly acceptedAt: string;
  readonly ephemeral: boolean;
  /** Whether the handlers may have got it before: the client stopped before they had settled. */
  readonly again: boolean;
  /**
   * Stores a value under a key of your own, in the same write that notes that the message was handled. So it is stored exactly once,
   * even in a crash. `client.data` reads it. Has no effect on ephemeral messages, nor in tabs that do not lead.
   */
  write(key: string, value: Value): void;
}

/** A message that could not be decrypted. It was acked. */
export interface Undecryptable {
  id: string;
  seq: number | null;
  from: Address;
  type: number;
  acceptedAt: string;
  /** `undecryptable` or `untrusted`. */
  code: string;
  message: string;
}

/** The outcome of a send. */
export interface Sent {
  messageId: string;
  to: string;
  /** When the server accepted the message (RFC 3339). */
  acceptedAt: string;
  /** The number of devices for which it was stored. */
  stored: number;
  /** Devices whose mailbox was full. */
  undelivered: SendMessageReply['undelivered'];
  /** Devices that it was not encrypted for, since they have another suite or their keys cannot be trusted. */
  skipped: string[];
}

export interface SendOptions {
  /** A UUID that names the message; drawn if absent. A send that is repeated within a day under the same id is sent once. */
  messageId?: string;
  /** Seconds for which the message waits for its recipient, 60 to 2592000. */
  ttlS?: number;
  /** Only for devices that are connected now; not stored, and not queued while this client is offline. */
  ephemeral?: boolean;
  /** The access key of the recipient, in base64, if it gave this user one. */
  access?: string;
  /** False if the recipient need not be woken for it, such as for a receipt. */
  urgent?: boolean;
  /** Stops waiting. The message is dropped if nothing of it was sent yet. */
  signal?: AbortSignal;
}

/** The events of a client: those of the server under their own names, and those of the client. */
export interface ClientEvents extends Omit<ServerEvents, 'message'> {
  /** The state has changed. */
  state: StateChange;
  /** A message. The ack follows when all handlers have settled. */
  message: Message;
  /** A message that could not be decrypted. */
  undecryptable: Undecryptable;
  /** A queued message was stored by the server. */
  sent: Sent;
  /** A queued message was refused for good and dropped. */
  failed: { messageId: string; to: string; error: SealwireError };
  /** The identity key of a device is not the known one, or its keys cannot be trusted. */
  untrusted: { device: Address; message: string };
  /** The storage was restored from an older copy: encrypted sessions were dropped and keys replaced. */
  restored: Record<string, never>;
  /** Something failed in the background, such as a handler or the storage. */
  error: { error: Error; during: string };
}

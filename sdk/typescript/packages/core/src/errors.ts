// The errors of this package. Every one is a `SealwireError` with a `code` and `retryable`.

import type { Code, ErrorDetails, ErrorBody, Newer } from './protocol.js';

/** What the client itself may report, beside the codes of the server. */
export type ClientCode =
  /** The server could not be reached, or the connection broke. */
  | 'network'
  /** No reply came in time. */
  | 'timeout'
  /** The client is not signed in. */
  | 'signed_out'
  /** The client was closed or has ended; `connect()` starts it again. */
  | 'ended'
  /** An ephemeral message needs a connection. */
  | 'offline'
  /** A message cannot be decrypted. */
  | 'undecryptable'
  /** A bundle of keys cannot be used: a signature does not verify, or the identity key of a device has changed. */
  | 'untrusted'
  /** The storage holds the account of another person or device. */
  | 'other_account'
  /** `signIn.verify` without an earlier `signIn.request`, or `signIn.approval` without a request that waits. */
  | 'no_challenge'
  /** The storage failed. */
  | 'storage';

export interface ErrorFields {
  code: Code | ClientCode | Newer;
  message: string;
  retryable: boolean;
  retryAfterMs?: number | undefined;
  details?: ErrorDetails | undefined;
  status?: number | undefined;
}

/** The base of all errors of this package. */
export class SealwireError extends Error {
  override name = 'SealwireError';
  declare readonly code: Code | ClientCode | Newer;
  /** Whether the same call can succeed later. */
  declare readonly retryable: boolean;
  /** Milliseconds after which trying again can help, if the server said so. */
  declare readonly retryAfterMs: number | undefined;
  /** More about an error of the server. */
  declare readonly details: ErrorDetails | undefined;
  /** The HTTP status, if the error came over HTTP. */
  declare readonly status: number | undefined;

  constructor({ message, ...fields }: ErrorFields, options?: ErrorOptions) {
    super(message, options);
    Object.assign(this, fields);
  }
}

/** The server refused a request. `code` is one of its error codes. */
export class ServerError extends SealwireError {
  override name = 'ServerError';

  static from(body: ErrorBody, status?: number): ServerError {
    const { retry_after_ms: retryAfterMs, ...fields } = body;
    return new ServerError({ ...fields, retryAfterMs, status });
  }
}

/** The server could not be reached, or did not answer. The client tries again by itself where that is safe. */
export class ConnectionError extends SealwireError {
  override name = 'ConnectionError';

  constructor(code: 'network' | 'timeout', message: string, options?: ErrorOptions & { retryAfterMs?: number | undefined }) {
    super({ code, message, retryable: true, retryAfterMs: options?.retryAfterMs }, options);
  }
}

/** The call does not fit the state of the client. */
export class StateError extends SealwireError {
  override name = 'StateError';

  constructor(code: ClientCode, message: string) {
    super({ code, message, retryable: code === 'offline' });
  }
}

export const signedOut = (reason: string | null): StateError => new StateError('signed_out', `signed out${reason ? `: ${reason}` : ''}`);

/** The storage failed, such as when the disk is full. */
export class StorageError extends SealwireError {
  override name = 'StorageError';

  constructor(error: unknown) {
    super({ code: 'storage', message: `the storage failed: ${(error as Error)?.message ?? error}`, retryable: true }, { cause: error });
  }
}

/** Keys or ciphertext of another device cannot be used. Crypto adapters throw it. */
export class CryptoError extends SealwireError {
  override name = 'CryptoError';

  constructor(code: 'undecryptable' | 'untrusted', message: string, options?: ErrorOptions) {
    super({ code, message, retryable: false }, options);
  }
}

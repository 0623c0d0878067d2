// The engine: one device with its session, its connection and its storage. At most one engine may run on a storage; in a browser, the
// tab that leads has it.
//
// The engine decides when to connect and with which token. Keys, outbox, inbox and sign-in are modules of their own, which use it to
// send requests and to run transactions.

import type { Codec } from './codec.js';
import type { Address, CryptoAdapter } from './crypto.js';
import { ConnectionError, ServerError, signedOut, StateError } from './errors.js';
import type { Http } from './http.js';
import { DATA, Inbox } from './inbox.js';
import { Keys } from './keys.js';
import { Outbox } from './outbox.js';
import type { ErrorBody, MessageEvent, RenewSessionReply, ServerEvents, SessionReply, Welcome } from './protocol.js';
import { SignIn } from './signin.js';
import { type Closed, Socket, type WebSocketClass } from './socket.js';
import { Store, type Storage, type Value } from './storage.js';
import { backoff, sleep, within, withLimit } from './time.js';
import type { Account, ClientEvents, RawMessage, Reason, StateChange } from './types.js';

interface EngineOptions {
  url: string;
  storage: Storage;
  crypto: CryptoAdapter;
  http: Http;
  WebSocket: WebSocketClass;
  codec: Codec;
  timeoutMs: number;
  padding: number;
  rotateMs: number;
  random: () => number;
}

/** The events that an engine emits: messages without the methods that a tab adds. */
export type EngineEvents = Omit<ClientEvents, 'message'> & { message: RawMessage };

/** Where an engine emits its events. */
export interface Sink {
  /** Resolves when the handlers have settled, with what they want to store and with their errors. */
  emit<E extends keyof EngineEvents>(event: E, data: EngineEvents[E]): Promise<{ writes: [string, Value][]; errors: unknown[] }>;
  /** Resolves when there is a handler of `message`. */
  ready(): Promise<void>;
}

/** A token of the session. `life` is the time between the first welcome and the expiry in milliseconds; 0 before that welcome. */
interface Token {
  token: string;
  life: number;
}

/** What is stored about who is signed in. The first token is the newest; there are two while a renewal is not complete. */
interface StoredAccount extends Account {
  tokens: Token[];
}

/** The state before `connect()` and after `close()`. */
export const CLOSED: StateChange = { state: 'ended', reason: 'closed', retryAt: null, error: null };

const ACCOUNT = 'account';
/** Closes after which the token is not valid any more, with the reason. */
const REFUSALS: Record<number, Reason> = { 4500: 'logged_out', 4501: 'expired', 4502: 'device_revoked', 4506: 'account_deleted' };
/** Closes after which the client does not connect by itself. */
const ENDS: Record<number, Reason> = { 4503: 'displaced', 4504: 'protocol_error', 4505: 'frame_too_large' };
const HOUR = 3_600_000;
/** A connection that an earlier process had begun may displace this one within this time, and so often. */
const STALE_MS = 5000;
const STALE_COUNT = 5;

export class Engine {
  readonly store: Store;
  readonly keys: Keys;
  readonly outbox: Outbox;
  readonly inbox: Inbox;
  readonly signIn: SignIn;
  status = CLOSED;
  welcome: Welcome | null = null;
  /** The server's clock minus `performance.now()`, which does not jump when the local clock is set. Before the first welcome, by the local clock. */
  clockOffset = performance.timeOrigin;

  #account: StoredAccount | null = null;
  #socket: Socket | null = null;
  #failures = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #hourly: ReturnType<typeof setInterval> | undefined;
  /** By `performance.now()`, as the next one. */
  #welcomedAt = 0;
  /** No try before this time. */
  #notBefore = 0;
  /** How many connections in a row were displaced soon after their welcome. */
  #displaced = 0;
  #drainMs: number | null = null;
  #refused: ErrorBody | null = null;
  #opening = 0;
  /** When the session ends, by the server's clock. */
  #expiresAt = 0;
  /** Aborted when the connection ends. */
  #live = new AbortController();
  #waiters = new Set<() => void>();

  constructor(
    readonly options: EngineOptions,
    readonly sink: Sink,
  ) {
    this.store = new Store(options.storage);
    this.keys = new Keys(this);
    this.outbox = new Outbox(this);
    this.inbox = new Inbox(this);
    this.signIn = new SignIn(this);
  }

  get account(): Account | null {
    if (!this.#account) return null;
    const { userId, deviceId, email } = this.#account;
    return { userId, deviceId, email };
  }

  /** The address of this device. */
  get self(): Address {
    return this.account!;
  }

  get crypto(): CryptoAdapter {
    return this.options.crypto;
  }

  /** The time by the server's clock, in milliseconds since 1970. */
  now(): number {
    return Math.round(performance.now() + this.clockOffset);
  }

  /** Reads the storage. */
  async load(): Promise<void> {
    await this.store.transaction(async (tx) => {
      this.#account = (await tx.get(ACCOUNT)) as unknown as StoredAccount | undefined ?? null;
    });
    await Promise.all([this.outbox.load(), this.inbox.load()]);
    if (!this.#account?.tokens.length) this.#setState('signed-out');
  }

  /** Starts to connect, unless there is a connection or none is possible. */
  start(): void {
    const { state } = this.status;
    if (!this.#account?.tokens.length) return this.#setState('signed-out', this.status.reason === 'closed' ? null : this.status.reason);
    if (state === 'ended' || state === 'signed-out') {
      this.#failures = 0;
      this.#notBefore = 0;
      void this.#open();
    } else if (state === 'waiting') {
      this.wake();
    }
  }

  /** Ends the connection and all that goes on. The storage keeps everything. */
  stop(reason: Reason = 'closed'): void {
    this.#drop();
    this.#setState('ended', reason);
  }

  /** Something may have changed about the network: tries to connect now, or tests the connection. */
  wake(): void {
    if (this.status.state === 'waiting') this.#wait(Math.max(0, this.#notBefore - performance.now()), this.status.error);
    else if (this.status.state === 'connected') this.#socket?.ping();
  }

  /** The part of the engine that clients call for what belongs to no other part. */
  readonly calls: this = this;

  /** Data of the app. */
  readonly data = {
    get: (key: string): Promise<Value | undefined> => this.store.transaction((tx) => tx.get(DATA + key)),
    list: (prefix: string): Promise<[string, Value][]> =>
      this.store.transaction(async (tx) => (await tx.list(DATA + prefix)).map(([key, value]) => [key.slice(DATA.length), value])),
    write: (entries: Record<string, Value | undefined>): Promise<void> =>
      this.store.transaction((tx) => {
        for (const [key, value] of Object.entries(entries)) tx.set(DATA + key, value);
      }),
  };

  /** Starts, and resolves when the client is connected. */
  connect(signal?: AbortSignal): Promise<void> {
    this.start();
    return this.connected(signal);
  }

  /** The public identity key in base64. */
  identityKey(): Promise<string> {
    return this.store.transaction(async (tx) => (await this.crypto.identity(tx)).key);
  }

  /** Resolves when the client is connected and its keys are published. */
  async connected(signal?: AbortSignal): Promise<void> {
    for (;;) {
      this.#mayConnect();
      if (this.status.state === 'connected' && this.keys.published) return;
      await this.#change(signal);
    }
  }

  /** Resolves at the next change of the state or of the keys. */
  #change(signal?: AbortSignal): Promise<void> {
    let resume: () => void;
    const changed = new Promise<void>((resolve) => this.#waiters.add((resume = resolve)));
    return within(changed, signal).finally(() => this.#waiters.delete(resume));
  }

  notify(): void {
    for (const resume of this.#waiters) resume();
  }

  /**
   * Sends a request over the present connection or the next one, and repeats it if a connection ends before the reply; every op can be
   * repeated. Rejects after `timeoutMs`.
   */
  request(op: string, params: object | undefined, timeoutMs = this.options.timeoutMs, signal?: AbortSignal): Promise<unknown> {
    return withLimit(timeoutMs, op, signal, async (limit) => {
      for (let repeated = false; ; repeated = true) {
        while (!this.#socket?.welcome) {
          this.#mayConnect();
          await this.#change(limit);
        }
        try {
          return await this.#socket.request(op, params, limit);
        } catch (error) {
          if (repeated && op === 'devices.revoke' && (error as ServerError).code === 'unknown_device') return {};
          if (limit.aborted || !(error instanceof ConnectionError)) throw error;
        }
      }
    });
  }

  /** Throws if the client does not connect by itself. */
  #mayConnect(): void {
    const { state, reason } = this.status;
    if (state === 'signed-out') throw signedOut(reason);
    if (state === 'ended') throw new StateError('ended', `the client has ended: ${reason}`);
  }

  /**
   * Sends a request of the client's own over the present connection, and repeats it while the server asks to try again. Rejects with
   * `ConnectionError` if the connection ends; the next welcome starts what asked.
   */
  async insist<T>(op: string, params?: object, signal?: AbortSignal): Promise<T> {
    const socket = this.#socket;
    for (let failures = 0; ; failures++) {
      if (!socket?.welcome || socket !== this.#socket) throw new ConnectionError('network', `${op}: the connection ended`);
      try {
        return (await socket.request(op, params, signal)) as T;
      } catch (error) {
        if (!(error instanceof ServerError) || !error.retryable || error.code === 'mailbox_full') throw error;
        if (error.code === 'internal' && failures >= 2) throw error;
        await within(sleep((error.retryAfterMs ?? 0) + backoff(failures, this.options.random), this.#live.signal), signal);
      }
    }
  }

  /** Reports a failure in the background. */
  report(error: unknown, during: string): void {
    // The next connection repeats what was interrupted.
    if (error instanceof ConnectionError || (error instanceof StateError && error.code === 'ended')) return;
    void this.sink.emit('error', { error: error instanceof Error ? error : new Error(String(error)), during });
  }

  // --- The session ---------------------------------------------------------------------------------------------------

  /** Stores a new session and connects with it. */
  async signedIn(session: SessionReply, email: string): Promise<void> {
    const account: StoredAccount = {
      userId: session.user_id,
      deviceId: session.device_id,
      email,
      tokens: [{ token: session.token!, life: 0 }],
    };
    await this.store.transaction((tx) => {
      tx.set(ACCOUNT, account as unknown as Value);
      tx.delete('signin');
    });
    this.#drop();
    this.#account = account;
    this.#setState('ended', 'closed');
    this.start();
  }

  async #setTokens(tokens: Token[]): Promise<void> {
    if (JSON.stringify(tokens) === JSON.stringify(this.#account!.tokens)) return;
    this.#account = { ...this.#account!, tokens };
    await this.store.transaction((tx) => tx.set(ACCOUNT, this.#account as unknown as Value));
  }

  /** Deletes everything that is stored about the account, and signs out. */
  async wipe(reason: Reason | null = null): Promise<void> {
    this.#drop();
    this.#account = null;
    await this.store.transaction(async (tx) => {
      for (const [key] of await tx.list('')) tx.delete(key);
    });
    this.outbox.clear(signedOut(reason));
    this.inbox.clear();
    this.keys.published = false;
    this.#setState('signed-out', reason);
  }

  /** Ends the session on the server, and forgets its token. The device stays, with its keys. */
  async logout(signal?: AbortSignal): Promise<void> {
    for (const { token } of this.#account?.tokens ?? []) {
      await this.options.http.call('DELETE', '/v1/auth/session', { token, signal }).catch((error) => {
        if ((error as ServerError).code !== 'unauthorized') throw error;
      });
    }
    this.#drop();
    if (this.#account) await this.#setTokens([]);
    this.#setState('signed-out', 'logged_out');
  }

  /** The server refused `token`. Goes on with the other one of an unfinished renewal, or signs out. */
  async #tokenRefused(token: string, reason: Reason): Promise<void> {
    if (reason === 'device_revoked' || reason === 'account_deleted') return this.wipe(reason);
    await this.#setTokens(this.#account!.tokens.filter((other) => other.token !== token));
    if (this.#account!.tokens.length > 0) return this.#open();
    this.#setState('signed-out', reason);
  }

  /** Renews the session when less than half of its life is left, by the server's clock. */
  async #renew(): Promise<void> {
    const [current, older] = this.#account?.tokens ?? [];
    if (!current || older) return;
    const left = this.#expiresAt - this.now();
    if (current.life < left) return this.#setTokens([{ ...current, life: left }]);
    if (left > current.life / 2) return;
    const reply = await this.insist<RenewSessionReply>('session.renew');
    this.#expiresAt = Date.parse(reply.expires_at);
    const renewed: Token = { token: reply.token, life: this.#expiresAt - this.now() };
    await this.#setTokens([renewed, current]);
    await this.options.http.call('GET', '/v1/auth/session', { token: reply.token });
    await this.#setTokens([renewed]);
  }

  // --- The connection ------------------------------------------------------------------------------------------------

  async #open(): Promise<void> {
    const opening = ++this.#opening;
    const { token } = this.#account!.tokens[0]!;
    this.#refused = null;
    this.#drainMs = null;
    this.#setState('connecting');
    const { url, WebSocket, codec, timeoutMs } = this.options;
    const closed = (end: Closed) => {
      if (opening !== this.#opening) return;
      this.#closed(token, end).catch((error) => this.#failed(error));
    };
    try {
      this.#socket = new Socket({
        url: new URL('/v1/socket', url).href.replace(/^http/, 'ws'),
        token,
        WebSocket,
        codec,
        timeoutMs,
        onEvent: (event, data) => opening === this.#opening && this.#event(event, data, token),
        onClose: closed,
      });
    } catch (error) {
      this.#socket = null;
      this.report(error, 'connect');
      this.stop('protocol_error');
    }
  }

  /** The storage failed: what is known may not be what is stored. */
  #failed(error: unknown): void {
    this.report(error, 'storage');
    this.reconnect();
  }

  /** Ends the connection and opens another after a while, so that the server sends again what is not acked. */
  reconnect(): void {
    this.#drop();
    if (this.status.state === 'connected' || this.status.state === 'connecting') this.#retry(1000);
  }

  /** Forgets the connection and the timers. */
  #drop(): void {
    this.#opening++;
    this.#live.abort(new ConnectionError('network', 'the connection ended'));
    this.#live = new AbortController();
    clearTimeout(this.#timer);
    clearInterval(this.#hourly);
    const socket = this.#socket;
    this.#socket = null;
    this.welcome = null;
    socket?.close();
  }

  #event(event: string, data: unknown, token: string): void {
    switch (event) {
      case 'welcome':
        this.#welcomed(data as Welcome, token);
        break;
      case 'refused':
        this.#refused = data as ErrorBody;
        break;
      case 'server.draining':
        this.#drainMs = (data as ServerEvents['server.draining']).reconnect_in_ms;
        break;
      case 'prekeys.low':
        this.keys.low();
        break;
      case 'signed_prekey.expiring':
        this.keys.rotate(true);
        break;
      case 'message':
        return this.inbox.receive(data as MessageEvent);
      case 'mailbox.drained':
        return this.inbox.receive(null);
    }
    void this.sink.emit(event as 'welcome', data as Welcome);
  }

  #welcomed(welcome: Welcome, token: string): void {
    this.welcome = welcome;
    this.clockOffset = Date.parse(welcome.server_time) - performance.now();
    this.#expiresAt = Date.parse(welcome.expires_at);
    this.#failures = 0;
    this.#notBefore = 0;
    this.#welcomedAt = performance.now();
    this.keys.published = false;
    this.#setState('connected');
    this.keys.connected(welcome);
    this.outbox.connected();
    const renew = () => Promise.all([this.#renew(), this.outbox.prune()]).catch((error) => this.report(error, 'renew'));
    // The upgrade has ended the sessions of the other tokens.
    void this.#setTokens(this.#account!.tokens.filter((other) => other.token === token)).then(renew, (error) => this.#failed(error));
    this.#hourly = setInterval(() => {
      void renew();
      this.keys.rotate(false);
    }, HOUR);
  }

  async #closed(token: string, { code, welcomed }: Closed): Promise<void> {
    this.#drop();
    const refused = this.#refused;
    const refusal = REFUSALS[code] ?? (code === 4507 ? (refused?.details?.reason ?? 'unknown') : null);
    if (refusal) return this.#tokenRefused(token, refusal);
    // Soon after a welcome, a connection that a closed tab or a killed process had begun may come late, and nobody has it any more. Each
    // such process leaves one. Between two clients that are alive this ends: by the count, or by a wait that is longer than the time.
    const soon = performance.now() - this.#welcomedAt < STALE_MS;
    if (!soon) this.#displaced = 0;
    if (code === 4503 && soon && this.#displaced < STALE_COUNT) {
      this.#failures = this.#displaced++;
      return this.#retry();
    }
    if (code >= 4500 && code < 5000) return this.#setState('ended', ENDS[code] ?? `closed_${code}`);
    if (code === 4000 && this.#drainMs !== null) return this.#wait(this.#drainMs);
    if (refused) return this.#retry(refused.retry_after_ms, refused);
    // Without a welcome and a close code of the server, the response of the upgrade cannot be seen: ask over HTTP.
    if (!welcomed && (code < 4000 || code > 4999)) return this.#probe(token);
    this.#retry();
  }

  async #probe(token: string): Promise<void> {
    const opening = this.#opening;
    const error = await this.options.http.call('GET', '/v1/auth/session', { token }).catch((error: ServerError) => error);
    if (opening !== this.#opening) return;
    if (!(error instanceof ServerError)) return this.#retry((error as Partial<ConnectionError>).retryAfterMs);
    const { code, message, retryable, retryAfterMs, details } = error;
    if (code === 'unauthorized') return this.#tokenRefused(token, details?.reason ?? 'unknown');
    this.#retry(retryAfterMs, { code, message, retryable, retry_after_ms: retryAfterMs, details });
  }

  /** Waits for a random time after a failure, and at least for `afterMs`. */
  #retry(afterMs = 0, error: ErrorBody | null = null): void {
    this.#notBefore = performance.now() + afterMs;
    this.#wait(afterMs + backoff(this.#failures++, this.options.random), error);
  }

  #wait(ms: number, error: ErrorBody | null = null): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#open(), ms);
    this.#setState('waiting', null, Date.now() + ms, error);
  }

  #setState(state: StateChange['state'], reason: Reason | null = null, retryAt: number | null = null, error: ErrorBody | null = null): void {
    const { status } = this;
    this.status = { state, reason, retryAt, error };
    if (status.state !== state || status.reason !== reason || status.retryAt !== retryAt) {
      void this.sink.emit('state', this.status);
      this.notify();
    }
  }
}

// The client: what an app uses. It runs the engine, or the tab that leads does.

import { fromUtf8, utf8, uuid } from './bytes.js';
import { type Codec, json } from './codec.js';
import type { CryptoAdapter } from './crypto.js';
import { CLOSED, Engine, type EngineEvents, type Sink } from './engine.js';
import type { SealwireError } from './errors.js';
import { Emitter, type Handler } from './events.js';
import { Http } from './http.js';
import type { CodePurpose, Ops, OtpReply } from './protocol.js';
import type { Approval, SignInOutcome, VerifyOptions } from './signin.js';
import type { WebSocketClass } from './socket.js';
import type { Storage, Value } from './storage.js';
import { onlyTab, type Tabs } from './tabs.js';
import type { Account, ClientEvents, Message, RawMessage, Reason, SendOptions, Sent, State, StateChange } from './types.js';

export interface ClientOptions {
  /** The server, such as `https://chat.example`. */
  url: string;
  /** Where to keep session, keys and messages: `indexedDbStorage()` of `@sealwire/client/browser`, `fileStorage(path)` of `@sealwire/client/node`, or `memoryStorage()`. */
  storage: Storage;
  /** How to encrypt: an adapter such as that of `@sealwire/libsignal` or `@sealwire/x3dh`. */
  crypto: CryptoAdapter;
  /** The class for WebSockets; the global one if absent. Node 20 has none: pass the one of the package `ws`. */
  WebSocket?: WebSocketClass;
  /** The function for HTTP; the global one if absent. */
  fetch?: typeof globalThis.fetch;
  /** The encoding of frames: JSON if absent; `msgpack` of `@sealwire/client/msgpack`. */
  codec?: Codec;
  /** How long a request waits for its reply, and a connection for its welcome, in milliseconds: 20000 if absent. */
  timeoutMs?: number;
  /** Messages are padded to multiples of this many bytes: 160 if absent. 0 for no padding, if other clients do not pad. */
  padding?: number;
  /** Age at which the signed prekey is replaced, in milliseconds: 7 days if absent. */
  rotateMs?: number;
  /** A random number from 0 up to 1; for tests. */
  random?: () => number;
}

/** The parts of an engine that a client calls. */
type Part = 'calls' | 'outbox' | 'signIn' | 'data';
type Callable = Record<string, (...args: unknown[]) => unknown>;

/** What a tab knows about the engine. */
interface Snapshot {
  status: StateChange;
  account: Account | null;
}

interface RequestOptions {
  signal?: AbortSignal;
  /** How long to wait for a connection and the reply, in milliseconds. */
  timeoutMs?: number;
}

export class SealwireClient {
  readonly #options: ClientOptions;
  readonly #emitter = new Emitter<ClientEvents>();
  #tabs: Tabs | null = null;
  #engine: Engine | null = null;
  #snapshot: Snapshot = { status: CLOSED, account: null };
  /** Whether the app wants to be connected. */
  #wanted = false;
  #listening = new AbortController();

  constructor(clientOptions: ClientOptions) {
    this.#options = clientOptions;
  }

  /** The state of the connection. */
  get state(): State {
    return this.#snapshot.status.state;
  }

  /** Why the client is signed out or has ended; null otherwise. */
  get reason(): Reason | null {
    return this.#snapshot.status.reason;
  }

  /** The state with all its details. */
  get status(): StateChange {
    return this.#snapshot.status;
  }

  /** Who is signed in; also while the session is not valid any more, as long as the data of the device is there. Null before `connect()`. */
  get account(): Account | null {
    return this.#snapshot.account;
  }

  /** Whether this tab has the connection. */
  get leading(): boolean {
    return this.#tabs?.leading ?? false;
  }

  /** Calls `handler` at every event. Returns a function that removes it. */
  on<E extends keyof ClientEvents>(event: E, handler: Handler<ClientEvents[E]>, options?: { signal?: AbortSignal }): () => void {
    return this.#emitter.on(event, handler, options);
  }

  off<E extends keyof ClientEvents>(event: E, handler: Handler<ClientEvents[E]>): void {
    this.#emitter.off(event, handler);
  }

  /** The data of the next event for which `fits` is true. */
  once<E extends keyof ClientEvents>(
    event: E,
    options?: { signal?: AbortSignal; fits?: (data: ClientEvents[E]) => boolean },
  ): Promise<ClientEvents[E]> {
    return this.#emitter.once(event, options);
  }

  /**
   * Connects with the stored session, and stays connected. Resolves when there is a connection and the keys of the device are
   * published; waits for the network if necessary.
   *
   * @throws StateError `signed_out`, or `ended` if a connection of this device cannot be kept
   */
  async connect(options: { signal?: AbortSignal } = {}): Promise<void> {
    this.#wanted = true;
    await this.#call('calls', 'connect', [], options.signal);
  }

  /** Disconnects, and lets another tab lead. The storage keeps everything; `connect()` goes on. */
  async close(): Promise<void> {
    this.#wanted = false;
    this.#listening.abort();
    const [tabs, engine] = [this.#tabs, this.#engine];
    this.#tabs = this.#engine = null;
    this.#snapshot = { ...this.#snapshot, status: CLOSED };
    await tabs?.close(async () => {
      engine?.stop();
      await engine?.store.close();
    });
    await this.#options.storage.close?.();
  }

  /** Signing in with a mailed code. */
  readonly signIn = {
    /** Mails a code to an address. */
    request: (email: string, options: { signal?: AbortSignal } = {}): Promise<OtpReply> =>
      this.#call('signIn', 'request', [email], options.signal),

    /** Signs in with the code, and connects. If another device must approve it, the result has `approval`: then call `approval()`. */
    verify: async (code: string, options: VerifyOptions = {}): Promise<SignInOutcome> => {
      const { signal, ...rest } = options;
      this.#wanted = true;
      return this.#call('signIn', 'verify', [code, rest], signal);
    },

    /** The approval that is waited for, also after a restart; or null. */
    pending: (): Promise<Approval | null> => this.#call('signIn', 'pending', []),

    /** Waits until the sign-in is approved, and connects. Rejects with the code `denied` if it is refused. */
    approval: async (options: { signal?: AbortSignal } = {}): Promise<Account> => {
      this.#wanted = true;
      return this.#call('signIn', 'approval', [], options.signal);
    },
  };

  /** Mails a code for `account.delete` or `account.change_email`. */
  requestCode(email: string, purpose: CodePurpose, options: { signal?: AbortSignal } = {}): Promise<OtpReply> {
    return this.#call('signIn', 'requestCode', [email, purpose], options.signal);
  }

  /** Ends the session. The device stays with its keys and its data; the person can sign in on it again. */
  async logout(options: { signal?: AbortSignal } = {}): Promise<void> {
    await this.#call('calls', 'logout', [], options.signal);
  }

  /** Deletes everything that is stored here. The server keeps the device: revoke it on another one. */
  async wipe(): Promise<void> {
    await this.#call('calls', 'wipe', []);
  }

  /**
   * Sends a message to all devices of a user. Resolves when the server has stored it; while the client is offline it waits in the outbox,
   * also over restarts of the app. Messages to one user are delivered in the order of the calls.
   *
   * @throws ServerError `not_found`, `no_devices`, `mailbox_full`, `payload_too_large`
   * @throws StateError `signed_out`; `untrusted` if no device of the user can be encrypted for; `offline` for ephemeral messages
   */
  async send(userId: string, body: Uint8Array | string, options: SendOptions = {}): Promise<Sent> {
    const { signal, ...rest } = options;
    const bytes = typeof body === 'string' ? utf8(body) : body;
    // The id is drawn here, so that the call can be repeated when another tab takes over.
    return this.#call('outbox', 'send', [userId, bytes, { messageId: uuid(), ...rest }], signal);
  }

  /** The messages that the server has not confirmed yet, in the order in which they were sent. */
  pending(): Promise<{ messageId: string; to: string }[]> {
    return this.#call('outbox', 'pending', []);
  }

  /**
   * Sends any request of the protocol. Waits for a connection, and repeats the request if the connection is lost before the reply.
   *
   * @throws ServerError, or ConnectionError `timeout`
   */
  request<Op extends keyof Ops>(op: Op, ...rest: RequestArguments<Op>): Promise<Ops[Op]['result']>;
  request<Op extends string>(op: Op extends keyof Ops ? never : Op, params?: object, options?: RequestOptions): Promise<unknown>;
  request(op: string, params?: object, options: RequestOptions = {}): Promise<unknown> {
    return this.#call('calls', 'request', [op, params, options.timeoutMs], options.signal);
  }

  /** The id of the user with this address, or null. */
  async findUser(email: string, options: RequestOptions = {}): Promise<string | null> {
    try {
      return (await this.request('users.find', { email }, options)).user_id;
    } catch (error) {
      if ((error as SealwireError).code === 'not_found') return null;
      throw error;
    }
  }

  /** The public identity key of this device in base64, to show a fingerprint of it. */
  identityKey(): Promise<string> {
    return this.#call('calls', 'identityKey', []);
  }

  /** Data of the app in the same storage, such as what `message.write` stores. */
  readonly data = {
    get: <T extends Value = Value>(key: string): Promise<T | undefined> => this.#call('data', 'get', [key]),
    /** The entries whose key starts with `prefix`, in the order of their keys. */
    list: <T extends Value = Value>(prefix = ''): Promise<[string, T][]> => this.#call('data', 'list', [prefix]),
    /** Stores all entries, or none. An undefined value deletes. */
    write: (entries: Record<string, Value | undefined>): Promise<void> => this.#call('data', 'write', [entries]),
  };

  /** Calls a method of a part of the engine, with `signal` as the last argument. */
  #call<P extends Part, M extends keyof Engine[P] & string>(part: P, method: M, args: unknown[], signal?: AbortSignal): Promise<never> {
    return this.#start().call(`${part}.${method}`, args, signal) as Promise<never>;
  }

  #start(): Tabs {
    if (this.#tabs) return this.#tabs;
    this.#listen();
    this.#tabs = (this.#options.storage.tabs ?? onlyTab)({
      lead: () => this.#lead(),
      snapshot: () => this.#snapshot,
      perform: async (method, args, signal) => {
        const [part, name] = method.split('.') as [Part, string];
        return (this.#engine![part] as unknown as Callable)[name]!(...args, signal);
      },
      follow: (snapshot, event, data) => {
        const before = this.#snapshot.status;
        this.#snapshot = snapshot as Snapshot;
        if (event) void this.#emitter.emit(event as 'message', event === 'message' ? message(data as RawMessage, []) : (data as Message));
        else if (before.state !== this.#snapshot.status.state) void this.#emitter.emit('state', this.#snapshot.status);
        // The tab that leads from now on may not want to be connected.
        if (this.#wanted && this.#snapshot.status.reason === 'closed') void this.#call('calls', 'start', []).catch(() => {});
      },
    });
    return this.#tabs;
  }

  async #lead(): Promise<void> {
    const options = {
      WebSocket: globalThis.WebSocket as unknown as WebSocketClass | undefined,
      fetch: ((input, init) => fetch(input, init)) as typeof fetch,
      codec: json,
      timeoutMs: 20_000,
      padding: 160,
      rotateMs: 7 * 86_400_000,
      random: Math.random,
      ...this.#options,
    };
    const { WebSocket, url, timeoutMs } = options;
    if (!WebSocket) throw new TypeError('no global WebSocket: pass that of the package `ws` as an option');
    const engine = new Engine({ ...options, WebSocket, http: new Http(url, options.fetch, timeoutMs) }, this.#sink());
    this.#engine = engine;
    await engine.load();
    this.#look();
    if (this.#wanted && this.#engine === engine) engine.start();
  }

  #look(): void {
    if (this.#engine) this.#snapshot = { status: this.#engine.status, account: this.#engine.account };
  }

  /** What the engine in this tab emits goes to the handlers here and in the other tabs. */
  #sink(): Sink {
    return {
      emit: async <E extends keyof EngineEvents>(event: E, data: EngineEvents[E]) => {
        this.#look();
        this.#tabs?.broadcast(event, data);
        const writes: [string, Value][] = [];
        if (event === 'error' && !this.#emitter.has('error')) console.error('sealwire:', data);
        const shown = event === 'message' ? message(data as RawMessage, writes) : data;
        const errors = await this.#emitter.emit(event, shown as ClientEvents[E]);
        return { writes, errors };
      },
      ready: async () => {
        while (!this.#emitter.has('message')) await new Promise<void>((resolve) => (this.#emitter.onAdded = () => resolve()));
      },
    };
  }

  /** Listens for changes of the network and of the visibility of the page. */
  #listen(): void {
    this.#listening = new AbortController();
    if (typeof document === 'undefined') return;
    const { signal } = this.#listening;
    const wake = () => void this.#call('calls', 'wake', []).catch(() => {});
    window.addEventListener('online', wake, { signal });
    window.addEventListener('offline', wake, { signal });
    document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && wake(), { signal });
  }
}

/** The arguments of `request` after the op: the parameters may be left out if nothing is required. */
type RequestArguments<Op extends keyof Ops> = object extends Ops[Op]['params']
  ? [params?: Ops[Op]['params'], options?: RequestOptions]
  : [params: Ops[Op]['params'], options?: RequestOptions];

/** A message as handlers get it. What they write is collected in `writes`. */
function message(raw: RawMessage, writes: [string, Value][]): Message {
  return {
    ...raw,
    get text() {
      return fromUtf8(raw.body);
    },
    write: (key, value) => void writes.push([key, value]),
  };
}

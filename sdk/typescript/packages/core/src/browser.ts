// For browsers: storage in IndexedDB, which several tabs share.
//
// One tab leads: it has the engine. The others send their calls to it, and repeat them when another tab takes over. Who leads is decided
// by a Web Lock, which the browser gives to the next tab when the leading one is closed, crashes or navigates away. Calls, replies and
// events go over a BroadcastChannel.

import { uuid } from './bytes.js';
import { ConnectionError, CryptoError, type ErrorFields, SealwireError, ServerError, StateError, StorageError } from './errors.js';
import type { Storage, Value } from './storage.js';
import type { Tabs, TabsHandler } from './tabs.js';
import { within } from './time.js';

/**
 * Storage in IndexedDB. Tabs with the same storage share one connection: one of them leads. Each account needs a storage of its own.
 *
 * @param name the name of the database
 */
export function indexedDbStorage(name = 'sealwire'): Storage {
  const sharing = typeof BroadcastChannel === 'function' && globalThis.navigator?.locks;
  let opened: Promise<IDBDatabase> | undefined;
  const open = () =>
    (opened ??= new Promise<IDBDatabase>((resolve, reject) => {
      const request = indexedDB.open(name, 1);
      request.onupgradeneeded = () => request.result.createObjectStore('entries');
      request.onsuccess = () => {
        // Another version of the app wants to upgrade the database: make room.
        request.result.onversionchange = () => request.result.close();
        request.result.onclose = () => (opened = undefined);
        resolve(request.result);
      };
      request.onerror = () => reject(request.error!);
    }).catch((error) => {
      opened = undefined;
      throw error;
    }));

  async function run<T>(mode: IDBTransactionMode, work: (entries: IDBObjectStore) => () => T): Promise<T> {
    const db = await open();
    return new Promise((resolve, reject) => {
      // `strict` waits until the operating system has written the data.
      const tx = db.transaction('entries', mode, { durability: 'strict' });
      const result = work(tx.objectStore('entries'));
      tx.oncomplete = () => resolve(result());
      tx.onabort = tx.onerror = () => reject(tx.error ?? new Error('the IndexedDB transaction was aborted'));
    });
  }

  return {
    ...(sharing && { tabs: (handler) => new SharedTabs(`sealwire:${name}`, handler) }),
    get: (key) =>
      run('readonly', (entries) => {
        const request = entries.get(key);
        return () => request.result as Value | undefined;
      }),
    list: (prefix) =>
      run('readonly', (entries) => {
        // No key contains U+FFFF, which is not a character.
        const range = IDBKeyRange.bound(prefix, `${prefix}\uffff`);
        const [keys, values] = [entries.getAllKeys(range), entries.getAll(range)];
        return () => keys.result.map((key, i) => [key as string, values.result[i] as Value]);
      }),
    write: (batch) => {
      // The database may still be opening, and the values change meanwhile.
      const copy = structuredClone(batch);
      return run('readwrite', (entries) => {
        for (const [key, value] of copy) {
          if (value === undefined) entries.delete(key);
          else entries.put(value, key);
        }
        return () => undefined;
      });
    },
    async close() {
      (await opened)?.close();
      opened = undefined;
    },
  };
}

type Post =
  /** A tab asks who leads. */
  | { kind: 'hello'; tab: string }
  /** The leading tab answers `hello`, or has begun to lead: `tab` is null. */
  | { kind: 'leader'; tab: string | null; snapshot: unknown }
  | { kind: 'call'; tab: string; id: number; method: string; args: unknown[] }
  | { kind: 'abort'; tab: string; id: number }
  | { kind: 'reply'; tab: string; id: number; result?: unknown; error?: Record<string, unknown> }
  | { kind: 'event'; event: string; data: unknown; snapshot: unknown };

interface Call {
  method: string;
  args: unknown[];
  signal: AbortSignal | undefined;
  resolve: (result: unknown) => void;
  reject: (error: unknown) => void;
}

class SharedTabs implements Tabs {
  leading = false;

  readonly #tab = uuid();
  readonly #handler: TabsHandler;
  readonly #channel: BroadcastChannel;
  readonly #calls = new Map<number, Call>();
  /** The calls of other tabs that are being carried out. */
  readonly #serving = new Map<string, AbortController>();
  readonly #closing = new AbortController();
  #release: () => void = () => {};
  #nextId = 1;
  #failure: unknown;

  /** @param name the name that the tabs share */
  constructor(name: string, handler: TabsHandler) {
    this.#handler = handler;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }: MessageEvent<Post>) => this.#receive(data);
    const held = new Promise<void>((resolve) => (this.#release = resolve));
    navigator.locks
      .request(name, { signal: this.#closing.signal }, async () => {
        await this.#lead();
        await held;
      })
      .catch((error) => this.#failed(error));
    this.#post({ kind: 'hello', tab: this.#tab });
  }

  /** Carries out a call, here or in the tab that leads. */
  async call(method: string, args: unknown[], signal?: AbortSignal): Promise<unknown> {
    if (this.leading) return this.#handler.perform(method, args, signal);
    if (this.#failure) throw this.#failure;
    signal?.throwIfAborted();
    const id = this.#nextId++;
    const abort = () => this.#post({ kind: 'abort', tab: this.#tab, id });
    signal?.addEventListener('abort', abort, { once: true });
    const reply = new Promise((resolve, reject) => {
      this.#calls.set(id, { method, args, signal, resolve, reject });
      this.#post({ kind: 'call', tab: this.#tab, id, method, args });
    });
    return within(reply, signal).finally(() => {
      this.#calls.delete(id);
      signal?.removeEventListener('abort', abort);
    });
  }

  /** Sends an event to the other tabs. */
  broadcast(event: string, data: unknown): void {
    const { error } = data as { error?: unknown };
    const packed = error instanceof Error ? { ...(data as object), error: packError(error) } : data;
    this.#post({ kind: 'event', event, data: packed, snapshot: this.#handler.snapshot() });
  }

  /** Leaves. Carries out `stop`, of which the other tabs hear nothing: they repeat their calls when one of them leads. */
  async close(stop: () => Promise<void>): Promise<void> {
    this.leading = false;
    this.#closing.abort();
    this.#channel.close();
    for (const { reject } of this.#calls.values()) reject(new StateError('ended', 'the client is closed'));
    try {
      await stop();
    } finally {
      this.#release();
    }
  }

  /** This tab cannot lead, such as when the storage cannot be opened. */
  #failed(error: unknown): void {
    if (this.#closing.signal.aborted) return;
    this.#failure = error;
    for (const { reject } of this.#calls.values()) reject(error);
  }

  async #lead(): Promise<void> {
    const { signal: closing } = this.#closing;
    if (closing.aborted) return;
    await this.#handler.lead();
    if (closing.aborted) return;
    this.leading = true;
    this.#post({ kind: 'leader', tab: null, snapshot: this.#handler.snapshot() });
    // What this tab has asked the one before.
    for (const { method, args, signal, resolve, reject } of this.#calls.values()) {
      this.#handler.perform(method, args, signal).then(resolve, reject);
    }
  }

  #receive(post: Post): void {
    switch (post.kind) {
      case 'hello':
        if (this.leading) this.#post({ kind: 'leader', tab: post.tab, snapshot: this.#handler.snapshot() });
        return;
      case 'leader':
        if (this.leading || (post.tab !== null && post.tab !== this.#tab)) return;
        this.#handler.follow(post.snapshot);
        if (post.tab !== null) return;
        // The calls that the tab before did not answer.
        for (const [id, { method, args }] of this.#calls) this.#post({ kind: 'call', tab: this.#tab, id, method, args });
        return;
      case 'event':
        if (!this.leading) this.#handler.follow(post.snapshot, post.event, unpacked(post.data));
        return;
      case 'reply': {
        const call = post.tab === this.#tab ? this.#calls.get(post.id) : undefined;
        if (post.error) call?.reject(unpackError(post.error));
        else call?.resolve(post.result);
        return;
      }
      case 'call':
        if (this.leading) void this.#serve(post);
        return;
      case 'abort':
        this.#serving.get(`${post.tab} ${post.id}`)?.abort();
    }
  }

  async #serve({ tab, id, method, args }: Extract<Post, { kind: 'call' }>): Promise<void> {
    const key = `${tab} ${id}`;
    if (this.#serving.has(key)) return;
    const controller = new AbortController();
    this.#serving.set(key, controller);
    try {
      const result = await this.#handler.perform(method, args, controller.signal);
      this.#post({ kind: 'reply', tab, id, result });
    } catch (error) {
      this.#post({ kind: 'reply', tab, id, error: packError(error) });
    } finally {
      this.#serving.delete(key);
    }
  }

  #post(post: Post): void {
    if (!this.#closing.signal.aborted) this.#channel.postMessage(post);
  }
}

const classes = { SealwireError, ServerError, ConnectionError, StateError, StorageError, CryptoError };

/** The fields of an error, to send it to another tab. */
function packError(error: unknown): Record<string, unknown> {
  const { name, message, code, retryable, retryAfterMs, details, status } = error as SealwireError;
  return { packed: name, message, code, retryable, retryAfterMs, details, status };
}

/** The error that `packError` packed. */
function unpackError({ packed, ...fields }: Record<string, unknown>): Error {
  const kind = classes[packed as keyof typeof classes];
  if (!kind) return Object.assign(new Error(String(fields.message)), { name: packed });
  const error = new SealwireError(fields as unknown as ErrorFields);
  error.name = packed as string;
  return Object.setPrototypeOf(error, kind.prototype as object) as Error;
}

/** The data of an event, with its error unpacked. */
function unpacked(data: unknown): unknown {
  const error = (data as { error?: { packed?: string } }).error;
  return error?.packed ? { ...(data as object), error: unpackError(error) } : data;
}

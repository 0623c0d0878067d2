// One tab leads: it has the engine. The others send their calls to it, and repeat them when another tab takes over.
//
// Who leads is decided by a Web Lock, which the browser gives to the next tab when the leading one is closed, crashes or navigates
// away. Calls, replies and events go over a BroadcastChannel.

import { uuid } from './bytes.js';
import { packError, unpackError } from './errors.js';
import { within } from './time.js';

type Post =
  /** A tab asks who leads. */
  | { kind: 'hello'; tab: string }
  /** The leading tab answers `hello`, or has begun to lead: `tab` is null. */
  | { kind: 'leader'; tab: string | null; snapshot: unknown }
  | { kind: 'call'; tab: string; id: number; method: string; args: unknown[] }
  | { kind: 'abort'; tab: string; id: number }
  | { kind: 'reply'; tab: string; id: number; result?: unknown; error?: Record<string, unknown> }
  | { kind: 'event'; event: string; data: unknown; snapshot: unknown };

export interface TabsHandler {
  /** This tab leads from now on. Resolves when calls can be answered. */
  lead(): Promise<void>;
  /** Carries out a call. Only called in the tab that leads. */
  perform(method: string, args: unknown[], signal?: AbortSignal): Promise<unknown>;
  /** What a tab must know that joins. */
  snapshot(): unknown;
  /** The leading tab has sent its snapshot, with an event or without. */
  follow(snapshot: unknown, event?: string, data?: unknown): void;
}

interface Call {
  method: string;
  args: unknown[];
  resolve: (result: unknown) => void;
  reject: (error: unknown) => void;
}

export class Tabs {
  leading = false;

  readonly #tab = uuid();
  readonly #handler: TabsHandler;
  readonly #channel: BroadcastChannel | null;
  readonly #calls = new Map<number, Call>();
  /** The calls of other tabs that are being carried out. */
  readonly #serving = new Map<string, AbortController>();
  readonly #closing = new AbortController();
  #release: () => void = () => {};
  #nextId = 1;
  #failure: unknown;
  #ready: Promise<void> | undefined;

  /** @param name the name that the tabs share; null to lead without asking */
  constructor(name: string | null, handler: TabsHandler) {
    this.#handler = handler;
    this.#channel = name === null ? null : new BroadcastChannel(name);
    if (this.#channel) {
      this.#channel.onmessage = ({ data }: MessageEvent<Post>) => this.#receive(data);
      const held = new Promise<void>((resolve) => (this.#release = resolve));
      navigator.locks
        .request(name!, { signal: this.#closing.signal }, async () => {
          await this.#lead();
          await held;
        })
        .catch((error) => this.#failed(error));
      this.#post({ kind: 'hello', tab: this.#tab });
    } else {
      this.#ready = this.#lead();
      this.#ready.catch((error) => this.#failed(error));
    }
  }

  /** Carries out a call, here or in the tab that leads. */
  async call(method: string, args: unknown[], signal?: AbortSignal): Promise<unknown> {
    if (this.#closing.signal.aborted) throw new Error('the client is closed');
    if (!this.#channel) await this.#ready;
    if (this.leading) return this.#handler.perform(method, args, signal);
    if (this.#failure) throw this.#failure;
    signal?.throwIfAborted();
    const id = this.#nextId++;
    const abort = () => this.#post({ kind: 'abort', tab: this.#tab, id });
    signal?.addEventListener('abort', abort, { once: true });
    const reply = new Promise((resolve, reject) => {
      this.#calls.set(id, { method, args, resolve, reject });
      this.#post({ kind: 'call', tab: this.#tab, id, method, args });
    });
    return within(reply, signal).finally(() => {
      this.#calls.delete(id);
      signal?.removeEventListener('abort', abort);
    });
  }

  /** Sends an event to the other tabs. */
  broadcast(event: string, data: unknown): void {
    this.#post({ kind: 'event', event, data, snapshot: this.#handler.snapshot() });
  }

  /** Leaves. Another tab may lead from now on. */
  close(): void {
    this.leading = false;
    this.#closing.abort();
    this.#release();
    this.#channel?.close();
    for (const { reject } of this.#calls.values()) reject(new Error('the client is closed'));
  }

  /** This tab cannot lead, such as when the storage cannot be opened. */
  #failed(error: unknown): void {
    if (this.#closing.signal.aborted) return;
    this.#failure = error;
    for (const { reject } of this.#calls.values()) reject(error);
  }

  async #lead(): Promise<void> {
    await this.#handler.lead();
    if (this.#closing.signal.aborted) return;
    this.leading = true;
    this.#post({ kind: 'leader', tab: null, snapshot: this.#handler.snapshot() });
    // What this tab has asked the one before.
    for (const { method, args, resolve, reject } of this.#calls.values()) {
      this.#handler.perform(method, args).then(resolve, reject);
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
        if (!this.leading) this.#handler.follow(post.snapshot, post.event, post.data);
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
    if (!this.#closing.signal.aborted) this.#channel?.postMessage(post);
  }
}

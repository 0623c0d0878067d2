// One connection to the server: frames, requests with replies, and the detection of a connection that no longer works. It is used
// once; the engine opens the next.

import type { Codec } from './codec.js';
import { ConnectionError, ServerError } from './errors.js';
import type { ErrorBody, Welcome } from './protocol.js';
import { within } from './time.js';

/** The part of the standard `WebSocket` that the client uses. The class of the package `ws` has it too. */
export interface WebSocketLike {
  binaryType: string;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
  send(data: string | Uint8Array<ArrayBuffer>): void;
  close(code?: number): void;
}

export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

/** How a connection ended. */
export interface Closed {
  /** The close code; 1006 if the connection broke. */
  code: number;
  reason: string;
  /** Whether there was a welcome. */
  welcomed: boolean;
}

interface SocketOptions {
  url: string;
  token: string;
  WebSocket: WebSocketClass;
  codec: Codec;
  timeoutMs: number;
  onEvent: (event: string, data: unknown) => void;
  onClose: (closed: Closed) => void;
}

interface Waiting {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
  op: string;
}

interface Frame {
  id?: number;
  result?: unknown;
  error?: ErrorBody;
  event?: string;
  data?: unknown;
}

/** After this time without any frame, or without a reply to a ping, in milliseconds. */
const QUIET_MS = 30_000;
const PING_TIMEOUT_MS = 10_000;
/** Unanswered requests, until the welcome has the server's number. */
const IN_FLIGHT = 64;

export class Socket {
  /** The data of the welcome; null before it. */
  welcome: Welcome | null = null;

  readonly #ws: WebSocketLike;
  readonly #options: SocketOptions;
  readonly #waiting = new Map<number, Waiting>();
  readonly #queue: (() => void)[] = [];
  #nextId = 1;
  #closed = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(options: SocketOptions) {
    this.#options = options;
    const ws = new options.WebSocket(options.url, [options.codec.subprotocol, `sealwire.token.${options.token}`]);
    this.#ws = ws;
    ws.binaryType = 'arraybuffer';
    ws.onmessage = ({ data }: { data: string | ArrayBuffer }) => this.#receive(data);
    ws.onclose = ({ code, reason }: { code: number; reason: string }) => this.#end(code, reason);
    // A close event follows.
    ws.onerror = () => {};
    this.#timer = setTimeout(() => this.fail('no welcome'), options.timeoutMs);
  }

  /** Sends a request. Rejects with `ServerError`, with `ConnectionError` if the connection ends before the reply, or if `signal` is aborted. */
  async request(op: string, params?: object, signal?: AbortSignal, timeoutMs = this.#options.timeoutMs): Promise<unknown> {
    signal?.throwIfAborted();
    while (this.#waiting.size >= (this.welcome?.limits.in_flight ?? IN_FLIGHT) && !this.#closed) {
      await within(new Promise<void>((resolve) => this.#queue.push(resolve)), signal);
    }
    if (this.#closed) throw new ConnectionError('network', `${op}: the connection ended`);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      // The server answers every request: without an answer the connection does not work.
      const timer = setTimeout(() => this.fail(`no reply to ${op} within ${timeoutMs} ms`), timeoutMs);
      const abort = () => reject(signal!.reason as Error);
      signal?.addEventListener('abort', abort);
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener('abort', abort);
        this.#waiting.delete(id);
        this.#resume();
      };
      this.#waiting.set(id, {
        op,
        resolve: (result) => (done(), resolve(result)),
        reject: (error) => (done(), reject(error)),
      });
      try {
        this.#ws.send(this.#options.codec.encode({ id, op, params }));
      } catch {
        this.fail('closing');
      }
    });
  }

  /** Finds out whether the connection works, and ends it if not. */
  ping(): void {
    // An empty ack is cheap, and proves that the session is valid.
    if (this.welcome) this.request('messages.ack', { seqs: [] }, undefined, PING_TIMEOUT_MS).catch(() => {});
  }

  /** Ends the connection at once, as if it had broken. */
  fail(reason: string): void {
    this.#end(1006, reason);
    this.#ws.close();
  }

  /** Closes the connection. */
  close(): void {
    this.#end(1000, '');
    this.#ws.close(1000);
  }

  #receive(data: string | ArrayBuffer): void {
    if (this.#closed) return;
    let frame: Frame;
    try {
      frame = this.#options.codec.decode(data) as Frame;
    } catch {
      return this.fail('an invalid frame');
    }
    if (frame.event === 'welcome') this.welcome = frame.data as Welcome;
    this.#listen();
    if (frame.event) return this.#options.onEvent(frame.event, frame.data);
    const waiting = this.#waiting.get(frame.id!);
    if (frame.error) waiting?.reject(ServerError.from(frame.error));
    else waiting?.resolve(frame.result);
  }

  /** Something arrived: the connection works. */
  #listen(): void {
    if (!this.welcome) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.ping(), QUIET_MS);
  }

  /** Wakes all that wait until they may send. Those for which there is no room wait again, in the same order. */
  #resume(): void {
    for (const resume of this.#queue.splice(0)) resume();
  }

  #end(code: number, reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#ws.onmessage = this.#ws.onclose = null;
    for (const { reject, op } of [...this.#waiting.values()]) {
      reject(new ConnectionError('network', `${op}: the connection ended (${reason || code})`));
    }
    this.#resume();
    this.#options.onClose({ code, reason, welcomed: this.welcome !== null });
  }
}

// The connection as the drawer shows it. The client opens its WebSocket and sends its HTTP requests through here, so what is recorded is
// what is really sent and received; and here the connection can be cut, or a reply lost.

import type { WebSocketClass, WebSocketLike } from '@sealwire/client';

export interface Frame {
  n: number;
  at: number;
  /** Whether this side sent it. */
  sent: boolean;
  kind: 'request' | 'event' | 'http' | 'note';
  /** The op, the event, or the request line. */
  name: string;
  size: number;
  body: unknown;
  /** Of a request: its reply. */
  reply?: Reply;
}

export interface Reply {
  at: number;
  /** Milliseconds since the request. */
  took: number;
  size: number;
  body: unknown;
  /** Whether it is an error. */
  failed: boolean;
  /** Whether the drawer dropped it. */
  lost: boolean;
  /** Whether the server had the message of the request already. */
  repeated: boolean;
}

const KEPT = 300;

interface Parsed {
  id?: number;
  op?: string;
  params?: Record<string, unknown>;
  result?: Record<string, unknown>;
  error?: { code?: string };
  event?: string;
  data?: unknown;
}

export class Wire {
  readonly frames: Frame[] = [];
  /** Whether the connection is cut. */
  down = false;
  /** Whether the next reply to a message is to be lost. */
  losing = false;
  onchange: () => void = () => {};
  /** A reply has arrived. */
  onreply: (frame: Frame, reply: Reply) => void = () => {};

  readonly #open = new Set<{ break(): void }>();
  #n = 0;

  /** The class that the client opens its connections with. */
  readonly WebSocket: WebSocketClass;
  /** The function that the client sends its HTTP requests with. */
  readonly fetch: typeof globalThis.fetch;

  constructor() {
    const wire = this;
    this.WebSocket = class implements WebSocketLike {
      binaryType = 'arraybuffer';
      onopen: ((event: never) => void) | null = null;
      onmessage: ((event: never) => void) | null = null;
      onclose: ((event: never) => void) | null = null;
      onerror: ((event: never) => void) | null = null;
      readonly #socket: globalThis.WebSocket | null;
      readonly #asked = new Map<number, Frame>();
      #losingReplyTo: number | null = null;

      constructor(url: string, protocols: string[]) {
        if (wire.down) {
          this.#socket = null;
          setTimeout(() => this.#end(1006, ''), 0);
          return;
        }
        const socket = new globalThis.WebSocket(url, protocols);
        this.#socket = socket;
        socket.onopen = () => {
          wire.#open.add(this);
          wire.note('Connected');
          this.onopen?.(undefined as never);
        };
        socket.onmessage = ({ data }: MessageEvent<string>) => this.#receive(data);
        socket.onclose = ({ code, reason }) => this.#end(code, reason);
      }

      send(data: string): void {
        const frame = JSON.parse(data) as Parsed;
        if (wire.losing && frame.op === 'messages.send' && !frame.params?.ephemeral) {
          wire.losing = false;
          this.#losingReplyTo = frame.id!;
        }
        this.#asked.set(frame.id!, wire.record({ sent: true, kind: 'request', name: frame.op!, size: data.length, body: frame }));
        this.#socket?.send(data);
      }

      close(code?: number): void {
        wire.#open.delete(this);
        this.#socket?.close(code);
      }

      /** Ends the connection as a network does that fails: without a word. */
      break(): void {
        this.#end(1006, 'cut');
        if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null;
        this.#socket?.close();
      }

      #receive(data: string): void {
        const frame = JSON.parse(data) as Parsed;
        if (frame.event !== undefined) {
          wire.record({ sent: false, kind: 'event', name: frame.event, size: data.length, body: frame });
        } else {
          const asked = this.#asked.get(frame.id!);
          this.#asked.delete(frame.id!);
          const lost = frame.id === this.#losingReplyTo;
          if (asked) wire.answer(asked, { size: data.length, body: frame, failed: frame.error !== undefined, lost, repeated: frame.result?.duplicate === true });
          if (lost) return this.break();
        }
        this.onmessage?.({ data } as never);
      }

      #end(code: number, reason: string): void {
        if (wire.#open.delete(this)) wire.note(code === 1006 ? 'Connection lost' : `Closed with ${code}${reason && `: ${reason}`}`);
        this.onclose?.({ code, reason } as never);
      }
    };

    this.fetch = async (input, init) => {
      if (this.down) throw new TypeError('the connection is cut');
      const url = new URL(String(input));
      const name = `${init?.method ?? 'GET'} ${url.pathname}`;
      const body = typeof init?.body === 'string' ? init.body : '';
      const frame = this.record({ sent: true, kind: 'http', name, size: body.length, body: parsed(body) });
      const response = await globalThis.fetch(input, init);
      const text = await response.clone().text();
      this.answer(frame, { size: text.length, body: parsed(text), failed: !response.ok, lost: false, repeated: false });
      return response;
    };
  }

  /** Cuts the connection, until `restore`. */
  cut(): void {
    this.down = true;
    for (const socket of [...this.#open]) socket.break();
    this.onchange();
  }

  restore(): void {
    this.down = false;
    this.onchange();
  }

  /** Loses the reply to the next message, and the connection with it. */
  loseReply(lose = true): void {
    this.losing = lose;
    this.onchange();
  }

  clear(): void {
    this.frames.length = 0;
    this.onchange();
  }

  note(name: string): void {
    this.record({ sent: false, kind: 'note', name, size: 0, body: null });
  }

  record(frame: Omit<Frame, 'n' | 'at'>): Frame {
    const whole: Frame = { ...frame, n: ++this.#n, at: now() };
    this.frames.push(whole);
    if (this.frames.length > KEPT) this.frames.shift();
    this.onchange();
    return whole;
  }

  answer(frame: Frame, reply: Omit<Reply, 'at' | 'took'>): void {
    frame.reply = { ...reply, at: now(), took: now() - frame.at };
    this.onreply(frame, frame.reply);
    this.onchange();
  }
}

/** Milliseconds since 1970, with fractions. */
const now = (): number => performance.timeOrigin + performance.now();

function parsed(text: string): unknown {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return text;
  }
}

// Typed events.

import { within } from './time.js';

/** A handler may return a promise; the ack of a message waits for it. */
export type Handler<T> = (data: T) => unknown;

export class Emitter<Events> {
  readonly #handlers = new Map<keyof Events, Set<Handler<never>>>();
  /** Called when a handler was added. */
  onAdded: (event: keyof Events) => void = () => {};

  /** Calls `handler` at every event. Returns a function that removes it; so does aborting `signal`. */
  on<E extends keyof Events>(event: E, handler: Handler<Events[E]>, options: { signal?: AbortSignal } = {}): () => void {
    const { signal } = options;
    const off = () => this.off(event, handler);
    if (signal?.aborted) return off;
    let handlers = this.#handlers.get(event);
    if (!handlers) this.#handlers.set(event, (handlers = new Set()));
    handlers.add(handler);
    signal?.addEventListener('abort', off, { once: true });
    this.onAdded(event);
    return off;
  }

  off<E extends keyof Events>(event: E, handler: Handler<Events[E]>): void {
    this.#handlers.get(event)?.delete(handler);
  }

  /** The data of the next event for which `fits` is true. */
  once<E extends keyof Events>(event: E, options: { signal?: AbortSignal; fits?: (data: Events[E]) => boolean } = {}): Promise<Events[E]> {
    const { signal, fits } = options;
    let off: () => void;
    const next = new Promise<Events[E]>((resolve) => {
      off = this.on(event, (data) => (!fits || fits(data)) && resolve(data));
    });
    return within(next, signal).finally(() => off());
  }

  has(event: keyof Events): boolean {
    return (this.#handlers.get(event)?.size ?? 0) > 0;
  }

  /** Calls the handlers. Resolves when all have settled, with the errors of those that failed. */
  async emit<E extends keyof Events>(event: E, data: Events[E]): Promise<unknown[]> {
    const handlers = [...(this.#handlers.get(event) ?? [])] as Handler<Events[E]>[];
    const outcomes = await Promise.allSettled(handlers.map(async (handler) => handler(data)));
    return outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason as unknown] : []));
  }
}

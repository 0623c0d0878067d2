// Receipts: what arrived within a moment from one person is confirmed together.

import type { Receipt } from './envelope.js';

/** A receipt waits this long for others to the same person, in milliseconds. */
const WAIT_MS = 150;

export class Receipts {
  readonly #planned = new Map<string, { state: Receipt; ids: Set<string> }>();

  constructor(private readonly send: (peer: string, state: Receipt, ids: string[]) => Promise<void>) {}

  plan(peer: string, id: string, state: Receipt): void {
    const planned = this.#planned.get(peer);
    if (planned?.state === state) return void planned.ids.add(id);
    // First what was planned before: a message is delivered before it is read.
    if (planned) this.#flush(peer);
    this.#planned.set(peer, { state, ids: new Set([id]) });
    setTimeout(() => this.#flush(peer), WAIT_MS);
  }

  #flush(peer: string): void {
    const planned = this.#planned.get(peer);
    this.#planned.delete(peer);
    if (planned) void this.send(peer, planned.state, [...planned.ids]);
  }
}

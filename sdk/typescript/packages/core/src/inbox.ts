// The inbox: decrypts what arrives, gives it to the handlers in the order of its numbers, and acks it when they have settled.
//
// Decrypting changes the state of the encrypted session. It is stored in one write with the plaintext and the highest number seen, so
// a message that comes again is recognized by its number, and one that was not handled before the client stopped is handled after the
// next start.

import { unpad } from './bytes.js';
import { contentBytes } from './codec.js';
import type { Engine } from './engine.js';
import { CryptoError, type SealwireError, StorageError } from './errors.js';
import type { MessageEvent } from './protocol.js';
import { numbered, type Transaction, type Value } from './storage.js';
import type { RawMessage, Undecryptable } from './types.js';

const MARK = 'inbox-mark';
const PREFIX = 'inbox/';
/** App data. */
export const DATA = 'data/';
/** Acks are collected for this time, and at most this many. */
const ACK_MS = 100;
const ACK_COUNT = 50;
/** Most messages that are decrypted in one transaction. */
const BATCH = 50;

const key = (seq: number) => numbered(PREFIX, seq);

/** An event that waits for its handlers. `mailbox.drained` is one of them, so that it does not overtake messages. */
type Entry = { seq: number | null } & (
  | { event: 'message'; data: RawMessage }
  | { event: 'undecryptable'; data: Undecryptable }
  | { event: 'mailbox.drained'; data: Record<string, never> }
);

export class Inbox {
  readonly #engine: Engine;
  /** What arrived and was not decrypted yet. */
  #arrived: (MessageEvent | null)[] = [];
  #decrypting = false;
  /** The highest number that was stored. */
  #mark = 0;
  /** What was decrypted and waits for its handlers, in order. */
  #entries: Entry[] = [];
  #handling = false;
  /** Numbers that wait for their handlers. */
  #unhandled = new Set<number>();
  #acks = new Set<number>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #generation = 0;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  async load(): Promise<void> {
    await this.#engine.store.transaction(async (tx) => {
      this.#mark = (await tx.get<number>(MARK)) ?? 0;
      for (const [, value] of await tx.list(PREFIX)) {
        const entry = value as unknown as Entry;
        if (entry.event === 'message') entry.data.again = true;
        this.#entries.push(entry);
        this.#unhandled.add(entry.seq!);
      }
    });
    this.#handle();
  }

  clear(): void {
    this.#generation++;
    this.#arrived = [];
    this.#entries = [];
    this.#unhandled.clear();
    this.#acks.clear();
    this.#mark = 0;
  }

  /** Takes an envelope, or null for `mailbox.drained`. */
  receive(envelope: MessageEvent | null): void {
    this.#arrived.push(envelope);
    if (this.#decrypting) return;
    this.#decrypting = true;
    void this.#decryptAll();
  }

  async #decryptAll(): Promise<void> {
    while (this.#arrived.length > 0) {
      const batch = this.#arrived.splice(0, BATCH);
      const generation = this.#generation;
      try {
        const entries = await this.#engine.store.transaction((tx) => this.#decryptBatch(tx, batch));
        if (generation !== this.#generation) continue;
        for (const entry of entries) {
          if (entry.seq !== null) {
            this.#mark = entry.seq;
            this.#unhandled.add(entry.seq);
          }
          this.#entries.push(entry);
        }
        for (const envelope of batch) if (envelope?.seq && !this.#unhandled.has(envelope.seq)) this.#ack(envelope.seq);
        this.#handle();
      } catch (error) {
        // The storage failed. Nothing of the batch counts as seen: it comes again. Later messages must not pass it.
        this.#arrived = [];
        this.#engine.report(error, 'receive');
        this.#engine.reconnect();
      }
    }
    this.#decrypting = false;
  }

  /** Decrypts what is new in a batch. */
  async #decryptBatch(tx: Transaction, batch: (MessageEvent | null)[]): Promise<Entry[]> {
    const entries: Entry[] = [];
    let mark = this.#mark;
    for (const envelope of batch) {
      if (!envelope) {
        entries.push({ seq: null, event: 'mailbox.drained', data: {} });
        continue;
      }
      const { seq } = envelope;
      if (seq !== null && seq <= mark) continue;
      const entry = await this.#decrypt(tx, envelope);
      entries.push(entry);
      if (seq === null) continue;
      mark = seq;
      tx.set(key(seq), entry as unknown as Value);
    }
    if (mark !== this.#mark) tx.set(MARK, mark);
    return entries;
  }

  async #decrypt(tx: Transaction, envelope: MessageEvent): Promise<Entry> {
    const { seq, message_id: id, type, accepted_at: acceptedAt, ephemeral } = envelope;
    const from = { userId: envelope.from.user_id, deviceId: envelope.from.device_id };
    try {
      const body = await tx.attempt(async (inner) => {
        if (type !== 2 && type !== 3) throw new CryptoError('undecryptable', `no known type of message: ${type}`);
        const sealed = { type, content: contentBytes(envelope.content) };
        const padded = await this.#engine.crypto.decrypt(inner, this.#engine.self, from, sealed);
        await this.#engine.outbox.met(inner, from);
        return this.#engine.options.padding > 0 ? unpad(padded) : padded;
      });
      if (!body) throw new CryptoError('undecryptable', 'the padding is missing');
      return { seq, event: 'message', data: { id, seq, from, body, acceptedAt, ephemeral, again: false } };
    } catch (error) {
      if (error instanceof StorageError) throw error;
      const { code = 'undecryptable', message } = error as SealwireError;
      return { seq, event: 'undecryptable', data: { id, seq, from, type, acceptedAt, code, message } };
    }
  }

  /** Gives the entries to the handlers, one after the other. */
  #handle(): void {
    if (this.#handling || this.#entries.length === 0) return;
    this.#handling = true;
    void this.#handleAll();
  }

  async #handleAll(): Promise<void> {
    while (this.#entries.length > 0) {
      const generation = this.#generation;
      const { sink, store } = this.#engine;
      // Without a handler messages wait, here and on the server.
      if (this.#entries[0]!.event === 'message') await sink.ready();
      if (generation !== this.#generation) continue;
      const { seq, event, data } = this.#entries.shift()!;
      const { writes, errors } = await sink.emit(event, data);
      for (const error of errors) this.#engine.report(error, 'message');
      if (seq === null || generation !== this.#generation) continue;
      try {
        await store.transaction((tx) => {
          tx.delete(key(seq));
          for (const [name, value] of writes) tx.set(DATA + name, value);
        });
      } catch (error) {
        // It stays stored, and is handled again after the next start.
        this.#engine.report(error, 'message');
        continue;
      }
      this.#unhandled.delete(seq);
      this.#ack(seq);
    }
    // In the same step as the end of the loop, so that nothing is added in between.
    this.#handling = false;
  }

  #ack(seq: number): void {
    this.#acks.add(seq);
    if (this.#acks.size >= ACK_COUNT) return this.#flush();
    this.#timer ??= setTimeout(() => this.#flush(), ACK_MS);
  }

  #flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const seqs = [...this.#acks];
    this.#acks.clear();
    // Without a reply the envelopes come again, and are acked then.
    this.#engine.insist('messages.ack', { seqs }).catch((error) => this.#engine.report(error, 'ack'));
  }
}

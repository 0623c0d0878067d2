// The records of the page: contacts, messages and drafts. They are kept in the storage of the client, so one write stores a received
// message together with the note that it was handled; and in memory, where the views read them.
//
// Several tabs of one person share the storage. Each tab sends the records that it writes to the others.

import type { Message as Received, SealwireClient, Value } from '@sealwire/client';

export class Records {
  readonly #entries = new Map<string, unknown>();
  readonly #channel: BroadcastChannel;

  /**
   * @param name the name that tabs of the same person share
   * @param newer which of two versions of a record counts, if another tab has written one
   */
  constructor(
    private readonly client: SealwireClient,
    name: string,
    private readonly changed: () => void,
    newer: (before: unknown, after: unknown) => unknown,
  ) {
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }: MessageEvent<Record<string, unknown>>) => {
      for (const [key, value] of Object.entries(data)) this.#set(key, newer(this.#entries.get(key), value));
      this.changed();
    };
  }

  async load(): Promise<void> {
    this.#entries.clear();
    for (const [key, value] of await this.client.data.list()) this.#entries.set(key, value);
    this.changed();
  }

  get<T>(key: string): T | undefined {
    return this.#entries.get(key) as T | undefined;
  }

  /** The values whose keys start with `prefix`. */
  list<T>(prefix: string): T[] {
    const found: T[] = [];
    for (const [key, value] of this.#entries) if (key.startsWith(prefix)) found.push(value as T);
    return found;
  }

  /** Stores records; undefined deletes one. */
  async put(entries: Record<string, object | string | number | undefined>): Promise<void> {
    for (const [key, value] of Object.entries(entries)) this.#set(key, value);
    this.changed();
    this.#channel.postMessage(entries);
    await this.client.data.write(entries as Record<string, Value | undefined>);
  }

  /** Stores a record in the same write that notes that `message` was handled. The other tabs get the message themselves. */
  putWith(message: Received, key: string, value: object): void {
    this.#set(key, value);
    message.write(key, value as Value);
    this.changed();
  }

  clear(): void {
    this.#entries.clear();
    this.changed();
  }

  close(): void {
    this.#channel.close();
  }

  #set(key: string, value: unknown): void {
    if (value === undefined) this.#entries.delete(key);
    else this.#entries.set(key, value);
  }
}

// Storage: where a client keeps its session, keys, encrypted sessions, outbox and inbox.
//
// A storage is a map from text keys to values with one promise: `write` is atomic. Either all of a batch is stored, and stays stored
// after a crash, or nothing of it. All that must change together goes into one batch, so a client that is killed at any moment loses
// nothing and uses no key twice.

import { StateError, StorageError } from './errors.js';
import type { Tabs, TabsHandler } from './tabs.js';

/** What can be stored: JSON and bytes. */
export type Value = null | boolean | number | string | Uint8Array | Value[] | { [key: string]: Value | undefined };

/** A batch of changes: key → new value, or undefined to delete. */
export type Batch = ReadonlyMap<string, Value | undefined>;

export interface Storage {
  /** If several tabs share the storage: lets one of them lead. */
  readonly tabs?: (handler: TabsHandler) => Tabs;
  /** The value under a key, or undefined. */
  get(key: string): Promise<Value | undefined>;
  /** All entries whose key starts with `prefix`, in the order of their keys (by UTF-16 code units). */
  list(prefix: string): Promise<[string, Value][]>;
  /** Stores a batch, whole or not at all. Resolves once it would survive a crash. */
  write(batch: Batch): Promise<void>;
  /** Releases what the storage holds. */
  close?(): Promise<void>;
}

/** The view of the storage that one transaction has. Its changes are stored together when the transaction ends. */
export class Transaction {
  /** The changes so far. */
  readonly changes = new Map<string, Value | undefined>();
  readonly #storage: Pick<Storage, 'get' | 'list'>;

  constructor(storage: Pick<Storage, 'get' | 'list'>) {
    this.#storage = storage;
  }

  async get<T extends Value = Value>(key: string): Promise<T | undefined> {
    return (this.changes.has(key) ? this.changes.get(key) : await this.#storage.get(key)) as T | undefined;
  }

  async list<T extends Value = Value>(prefix: string): Promise<[string, T][]> {
    const entries = new Map<string, Value | undefined>(await this.#storage.list(prefix));
    for (const [key, value] of this.changes) if (key.startsWith(prefix)) entries.set(key, value);
    const present = [...entries].filter(([, value]) => value !== undefined) as [string, T][];
    return present.sort(([a], [b]) => (a < b ? -1 : 1));
  }

  /** Stores a value; undefined deletes. */
  set(key: string, value: Value | undefined): void {
    this.changes.set(key, value);
  }

  delete(key: string): void {
    this.set(key, undefined);
  }

  /** Runs `work`, whose changes are dropped if it throws. */
  async attempt<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    const inner = new Transaction(this);
    const result = await work(inner);
    for (const [key, value] of inner.changes) this.changes.set(key, value);
    return result;
  }
}

/** A key that ends in a number, so that keys are in the order of their numbers. */
export const numbered = (prefix: string, n: number): string => prefix + String(n).padStart(16, '0');

/** Runs transactions on a storage, one after the other. */
export class Store {
  /** The storage, with failures as `StorageError`. */
  readonly #storage: Pick<Storage, 'get' | 'list' | 'write'>;
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(storage: Storage) {
    const guarded = (name: 'get' | 'list' | 'write') => async (argument: never) => {
      try {
        return (await storage[name](argument)) as never;
      } catch (error) {
        throw new StorageError(error);
      }
    };
    this.#storage = { get: guarded('get'), list: guarded('list'), write: guarded('write') };
  }

  /**
   * Runs `work` alone, and then stores its changes in one write. If it throws, nothing is stored. Never await the network inside: all
   * other transactions wait.
   */
  transaction<T>(work: (tx: Transaction) => Promise<T> | T): Promise<T> {
    const run = this.#last.then(async () => {
      if (this.#closed) throw new StateError('ended', 'the client is closed');
      const tx = new Transaction(this.#storage);
      const result = await work(tx);
      if (tx.changes.size > 0) await this.#storage.write(tx.changes);
      return result;
    });
    this.#last = run.catch(() => {});
    return run;
  }

  /** Reads one value, after the transactions before. */
  get<T>(key: string): Promise<T | undefined> {
    return this.transaction((tx) => tx.get(key)) as Promise<unknown> as Promise<T | undefined>;
  }

  /** Waits for the transaction that runs, and refuses all others. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#last;
  }
}

/** Storage in memory, for tests and for clients that sign in anew at every start. */
export function memoryStorage(): Storage {
  const entries = new Map<string, Value>();
  return {
    async get(key) {
      return structuredClone(entries.get(key));
    },
    async list(prefix) {
      const found = [...entries].filter(([key]) => key.startsWith(prefix));
      return structuredClone(found.sort(([a], [b]) => (a < b ? -1 : 1)));
    },
    async write(batch) {
      for (const [key, value] of structuredClone(batch)) {
        if (value === undefined) entries.delete(key);
        else entries.set(key, value);
      }
    },
  };
}

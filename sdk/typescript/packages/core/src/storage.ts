// Storage: where a client keeps its session, keys, encrypted sessions, outbox and inbox.
//
// A storage is a map from text keys to values with one promise: `write` is atomic. Either all of a batch is stored, and stays stored
// after a crash, or nothing of it. All that must change together goes into one batch, so a client that is killed at any moment loses
// nothing and uses no key twice.

import { StateError, StorageError } from './errors.js';

/** What can be stored: JSON and bytes. */
export type Value = null | boolean | number | string | Uint8Array | Value[] | { [key: string]: Value | undefined };

/** A batch of changes: key → new value, or undefined to delete. */
export type Batch = ReadonlyMap<string, Value | undefined>;

export interface Storage {
  /** If several tabs share the storage: a name for it, under which they agree on the one that leads. */
  readonly name?: string;
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

  set(key: string, value: Value): void {
    this.changes.set(key, value);
  }

  delete(key: string): void {
    this.changes.set(key, undefined);
  }

  /** Runs `work`, whose changes are dropped if it throws. */
  async attempt<T>(work: (tx: Transaction) => Promise<T>): Promise<T> {
    const inner = new Transaction(this);
    const result = await work(inner);
    for (const [key, value] of inner.changes) this.changes.set(key, value);
    return result;
  }
}

/** Runs transactions on a storage, one after the other. */
export class Store {
  readonly #storage: Storage;
  /** The same, with failures as `StorageError`. */
  readonly #source: Pick<Storage, 'get' | 'list'>;
  #last: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(storage: Storage) {
    this.#storage = storage;
    this.#source = { get: (key) => guard(() => storage.get(key)), list: (prefix) => guard(() => storage.list(prefix)) };
  }

  /**
   * Runs `work` alone, and then stores its changes in one write. If it throws, nothing is stored. Never await the network inside: all
   * other transactions wait.
   */
  transaction<T>(work: (tx: Transaction) => Promise<T> | T): Promise<T> {
    const run = this.#last.then(async () => {
      if (this.#closed) throw new StateError('ended', 'the client is closed');
      const tx = new Transaction(this.#source);
      const result = await work(tx);
      if (tx.changes.size > 0) await guard(() => this.#storage.write(tx.changes));
      return result;
    });
    this.#last = run.catch(() => {});
    return run;
  }

  /** Waits for the transaction that runs, and refuses all others. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#last;
  }
}

async function guard<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw new StorageError(error);
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

/**
 * Storage in IndexedDB, for browsers. Each account needs a database of its own.
 *
 * @param name the name of the database
 */
export function indexedDbStorage(name = 'sealwire'): Storage {
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
    name: `sealwire:${name}`,
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
    write: (batch) =>
      run('readwrite', (entries) => {
        for (const [key, value] of batch) {
          if (value === undefined) entries.delete(key);
          else entries.put(value, key);
        }
        return () => undefined;
      }),
    async close() {
      (await opened)?.close();
      opened = undefined;
    },
  };
}

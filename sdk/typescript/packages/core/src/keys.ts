// Keys of this device: publishes them, refills the pools, rotates signed prekeys, and notices when the storage was restored from an
// older copy.
//
// Every publish is stored together with the private keys before it is sent, and repeated until the server has answered it.

import { concat, fromBase64, toBase64, utf8 } from './bytes.js';
import type { KeysWanted, OneTimeKind } from './crypto.js';
import type { Engine } from './engine.js';
import { ConnectionError, ServerError } from './errors.js';
import type { KeyIdReport, KeysStatusReply, PublishKeysReply, PublishKeysRequest, Welcome } from './protocol.js';
import { sha256 } from './sha256.js';
import type { Transaction, Value } from './storage.js';

const PENDING = 'keys/pending';
const PUBLISHED = 'keys/published';
/** Keys of a kind in a pool. */
const POOL = 100;
/** Private halves of replaced signed prekeys are kept for 35 days. */
const KEEP_MS = 35 * 86_400_000;
/** How far ids jump after a restore, so that they are not those that the lost copy used. */
const JUMP = 10_000;

/** What is known about the keys on the server. */
interface Published {
  poolVersion: number;
  /** When the signed prekey was made, by the server's clock. */
  signedAt: number;
  /** Ids of the one-time keys that were accepted. */
  one_time: number[];
  pq_one_time: number[];
}

export class Keys {
  /** Whether the server has the keys of this device, as far as this connection knows. */
  published = false;

  readonly #engine: Engine;
  /** Resolves when the last publish has ended. They run one after the other. */
  #last: Promise<void> = Promise.resolve();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Compares what the server has with what is stored, and publishes what is missing. */
  connected(welcome: Welcome): void {
    this.#run('publish', async () => {
      try {
        await this.#check(welcome.keys);
      } catch (error) {
        if (error instanceof ConnectionError) throw error;
        this.#engine.report(error, 'publish');
      }
      this.published = true;
      this.#engine.notify();
      await this.#rotate(false);
    });
  }

  /** A pool runs low. The event may be out of date, so the status decides what is published. */
  low(): void {
    this.#run('refill', async () => {
      const { one_time, pq_one_time, threshold } = await this.#engine.insist<KeysStatusReply>('keys.status');
      const missing = (count: number) => (count <= threshold ? POOL - count : 0);
      const [oneTime, pqOneTime] = [missing(one_time), this.#engine.crypto.pq ? missing(pq_one_time) : 0];
      if (oneTime > 0 || pqOneTime > 0) await this.#publish({ oneTime, pqOneTime });
    });
  }

  /** Replaces the signed prekey if it is old, or if `now`. */
  rotate(now: boolean): void {
    this.#run('rotate', () => this.#rotate(now));
  }

  #run(during: string, work: () => Promise<void>): void {
    this.#last = this.#last.then(work).catch((error) => this.#engine.report(error, during));
  }

  async #check(status: KeysStatusReply): Promise<void> {
    const { store, crypto } = this.#engine;
    const identity = await store.transaction((tx) => crypto.identity(tx));
    if (status.identity_key !== null && (status.identity_key !== identity.key || status.suite !== crypto.suite)) {
      this.#engine.stop('identity_conflict');
      throw new ConnectionError('network', 'identity_conflict');
    }
    if (await store.get(PENDING)) return void (await this.#flush());
    const published = await this.#published();
    if (status.identity_key === null) {
      // The first publish; or the server has lost the keys.
      return void (await this.#publish({ signed: true, oneTime: POOL, pqOneTime: POOL }));
    }
    if (published?.poolVersion === status.pool_version) return;
    await this.#restore(published?.poolVersion ?? 0, status);
  }

  /** The pools have another version than stored: the storage or the server was restored from an older copy. */
  async #restore(known: number, status: KeysStatusReply): Promise<void> {
    const { store, crypto, welcome } = this.#engine;
    const comparable = welcome?.features.includes('replace');
    const current = comparable ? await this.#engine.insist<KeysStatusReply>('keys.status', { digest: true }) : status;
    const same = await store.transaction(async (tx) => {
      const same = !comparable || current.digest === this.#digest(await crypto.publicKeys(tx), await tx.get(PUBLISHED));
      if (same) await this.#note(tx, { poolVersion: current.pool_version });
      return same;
    });
    if (same) return;
    // If the server knows more publishes than the storage, the encrypted sessions in it are old, too: to encrypt with them would use
    // keys a second time.
    if (current.pool_version > known) {
      await store.transaction(async (tx) => {
        await crypto.dropSessions(tx);
        for (const [key] of await tx.list('devices/')) tx.delete(key);
      });
      void this.#engine.sink.emit('restored', {});
    }
    for (let jump = JUMP; ; jump *= 4) {
      const reply = await this.#publish(
        { signed: true, oneTime: POOL, pqOneTime: POOL, minId: (current.signed_prekey?.key_id ?? 0) + jump },
        { replace: true, expect_pool_version: (await this.#engine.insist<KeysStatusReply>('keys.status')).pool_version },
      );
      if (!reply || reply.one_time.already_issued.length + reply.pq_one_time.already_issued.length === 0) return;
    }
  }

  async #rotate(now: boolean): Promise<void> {
    const published = await this.#published();
    const { store, crypto, options } = this.#engine;
    if (!published || !this.#engine.welcome) return;
    if (!now && this.#engine.now() - published.signedAt < options.rotateMs) return;
    await this.#publish({ signed: true });
    await store.transaction((tx) => crypto.dropReplacedKeys(tx, this.#engine.now() - KEEP_MS));
  }

  #published(): Promise<Published | undefined> {
    return this.#engine.store.get(PUBLISHED);
  }

  /** Makes keys, stores them with the request, and publishes them. */
  async #publish(wanted: Omit<KeysWanted, 'now'>, extra: Partial<PublishKeysRequest> = {}): Promise<PublishKeysReply | undefined> {
    const { store, crypto } = this.#engine;
    await store.transaction(async (tx) => {
      const keys = await crypto.newKeys(tx, { ...wanted, now: this.#engine.now() });
      // The first publish needs suite and identity; later ones may repeat them.
      const { key } = await crypto.identity(tx);
      tx.set(PENDING, { suite: crypto.suite, identity_key: key, ...keys, ...extra } as unknown as Value);
    });
    return this.#flush();
  }

  /** Sends the stored publish until the server has answered it. */
  async #flush(): Promise<PublishKeysReply | undefined> {
    const { store } = this.#engine;
    const request = (await store.get<PublishKeysRequest>(PENDING))!;
    try {
      const reply = await this.#engine.insist<PublishKeysReply>('keys.publish', request);
      await store.transaction((tx) => this.#answered(tx, request, reply));
      return reply;
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      await store.transaction((tx) => tx.delete(PENDING));
      if (error.code === 'stale_signed_prekey') {
        return this.#publish({ signed: true, minId: (error.details?.key_id ?? 0) + 1 });
      }
      if (error.code === 'pool_changed') {
        // Perhaps this very publish was done, and its reply lost.
        await this.#restore(Number.MAX_SAFE_INTEGER, await this.#engine.insist<KeysStatusReply>('keys.status'));
        return undefined;
      }
      if (error.code === 'identity_conflict') this.#engine.stop('identity_conflict');
      throw error;
    }
  }

  async #answered(tx: Transaction, request: PublishKeysRequest, reply: PublishKeysReply): Promise<void> {
    const { crypto } = this.#engine;
    tx.delete(PENDING);
    const changes: Partial<Published> = { poolVersion: reply.status.pool_version };
    if (request.signed_prekey) changes.signedAt = this.#engine.now();
    const before = (await tx.get(PUBLISHED)) as unknown as Published | undefined;
    const held = await crypto.publicKeys(tx);
    for (const [kind, keys] of [['one_time', held.one_time_prekeys], ['pq_one_time', held.pq_one_time]] as const) {
      const { accepted, duplicate, withdrawn }: KeyIdReport = reply[kind];
      if (withdrawn?.length) await crypto.dropKeys(tx, kind, withdrawn);
      // Keys that were used since are no longer stored.
      const stored = new Set(keys?.map(({ key_id }) => key_id));
      const ids = new Set([...(request.replace ? [] : (before?.[kind] ?? [])), ...accepted, ...duplicate]);
      changes[kind] = [...ids].filter((id) => stored.has(id));
    }
    await this.#note(tx, changes);
  }

  async #note(tx: Transaction, changes: Partial<Published>): Promise<void> {
    const before = (await tx.get(PUBLISHED)) as unknown as Published | undefined;
    const fresh: Published = { poolVersion: 0, signedAt: this.#engine.now(), one_time: [], pq_one_time: [] };
    tx.set(PUBLISHED, { ...(before ?? fresh), ...changes } as unknown as Value);
  }

  /** The digest that `keys.status` gives if the server has exactly the keys that were published and not used. */
  #digest(keys: PublishKeysRequest, stored: Value | undefined): string {
    const published = stored as unknown as Published | undefined;
    const parts: Uint8Array[] = [];
    const add = (name: string, key: { key_id: number; public_key: string }) => {
      const id = new Uint8Array(4);
      new DataView(id.buffer).setUint32(0, key.key_id);
      parts.push(utf8(name), id, fromBase64(key.public_key));
    };
    const pool = (kind: OneTimeKind, list: { key_id: number; public_key: string }[] = []) => {
      const ids = new Set(published?.[kind]);
      for (const key of [...list].sort((a, b) => a.key_id - b.key_id)) if (ids.has(key.key_id)) add(kind, key);
    };
    pool('one_time', keys.one_time_prekeys);
    pool('pq_one_time', keys.pq_one_time);
    if (keys.signed_prekey) add('signed', keys.signed_prekey);
    if (keys.pq_last_resort) add('pq_last_resort', keys.pq_last_resort);
    return toBase64(sha256(concat(...parts)));
  }
}

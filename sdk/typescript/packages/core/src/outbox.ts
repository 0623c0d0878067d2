// The outbox: messages that the server has not confirmed yet.
//
// A message is stored before `send` waits for anything. Before it is encrypted, the id of a claim that it needs is stored; after that,
// its ciphertexts and the changed encrypted sessions in one write, and only then it is sent. So a repeat, also after a crash, sends the
// same bytes under the same ids, and takes no second key.
//
// Messages to one user go one after the other, in the order of `send`; those to different users do not wait for each other.

import { pad, uuid } from './bytes.js';
import type { Address } from './crypto.js';
import type { Engine } from './engine.js';
import { ConnectionError, CryptoError, SealwireError, ServerError, signedOut, StateError, StorageError } from './errors.js';
import type { BundlesReply, SendMessageReply, Welcome } from './protocol.js';
import { numbered, type Transaction, type Value } from './storage.js';
import { within } from './time.js';
import type { SendOptions, Sent } from './types.js';

const PREFIX = 'outbox/';
const COUNTER = 'outbox-counter';
const DONE = 'sent/';
const DEVICES = 'devices/';
/** The server remembers ids of messages and claims for this time. */
const REMEMBERED_MS = 86_400_000;
/** How often the devices of a recipient may change while one message is sent. */
const ROUNDS = 10;

const key = (n: number) => numbered(PREFIX, n);

/** A message that was not confirmed. */
interface Item {
  n: number;
  id: string;
  to: string;
  body: Uint8Array;
  ttlS?: number;
  ephemeral?: boolean;
  access?: string;
  urgent?: boolean;
  /** The claim that is under way for it. */
  claim?: { id: string; deviceIds?: string[] };
  /** Its ciphertexts. From then on it is sent as it is. */
  sealed?: { deviceId: string; type: number; content: Uint8Array }[];
  /** Devices that it is not encrypted for. */
  skip?: string[];
}

/** The known devices of a user: those to encrypt for, and those that cannot be. */
interface Devices {
  known: string[];
  skip: string[];
}

interface Waiting {
  resolve: (sent: Sent) => void;
  reject: (error: unknown) => void;
}

export class Outbox {
  readonly #engine: Engine;
  /** Unconfirmed messages by recipient, in order. */
  readonly #queues = new Map<string, Item[]>();
  /** Recipients whose queue is being sent. */
  readonly #running = new Set<string>();
  readonly #waiting = new Map<string, Waiting[]>();
  readonly #dropped = new Set<string>();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  async load(): Promise<void> {
    await this.#engine.store.transaction(async (tx) => {
      for (const [, value] of await tx.list(PREFIX)) this.#enqueue(value as unknown as Item);
    });
  }

  /** Forgets what was done more than a day ago. */
  prune(): Promise<void> {
    return this.#engine.store.transaction(async (tx) => {
      for (const [name, value] of await tx.list(DONE)) {
        if (this.#engine.now() - (value as { at: number }).at > REMEMBERED_MS) tx.delete(name);
      }
    });
  }

  /** Ids and recipients of the messages that the server has not confirmed, in order. */
  pending(): { messageId: string; to: string }[] {
    const items = this.#items().sort((a, b) => a.n - b.n);
    return items.map(({ id, to }) => ({ messageId: id, to }));
  }

  clear(error: SealwireError): void {
    for (const waiting of this.#waiting.values()) for (const { reject } of waiting) reject(error);
    this.#waiting.clear();
    this.#queues.clear();
  }

  /** There is a new connection: sends what is not confirmed. */
  connected(): void {
    for (const to of this.#queues.keys()) this.#kick(to);
  }

  async send(to: string, body: Uint8Array, { messageId = uuid(), ...more }: SendOptions, signal?: AbortSignal): Promise<Sent> {
    signal?.throwIfAborted();
    if (!this.#engine.account) throw signedOut(null);
    const item: Item = { ...more, n: 0, id: messageId.toLowerCase(), to: to.toLowerCase(), body };
    if (item.ephemeral) return this.#sendEphemeral(item, signal);

    const known = this.#waiting.has(item.id) || this.#find(item.id);
    const sent = new Promise<Sent>((resolve, reject) => {
      const waiting = this.#waiting.get(item.id) ?? [];
      this.#waiting.set(item.id, [...waiting, { resolve, reject }]);
    });
    // If nobody waits any more, `failed` still reports the failure.
    sent.catch(() => {});
    if (!known) void this.#add(item);
    return within(sent, signal).catch((error) => {
      // Drops the message if nothing of it was sent.
      if (signal?.aborted && !this.#find(item.id)?.sealed) this.#dropped.add(item.id);
      throw error;
    });
  }

  /** Stores a message and begins to send it, unless it was sent before. */
  async #add(item: Item): Promise<void> {
    try {
      const earlier = await this.#engine.store.transaction(async (tx) => {
        const done = await tx.get(DONE + item.id);
        if (done) return (done as unknown as { sent: Sent }).sent;
        item.n = ((await tx.get<number>(COUNTER)) ?? 0) + 1;
        tx.set(COUNTER, item.n);
        tx.set(key(item.n), item as unknown as Value);
        return undefined;
      });
      if (earlier) return this.#settle(item.id, ({ resolve }) => resolve(earlier));
      this.#enqueue(item);
      this.#kick(item.to);
    } catch (error) {
      this.#settle(item.id, ({ reject }) => reject(error));
    }
  }

  /** Notes that `device` exists, because a message came from it. */
  async met(tx: Transaction, { userId, deviceId }: Address): Promise<void> {
    const devices = (await this.#devices(tx, userId)) ?? { known: [], skip: [] };
    if (!devices.known.includes(deviceId)) this.#setDevices(tx, userId, { ...devices, known: [...devices.known, deviceId] });
  }

  #items(): Item[] {
    return [...this.#queues.values()].flat();
  }

  #find(id: string): Item | undefined {
    return this.#items().find((item) => item.id === id);
  }

  #enqueue(item: Item): void {
    const queue = this.#queues.get(item.to);
    if (queue) queue.push(item);
    else this.#queues.set(item.to, [item]);
  }

  #dequeue(item: Item): void {
    const rest = (this.#queues.get(item.to) ?? []).filter((other) => other !== item);
    if (rest.length > 0) this.#queues.set(item.to, rest);
    else this.#queues.delete(item.to);
  }

  /** Sends the queue of a recipient, unless that goes on already. */
  #kick(to: string): void {
    const { welcome } = this.#engine;
    if (this.#running.has(to) || !welcome) return;
    this.#running.add(to);
    void this.#run(to, welcome).then((interrupted) => {
      this.#running.delete(to);
      // The next connection may be there already.
      const again = !interrupted || this.#engine.welcome !== welcome;
      if (again && this.#queues.has(to)) this.#kick(to);
    });
  }

  /** Sends a queue until it is empty. Returns whether it was interrupted, by the end of the connection or a failure of the storage. */
  async #run(to: string, welcome: Welcome): Promise<boolean> {
    for (;;) {
      const item = this.#queues.get(to)?.[0];
      if (!item) return false;
      if (this.#engine.welcome !== welcome) return true;
      try {
        if (this.#dropped.delete(item.id) && !item.sealed) {
          await this.#remove(item);
          continue;
        }
        const sent = await this.#confirm(item, await this.#deliver(item));
        this.#settle(item.id, ({ resolve }) => resolve(sent));
        void this.#engine.sink.emit('sent', sent);
      } catch (error) {
        const { code } = error as SealwireError;
        // After these, the next welcome repeats the send.
        if (error instanceof ConnectionError || code === 'session_revoked') return true;
        try {
          if (error instanceof StorageError) throw error;
          await this.#remove(item);
        } catch (failure) {
          this.#engine.report(failure, 'send');
          this.#engine.reconnect();
          return true;
        }
        const refused = error instanceof SealwireError ? error : new CryptoError('undecryptable', String(error), { cause: error });
        this.#settle(item.id, ({ reject }) => reject(refused));
        void this.#engine.sink.emit('failed', { messageId: item.id, to: item.to, error: refused });
      }
    }
  }

  async #remove(item: Item): Promise<void> {
    await this.#engine.store.transaction((tx) => tx.delete(key(item.n)));
    this.#dequeue(item);
  }

  async #confirm(item: Item, reply: SendMessageReply): Promise<Sent> {
    const sent = outcome(item, reply);
    await this.#engine.store.transaction((tx) => {
      tx.delete(key(item.n));
      tx.set(DONE + item.id, { at: this.#engine.now(), sent: sent as unknown as Value });
    });
    this.#dequeue(item);
    return sent;
  }

  #settle(id: string, how: (waiting: Waiting) => void): void {
    const waiting = this.#waiting.get(id) ?? [];
    this.#waiting.delete(id);
    waiting.forEach(how);
  }

  async #sendEphemeral(item: Item, signal?: AbortSignal): Promise<Sent> {
    if (!this.#engine.welcome) throw new StateError('offline', 'an ephemeral message needs a connection');
    return outcome(item, await within(this.#deliver(item), signal));
  }

  /** Encrypts if necessary, sends, and corrects the list of devices until it is right. */
  async #deliver(item: Item): Promise<SendMessageReply> {
    if (!item.sealed) await this.#seal(item, [], []);
    for (let round = 0; ; round++) {
      try {
        return await this.#engine.insist<SendMessageReply>('messages.send', this.#request(item));
      } catch (error) {
        if (!(error instanceof ServerError) || error.code !== 'devices_mismatch' || round >= ROUNDS) throw error;
        await this.#seal(item, error.details?.missing ?? [], error.details?.extra ?? []);
      }
    }
  }

  #request({ sealed = [], skip = [], ...item }: Item): object {
    const { welcome, options } = this.#engine;
    if (sealed.length === 0 && skip.length > 0) {
      throw new StateError('untrusted', 'no device of the recipient can be encrypted for');
    }
    return {
      message_id: item.id,
      to: item.to,
      messages: sealed.map(({ deviceId, type, content }) => ({ device_id: deviceId, type, content: options.codec.content(content) })),
      ...(skip.length > 0 && welcome?.features.includes('skip') && { skip }),
      ttl_s: item.ttlS,
      ephemeral: item.ephemeral,
      access: item.access,
      urgent: item.urgent,
    };
  }

  /** Encrypts for all devices of the recipient that have no ciphertext yet; `missing` and `extra` are what the server says of them. */
  async #seal(item: Item, missing: string[], extra: string[]): Promise<void> {
    const { store, crypto, self } = this.#engine;
    const save = (tx: Transaction, changed: Item) => {
      if (!item.ephemeral) tx.set(key(item.n), changed as unknown as Value);
    };
    const address = (deviceId: string) => ({ userId: item.to, deviceId });

    // Which devices have to be claimed? The claim is stored before it is sent.
    const claim = await store.transaction(async (tx) => {
      if (item.claim) return item.claim;
      const devices = await this.#devices(tx, item.to);
      const deviceIds: string[] = [];
      for (const id of new Set([...(devices?.known ?? []), ...missing])) {
        if (!extra.includes(id) && !(await crypto.hasSession(tx, address(id)))) deviceIds.push(id);
      }
      if (devices && deviceIds.length === 0) return undefined;
      const claim = { id: uuid(), ...(devices && { deviceIds }) };
      save(tx, { ...item, claim });
      return claim;
    });
    if (claim) item.claim = claim;

    const features = this.#engine.welcome?.features ?? [];
    const reply =
      claim &&
      (await this.#engine.insist<BundlesReply>('keys.claim', {
        user_id: item.to,
        claim_id: claim.id,
        device_ids: claim.deviceIds,
        access: item.access,
        ...(features.includes('suites') && { suites: [crypto.suite] }),
      }));

    const untrusted: { device: Address; message: string }[] = [];
    const changed = await store.transaction(async (tx) => {
      const { known = [], skip = [] } = (await this.#devices(tx, item.to)) ?? {};
      const cannot = new Set(skip);
      const use = new Set([...known, ...missing.filter((id) => !cannot.has(id))]);
      for (const id of extra) {
        use.delete(id);
        cannot.delete(id);
        await crypto.dropSessions(tx, id);
      }
      for (const bundle of reply?.bundles ?? []) {
        const device = address(bundle.device_id);
        try {
          // It may be that the first message of the device came meanwhile.
          if (!(await crypto.hasSession(tx, device))) await tx.attempt((inner) => crypto.openSession(inner, self, device, bundle));
          use.add(device.deviceId);
          cannot.delete(device.deviceId);
        } catch (error) {
          if (!(error instanceof CryptoError)) throw error;
          untrusted.push({ device, message: error.message });
          use.delete(device.deviceId);
          cannot.add(device.deviceId);
        }
      }
      for (const { device_id: id, reason } of reply?.unavailable ?? []) {
        use.delete(id);
        if (reason === 'other_suite') cannot.add(id);
      }
      if (item.to === self.userId) use.delete(self.deviceId);

      const sealed = (item.sealed ?? []).filter(({ deviceId }) => !extra.includes(deviceId));
      const named = new Set(sealed.map(({ deviceId }) => deviceId));
      const { padding } = this.#engine.options;
      const plaintext = padding > 0 ? pad(item.body, padding) : item.body;
      for (const deviceId of use) {
        // One without a session is missing in the eyes of the server, and claimed in the next round.
        if (named.has(deviceId) || !(await crypto.hasSession(tx, address(deviceId)))) continue;
        sealed.push({ deviceId, ...(await crypto.encrypt(tx, self, address(deviceId), plaintext)) });
      }
      this.#setDevices(tx, item.to, { known: [...use], skip: [...cannot] });
      const { claim: _, ...rest } = item;
      const changed: Item = { ...rest, sealed, skip: [...cannot].slice(-100) };
      save(tx, changed);
      return changed;
    });
    delete item.claim;
    Object.assign(item, changed);
    for (const report of untrusted) void this.#engine.sink.emit('untrusted', report);
  }

  async #devices(tx: Transaction, userId: string): Promise<Devices | undefined> {
    return (await tx.get(DEVICES + userId)) as unknown as Devices | undefined;
  }

  #setDevices(tx: Transaction, userId: string, devices: Devices): void {
    tx.set(DEVICES + userId, devices as unknown as Value);
  }
}

const outcome = ({ id, to, skip = [] }: Item, { accepted_at: acceptedAt, stored, undelivered }: SendMessageReply): Sent => ({
  messageId: id,
  to,
  acceptedAt,
  stored,
  undelivered,
  skipped: skip,
});

// One person on one device: the client, what it stores, and what the views show of it.

import { type Account, type CryptoAdapter, SealwireClient, type StateChange, type Storage } from '@sealwire/client';
import { indexedDbStorage } from '@sealwire/client/browser';
import type { KeysStatusReply, ListedDevice, PendingApproval } from '@sealwire/client/protocol';
import { type Push, withPush } from '@sealwire/client/push';
import { x3dhCrypto } from '@sealwire/x3dh';
import { Chats, newer } from './chats.js';
import { Notifications } from './notifications.js';
import * as profiles from './profiles.js';
import { Records } from './records.js';
import { Trust } from './trust.js';
import { Wire } from './wire.js';

/** One-time keys that a device publishes first: few, so that you can watch the pool run low. The client refills it to a hundred. */
const FIRST_KEYS = 24;

/** What is known about the key pool. */
export interface Pool {
  count: number;
  threshold: number;
  /** The last changes, newest last. */
  history: { at: number; count: number; refilled: boolean }[];
}

export class Person {
  readonly wire = new Wire();
  readonly storage: Storage;
  readonly client: SealwireClient & { readonly push: Push };
  readonly records: Records;
  readonly chats: Chats;
  readonly trust: Trust;
  readonly notifications: Notifications;
  status: StateChange;
  /** Whether there was a connection since the page was opened. */
  wasConnected = false;
  devices: ListedDevice[] = [];
  requests: PendingApproval[] = [];
  locked: boolean | null = null;
  pool: Pool | null = null;
  /** What the views show has changed. */
  onchange: () => void = () => {};
  /** Another device of this person signed in. */
  onsignin: (device: ListedDevice | undefined) => void = () => {};

  readonly #deviceIds = new Set<string>();

  constructor(readonly id: string) {
    const database = profiles.databaseOf(id);
    this.storage = indexedDbStorage(database);
    const client = new SealwireClient({
      url: location.origin,
      storage: this.storage,
      crypto: fewKeysFirst(x3dhCrypto()),
      WebSocket: this.wire.WebSocket,
      fetch: this.wire.fetch,
    });
    this.client = withPush(client);
    this.status = this.client.status;
    const changed = () => {
      this.chats.refresh();
      this.onchange();
    };
    this.records = new Records(this.client, `records:${database}`, changed, newer);
    this.chats = new Chats(this.client, this.records, () => this.onchange());
    this.trust = new Trust(this.client, this.storage, this.chats);
    this.notifications = new Notifications(id, this.client, this.records, this.chats, () => this.onchange());
    this.#listen();
  }

  get account(): Account | null {
    return this.client.account;
  }

  get connected(): boolean {
    return this.status.state === 'connected';
  }

  /** Reads what is stored. Returns whether there is a session. */
  async load(): Promise<boolean> {
    await this.records.load();
    return this.client.state !== 'signed-out' && this.client.account !== null;
  }

  /** Connects, and goes on with what was not finished. */
  start(): void {
    this.chats.resume();
    this.client.connect().catch(() => {});
  }

  /** Stops, for another person in this tab. */
  async close(): Promise<void> {
    this.records.close();
    await this.client.close();
  }

  /** Connects again after the drawer has cut the connection. */
  restore(): void {
    this.wire.restore();
    this.client.connect().catch(() => {});
  }

  async refreshDevices(): Promise<void> {
    const { devices } = await this.client.request('devices.list');
    this.devices = devices;
    await this.records.put({ devices: devices.length });
  }

  async refreshRequests(): Promise<void> {
    const { locked, pending } = await this.client.request('account.status');
    this.locked = locked;
    this.requests = pending;
    this.onchange();
  }

  async refreshPool(): Promise<void> {
    this.#noteKeys(await this.client.request('keys.status'));
  }

  async refreshBlocks(): Promise<void> {
    const { user_ids: ids } = await this.client.request('blocks.list');
    this.chats.blocked.clear();
    for (const id of ids) this.chats.blocked.add(id);
    this.onchange();
  }

  async block(userId: string, on: boolean): Promise<void> {
    await this.client.request(on ? 'blocks.add' : 'blocks.remove', { user_id: userId });
    await this.refreshBlocks();
  }

  #noteKeys({ one_time: count, threshold }: Pick<KeysStatusReply, 'one_time' | 'threshold'>): void {
    const history = this.pool?.history ?? [];
    const before = this.pool?.count;
    if (before !== count && (count > 0 || before)) history.push({ at: Date.now(), count, refilled: !!before && count > before });
    this.pool = { count, threshold, history: history.slice(-40) };
    this.onchange();
  }

  #listen(): void {
    const { client, chats } = this;
    client.on('state', (status) => {
      this.status = status;
      if (status.state === 'connected') this.wasConnected = true;
      if (status.reason === 'device_revoked' || status.reason === 'account_deleted') {
        this.records.clear();
        void this.notifications.pause().catch(() => {});
      }
      this.onchange();
    });
    client.on('welcome', ({ keys }) => {
      this.#noteKeys(keys);
      void Promise.all([this.refreshDevices(), this.refreshRequests(), this.refreshBlocks()]).catch(() => {});
      chats.confirmAll();
      if (client.leading) void this.notifications.resume().catch(() => {});
    });
    client.on('message', (message) => chats.receive(message));
    // Also those that a tab has sent which is gone.
    client.on('sent', ({ messageId }) => client.leading && void chats.reached(messageId, 'stored'));
    client.on('failed', ({ messageId, error }) => client.leading && void chats.failed(messageId, error));
    client.on('prekeys.low', (low) => {
      if (this.pool) this.#noteKeys({ one_time: low.remaining, threshold: low.threshold });
    });
    client.on('devices.changed', () => void this.refreshDevices().catch(() => {}));
    client.on('sessions.changed', ({ device_id, opened }) => {
      if (opened.length === 0 || device_id === this.account?.deviceId) return;
      void this.refreshDevices()
        .then(() => this.onsignin(this.devices.find((device) => device.device_id === device_id)))
        .catch(() => {});
    });
    client.on('devices.requested', (request) => {
      this.requests = [...this.requests.filter(({ request_id }) => request_id !== request.request_id), request];
      this.onchange();
    });
    client.on('untrusted', ({ device }) => void chats.update(device.userId, { changed: true }));
    client.on('undecryptable', ({ id, from }) => {
      if (chats.contact(from.userId)) void chats.note(`undecryptable-${id}`, from.userId, 'A message came that this device cannot decrypt. Ask for it again.');
    });
    client.on('error', ({ error, during }) => this.wire.note(`Failed: ${during}: ${error.message}`));
    chats.ondevice = (userId, deviceId) => {
      if (this.#deviceIds.has(deviceId)) return;
      this.#deviceIds.add(deviceId);
      if (userId !== this.account?.userId) void this.trust.look(userId).catch(() => {});
    };
    // What is published is in the frames: the reply to every publish has the state of the pool.
    this.wire.onreply = ({ name }, { body }) => {
      const status = name === 'keys.publish' && (body as { result?: { status?: KeysStatusReply } }).result?.status;
      if (status) this.#noteKeys(status);
    };
    this.wire.onchange = () => this.onchange();
  }
}

/** The adapter, but its first one-time keys are few. */
function fewKeysFirst(crypto: CryptoAdapter): CryptoAdapter {
  return {
    ...crypto,
    newKeys: async (tx, wanted) => {
      const first = wanted.signed && (await crypto.publicKeys(tx)).signed_prekey === undefined;
      return crypto.newKeys(tx, first && wanted.oneTime ? { ...wanted, oneTime: FIRST_KEYS } : wanted);
    },
  };
}

// Push wake-ups: the server wakes this device by a push service when messages wait and the app is closed.
//
// An entry point of its own, so that apps without push do not load it. What it knows is in the data of the app, under the key
// `sealwire.push`, since the tabs and the service worker share the storage.

import { toBase64Url } from './bytes.js';
import type { SealwireClient } from './client.js';
import type { ServerError } from './errors.js';
import type { Newer, PushState as KnownPushState } from './protocol.js';
import type { Value } from './storage.js';

/** Whether the server wakes this device: `unconfirmed` until the nonce that it pushes is received. */
export type PushState = KnownPushState | Newer;

/** Where this device is woken. */
export type PushTarget =
  | { kind: 'webpush'; endpoint: string; p256dh: string; auth: string }
  /** `token` in hexadecimal; `topic` is the bundle id of the app; `sandbox` for builds for development. */
  | { kind: 'apns'; token: string; topic: string; sandbox?: boolean }
  | { kind: 'fcm'; token: string };

export interface PushStatus {
  state: PushState;
  /** The kinds of targets that the server sends to. Empty if it is too old, or has no push. */
  kinds: string[];
  /** The key of the server for Web Push in base64url; null if it has none. */
  vapidPublicKey: string | null;
}

/** What is stored: the status, and what was registered when. */
interface Known extends PushStatus {
  target?: string | undefined;
  registeredAt?: number | undefined;
}

interface Options {
  signal?: AbortSignal;
}

const KEY = 'sealwire.push';
/** For how long a nonce is valid, in milliseconds. */
const NONCE_MS = 600_000;

/** Adds `push` to a client. */
export function withPush<Client extends SealwireClient>(client: Client): Client & { readonly push: Push } {
  return Object.assign(client, { push: new Push(client) });
}

export class Push {
  readonly #client: SealwireClient;
  #noted: Promise<unknown> = Promise.resolve();

  constructor(client: SealwireClient) {
    this.#client = client;
    client.on('welcome', ({ push }) => {
      const { state, kinds, vapid_public_key: vapidPublicKey } = push ?? { state: 'none', kinds: [], vapid_public_key: null };
      this.#note({ state, kinds, vapidPublicKey }).catch(() => {});
    });
  }

  /** What the server said last. Before the first connection it waits for that. */
  async status(options: Options = {}): Promise<PushStatus> {
    const { state, kinds, vapidPublicKey } = await this.#known(options);
    return { state, kinds, vapidPublicKey };
  }

  /**
   * In browsers: subscribes to Web Push, and registers the subscription. Call it after every start of the app, once the person has allowed
   * notifications. A subscription for another key of the server is replaced. Resolves to `none` if the server has no Web Push.
   *
   * @param registration the service worker that gets the pushes; it passes them to `receive`
   * @throws ServerError `rate_limited` after five registrations in an hour; DOMException `NotAllowedError` without permission
   */
  async subscribe(registration: ServiceWorkerRegistration, options: Options = {}): Promise<PushState> {
    const { kinds, vapidPublicKey } = await this.#known(options);
    if (!vapidPublicKey || !kinds.includes('webpush')) return 'none';
    let subscription = await registration.pushManager.getSubscription();
    const key = subscription?.options.applicationServerKey;
    if (subscription && (!key || toBase64Url(new Uint8Array(key)) !== vapidPublicKey)) {
      await subscription.unsubscribe();
      subscription = null;
    }
    subscription ??= await registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: vapidPublicKey });
    const { endpoint, keys } = subscription.toJSON() as { endpoint: string; keys: { p256dh: string; auth: string } };
    return this.register({ kind: 'webpush', endpoint, p256dh: keys.p256dh, auth: keys.auth }, options);
  }

  /**
   * Registers where this device is woken, unless the server knows it already. After `unconfirmed`, a push with a nonce arrives at the
   * target: pass its content to `receive`. If none comes, call this again after ten minutes. Resolves to `none` if the server does not
   * send to this kind.
   *
   * @throws ServerError `rate_limited` after five registrations in an hour, `bad_request` for a target that is not valid
   */
  async register(target: PushTarget, options: Options = {}): Promise<PushState> {
    const known = await this.#known(options);
    if (!known.kinds.includes(target.kind)) return 'none';
    const text = JSON.stringify(target);
    const isRecent = Date.now() - (known.registeredAt ?? 0) < NONCE_MS;
    if (known.target === text && (known.state === 'active' || (known.state === 'unconfirmed' && isRecent))) return known.state;
    const { state } = await this.#client.request('push.register', target, options);
    await this.#note({ state, target: text, registeredAt: Date.now() });
    return state;
  }

  /**
   * Handles the content of a push: a JSON object, for APNs and FCM with the fields `sealwire` and `nonce`. Confirms the registration if it
   * has a nonce: connect first. Returns `wake` if there are messages to fetch, `confirmed` if the device is woken from now on, and null
   * for a content that means nothing to this client, or a nonce that is too old.
   */
  async receive(content: unknown, options: Options = {}): Promise<'wake' | 'confirmed' | null> {
    const { sealwire, nonce } = (content ?? {}) as { sealwire?: unknown; nonce?: unknown };
    if (sealwire === 'wake') return 'wake';
    if (sealwire !== 'confirm') return null;
    try {
      const { state } = await this.#client.request('push.confirm', { nonce: nonce as string }, options);
      await this.#note({ state });
      return 'confirmed';
    } catch (error) {
      if ((error as ServerError).code === 'not_found') return null;
      throw error;
    }
  }

  /**
   * Asks for a wake-up, to show that they work.
   *
   * @throws ServerError `not_found` if the device is not woken, `rate_limited` more than once a minute
   */
  async test(options: Options = {}): Promise<void> {
    await this.#client.request('push.test', {}, options);
  }

  /** Ends wake-ups of this device. Call it before `logout()`: a logout alone does not end them. In browsers, pass the service worker to unsubscribe too. */
  async remove(registration?: ServiceWorkerRegistration, options: Options = {}): Promise<void> {
    await this.#client.request('push.remove', {}, options);
    await this.#note({ state: 'none', target: undefined, registeredAt: undefined });
    await (await registration?.pushManager.getSubscription())?.unsubscribe();
  }

  async #known({ signal }: Options): Promise<Known> {
    for (;;) {
      await this.#noted;
      const known = await this.#client.data.get(KEY);
      if (known) return known as unknown as Known;
      await this.#client.once('welcome', signal ? { signal } : {});
    }
  }

  /** Stores `changes`, after those before. */
  #note(changes: Partial<Known>): Promise<void> {
    const noted = this.#noted.then(async () => {
      const known = (await this.#client.data.get(KEY)) as object | undefined;
      const whole = Object.entries({ ...known, ...changes }).filter(([, value]) => value !== undefined);
      await this.#client.data.write({ [KEY]: Object.fromEntries(whole) as Value });
    });
    this.#noted = noted.catch(() => {});
    return noted;
  }
}

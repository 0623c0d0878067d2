// Notifications of one person on this device.
//
// While the page is open but not visible, it shows the messages that arrive. While it is closed, a push wakes the service worker, which can say
// only that there is a message. Each person has a registration of the worker of their own, under a scope that no page has: so each has a push
// subscription of their own, and the worker controls no page.

import { SealwireError, type SealwireClient } from '@sealwire/client';
import type { Push } from '@sealwire/client/push';
import { nameOf } from '../text.js';
import { addressIn, type Answer, cacheOf, confirmationIn, ICON, type Post, SCRIPT, scopeOf } from '../../worker/posts.js';
import type { Chats, Contact, Message } from './chats.js';
import type { Records } from './records.js';

/** What the person has chosen. */
export interface Choice {
  on: boolean;
  /**
   * Whether they are notified while no tab is open: `waiting` for the push that confirms the registration; `not-offered` by the server;
   * `failed` if the browser or its push service does not subscribe.
   */
  closed?: 'waiting' | 'active' | 'not-offered' | 'failed';
}

const CHOICE = 'notifications';
/** Messages of one person within this time are one notification, in milliseconds. */
const GATHER_MS = 200;
/** How long the browser may take to subscribe before the page says that it cannot, in milliseconds. */
const SUBSCRIBE_MS = 30_000;
/** How long the server may take to remove the registration, in milliseconds. */
const REMOVE_MS = 5000;
const LONGEST_BODY = 300;

const isSupported = 'Notification' in globalThis && 'serviceWorker' in navigator && 'showNotification' in ServiceWorkerRegistration.prototype;

/** The policy of the page allows scripts only by this: that of the worker. */
const script = (globalThis as { trustedTypes?: TrustedTypes }).trustedTypes?.createPolicy('try-it-worker', { createScriptURL: () => SCRIPT }).createScriptURL('') ?? SCRIPT;

interface TrustedTypes {
  createPolicy(name: string, rules: { createScriptURL: () => string }): { createScriptURL(url: string): string };
}

export class Notifications {
  /** Whether to offer notifications: a message came while the page was not visible, and the person has not chosen yet. */
  offered = false;

  #refused = false;
  #attempt = 0;
  #settled: Promise<void> = Promise.resolve();
  readonly #arrived = new Map<string, Message>();

  constructor(
    private readonly person: string,
    private readonly client: SealwireClient & { readonly push: Push },
    private readonly records: Records,
    private readonly chats: Chats,
    private readonly changed: () => void,
  ) {}

  get choice(): Choice {
    return this.records.get<Choice>(CHOICE) ?? { on: false };
  }

  /** `blocked` by the browser: only its settings can change that. */
  get state(): 'unsupported' | 'blocked' | 'off' | 'on' {
    if (!isSupported || this.#refused) return 'unsupported';
    if (Notification.permission === 'denied') return 'blocked';
    return Notification.permission === 'granted' && this.choice.on ? 'on' : 'off';
  }

  /** Asks for the permission if necessary. Call it in the handler of a click: browsers ask only then. */
  async turnOn(): Promise<void> {
    const permission = await Notification.requestPermission();
    await this.#choose({ on: permission === 'granted' });
    void this.resume().catch(() => {});
  }

  async turnOff(): Promise<void> {
    await this.#choose({ on: false });
    await this.pause();
  }

  /** Do not offer them again. */
  decline(): Promise<void> {
    return this.#choose({ on: false });
  }

  /** After a connect, and as often as wanted: registers for pushes, if notifications are on. */
  async resume(): Promise<void> {
    if (this.state !== 'on') return;
    const attempt = ++this.#attempt;
    const isLatest = () => attempt === this.#attempt && this.state === 'on';
    // Some browsers try for ever.
    const late = setTimeout(() => isLatest() && void this.#choose({ on: true, closed: 'failed' }), SUBSCRIBE_MS);
    const closed = await this.#subscribe().finally(() => clearTimeout(late));
    if (isLatest()) await this.#settle(closed);
    // They were turned off meanwhile.
    if (this.state !== 'on') await this.pause();
  }

  /** Before the person signs out, or when this device was removed: no more pushes. The choice stays for the next sign-in. */
  async pause(): Promise<void> {
    if (!isSupported) return;
    this.#arrived.clear();
    const registration = await navigator.serviceWorker.getRegistration(scopeOf(this.person));
    // If the server is not reached, the push service tells it when it next sends: without the registration there is no subscription.
    if (this.client.state === 'connected') await this.#removeTarget(registration).catch(() => {});
    if (!registration) return;
    await this.#clear();
    await registration.unregister();
    await caches.delete(cacheOf(this.person));
  }

  /** A message has arrived. Shows it, unless the page is visible in this tab or another one. */
  show(message: Message): void {
    if (document.visibilityState === 'visible') return;
    if (this.state === 'off' && !this.records.get(CHOICE)) {
      this.offered = true;
      this.changed();
    }
    // Of several tabs of this person, one shows it.
    if (this.state !== 'on' || !this.client.leading) return;
    const isFirst = !this.#arrived.has(message.peer);
    this.#arrived.set(message.peer, message);
    if (isFirst) setTimeout(() => void this.#showLast(message.peer).catch(() => {}), GATHER_MS);
  }

  async #showLast(peer: string): Promise<void> {
    const message = this.#arrived.get(peer);
    this.#arrived.delete(peer);
    const contact = this.chats.contact(peer);
    if (contact && !contact.confirmed) await this.chats.confirm(contact);
    const registration = await this.#register();
    const unread = this.chats.unread(peer);
    if (!contact || !message || unread === 0 || (await this.#isVisible())) return;
    const { title, body } = contentOf(contact, message, unread);
    const options = { body, tag: peer, renotify: true, timestamp: message.at, data: { peer }, icon: ICON, dir: 'auto' } as NotificationOptions;
    await registration.showNotification(title, options);
    // This one says more than that of a push.
    await this.#clear('push');
  }

  /** Begins to answer the service worker and to note whether the page is visible, until `signal` is aborted. */
  listen(signal: AbortSignal, open: (peer: string | null) => void): void {
    if (!isSupported) return;
    let hiding = new AbortController();
    const look = () => {
      hiding.abort();
      if (document.visibilityState !== 'visible') return;
      void this.#clear().catch(() => {});
      hiding = new AbortController();
      const { signal: hidden } = hiding;
      const untilHidden = () => (hidden.aborted ? undefined : new Promise<void>((resolve) => hidden.addEventListener('abort', () => resolve())));
      void navigator.locks?.request(this.#visibleLock, { mode: 'shared' }, untilHidden);
    };
    document.addEventListener('visibilitychange', look, { signal });
    signal.addEventListener('abort', () => hiding.abort());
    look();
    const { serviceWorker } = navigator;
    serviceWorker.addEventListener(
      'message',
      ({ data }: MessageEvent<Post>) => {
        if (data.kind === 'push') void this.#pushed(data.content);
        if (data.kind === 'open') open(data.peer);
      },
      { signal },
    );
  }

  async #pushed(content: unknown): Promise<void> {
    if ((await this.client.push.receive(content).catch(() => null)) === 'confirmed') await this.#settle('waiting');
  }

  /** Notes the outcome of a registration, one after the other. The confirmation may overtake the reply to the registration. */
  #settle(closed: NonNullable<Choice['closed']>): Promise<void> {
    const settled = this.#settled.then(async () => {
      const { state } = await this.client.push.status();
      if (this.state === 'on') await this.#choose({ on: true, closed: closed === 'waiting' && state === 'active' ? 'active' : closed });
    });
    this.#settled = settled.catch(() => {});
    return settled;
  }

  async #subscribe(): Promise<NonNullable<Choice['closed']>> {
    try {
      const registration = await this.#register();
      const cache = await caches.open(cacheOf(this.person));
      await cache.put(addressIn(this.person), new Response(this.client.account?.email ?? ''));
      const kept = await cache.match(confirmationIn(this.person));
      if (kept) {
        await cache.delete(confirmationIn(this.person));
        await this.#pushed(await kept.json());
      }
      const state = await this.client.push.subscribe(registration);
      return state === 'none' ? 'not-offered' : 'waiting';
    } catch (error) {
      // The server was not reached, or takes no more registrations for now: the next connect tries again.
      const isTemporary = error instanceof SealwireError && error.code !== 'bad_request';
      return isTemporary ? 'waiting' : 'failed';
    }
  }

  async #removeTarget(registration: ServiceWorkerRegistration | undefined): Promise<void> {
    const signal = AbortSignal.timeout(REMOVE_MS);
    const { state } = await this.client.push.status({ signal });
    if (state !== 'none') await this.client.push.remove(registration, { signal });
  }

  /** The registration of this person, with a worker that is active. */
  async #register(): Promise<ServiceWorkerRegistration> {
    try {
      const registration = await navigator.serviceWorker.register(script, { scope: scopeOf(this.person), updateViaCache: 'none' });
      const worker = registration.active ?? registration.waiting ?? registration.installing;
      if (worker && worker.state !== 'activated') {
        await new Promise<void>((resolve, reject) => {
          worker.addEventListener('statechange', () => {
            if (worker.state === 'activated') resolve();
            if (worker.state === 'redundant') reject(new Error('the service worker was not installed'));
          });
        });
      }
      return registration;
    } catch (error) {
      // Some browsers do not allow it in private windows.
      this.#refused = true;
      this.changed();
      throw error;
    }
  }

  async #clear(tag?: string): Promise<void> {
    const registration = await navigator.serviceWorker.getRegistration(scopeOf(this.person));
    for (const notification of (await registration?.getNotifications(tag ? { tag } : {})) ?? []) notification.close();
  }

  get #visibleLock(): string {
    return `try-it:visible:${this.person}`;
  }

  /** Whether a tab of this person is visible. */
  async #isVisible(): Promise<boolean> {
    if (document.visibilityState === 'visible') return true;
    const { held = [] } = (await navigator.locks?.query()) ?? {};
    return held.some(({ name }) => name === this.#visibleLock);
  }

  async #choose(choice: Choice): Promise<void> {
    this.offered = false;
    await this.records.put({ [CHOICE]: choice });
  }
}

/** Answers the service workers, which look for the tabs of their person. `person` is the id of the one who is signed in here. */
export function answerWorkers(person: () => string | null): void {
  if (!isSupported) return;
  navigator.serviceWorker.addEventListener('message', ({ data, ports }: MessageEvent<Post>) => {
    if (data.kind !== 'who') return;
    const answer: Answer = { mine: data.person === person(), visible: document.visibilityState === 'visible' };
    ports[0]?.postMessage(answer);
  });
  navigator.serviceWorker.startMessages();
}

/** What a notification says. An address that the server has not confirmed is only a claim, so it is not shown as the sender. */
export function contentOf({ address, confirmed }: Pick<Contact, 'address' | 'confirmed'>, { text }: Pick<Message, 'text'>, unread: number): { title: string; body: string } {
  const sender = confirmed ? nameOf(address) : 'Somebody new';
  const body = text.length > LONGEST_BODY ? `${[...text].slice(0, LONGEST_BODY).join('')}…` : text;
  return { title: unread > 1 ? `${sender} (${unread})` : sender, body };
}

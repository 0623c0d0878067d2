// The page of somebody who is signed in: conversations, the open one, and what is under the hood. On a phone one of them is shown.

import { h, batched, setAttribute, show } from '../dom.js';
import type { Person } from '../model/person.js';
import { nameOf } from '../text.js';
import { announce, notify } from './announce.js';
import { Conversation } from './conversation.js';
import { Hood } from './hood.js';
import { openSettings } from './settings.js';
import { Sidebar } from './sidebar.js';

const HOOD = 'try-it/hood';

export class Shell {
  readonly #person: Person;
  readonly #main: HTMLElement;
  readonly #sidebar: Sidebar;
  readonly #conversation: Conversation;
  readonly #hood: Hood;
  readonly #closing = new AbortController();
  #open: string | null = null;
  #hoodOpen = sessionStorage.getItem(HOOD) === 'open';

  constructor(page: HTMLElement, person: Person, leave: (reason?: string) => void) {
    this.#person = person;
    const openConversation = (userId: string | null, messageId?: string) => this.open(userId, messageId);
    const toggleHood = () => this.#toggleHood();
    const settings = () => openSettings(person);
    this.#sidebar = new Sidebar(person, { open: openConversation, settings, toggleHood });
    this.#conversation = new Conversation(person, { open: openConversation, toggleHood });
    this.#hood = new Hood(person, { close: toggleHood });
    this.#main = h('main', { class: 'app' }, h('h1', { class: 'spoken' }, 'Sealwire'), this.#sidebar.element, this.#conversation.element, this.#hood.element);
    page.replaceChildren(this.#main);

    const render = batched(() => this.#render(leave));
    person.onchange = render;
    person.onsignin = (device) => notify(`${device?.name ?? 'Another device'} signed in to your account.`, { label: 'Devices', run: settings });
    person.chats.onmessage = (message) => {
      const contact = person.chats.contact(message.peer);
      if (message.state !== 'received' || !contact) return;
      announce(`${nameOf(contact.address)}: ${message.text}`);
      person.notifications.show(message);
    };
    const { signal } = this.#closing;
    person.notifications.listen(signal, (peer) => {
      if (!peer) return;
      document.querySelectorAll<HTMLDialogElement>('dialog[open]').forEach((dialog) => dialog.close());
      openConversation(peer);
    });
    document.addEventListener('visibilitychange', render, { signal });
    window.addEventListener('focus', render, { signal });
    window.addEventListener('popstate', ({ state }) => this.#show((state as { peer?: string } | null)?.peer ?? null), { signal });
    document.addEventListener('keydown', (event) => this.#key(event), { signal });
    this.#show((history.state as { peer?: string } | null)?.peer ?? null);
    this.#applyHood();
    this.#render(leave);
  }

  close(): void {
    this.#closing.abort();
    this.#conversation.close();
    this.#person.onchange = () => {};
  }

  /** Opens a conversation, perhaps at a message; or the list. */
  open(userId: string | null, messageId?: string): void {
    if (userId !== this.#open) {
      const state = { peer: userId ?? undefined };
      // The back button of a phone leads to the list, and from there out of the page.
      if (this.#open === null) history.pushState(state, '');
      else history.replaceState(state, '');
    }
    this.#show(userId, messageId);
  }

  #show(userId: string | null, messageId?: string): void {
    this.#open = userId !== null && this.#person.chats.contact(userId) ? userId : null;
    setAttribute(this.#main, 'data-pane', this.#open ? 'chat' : 'list');
    this.#conversation.show(this.#open, messageId);
    this.#sidebar.current = this.#open;
    this.#person.onchange();
  }

  #toggleHood(): void {
    this.#hoodOpen = !this.#hoodOpen;
    sessionStorage.setItem(HOOD, this.#hoodOpen ? 'open' : 'closed');
    this.#applyHood();
    if (this.#hoodOpen) this.#hood.opened();
    else [...this.#main.querySelectorAll<HTMLElement>('.hood-toggle')].find((button) => button.offsetParent !== null)?.focus();
  }

  #applyHood(): void {
    setAttribute(this.#main, 'data-hood', this.#hoodOpen ? 'open' : 'closed');
    show(this.#hood.element, this.#hoodOpen);
    for (const button of this.#main.querySelectorAll('.hood-toggle')) setAttribute(button, 'aria-expanded', String(this.#hoodOpen));
    this.#hood.visible = this.#hoodOpen;
  }

  #key(event: KeyboardEvent): void {
    if (document.querySelector('dialog[open]')) return;
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'k') {
      event.preventDefault();
      this.open(innerWidth < 760 ? null : this.#open);
      this.#sidebar.focusSearch();
    } else if (event.key === 'Escape' && this.#hoodOpen && this.#hood.element.contains(document.activeElement)) {
      this.#toggleHood();
    }
  }

  #render(leave: (reason?: string) => void): void {
    if (this.#closing.signal.aborted) return;
    const { status, account, chats } = this.#person;
    if (status.state === 'signed-out' || !account) return leave(reasonOf(status.reason));
    if (this.#open && !chats.contact(this.#open)) return this.#show(null);
    const unread = chats.unreadTotal();
    const title = `${unread > 0 ? `(${unread}) ` : ''}${nameOf(account.email)} · Sealwire`;
    if (document.title !== title) document.title = title;
    this.#sidebar.render();
    this.#conversation.render();
    if (this.#hoodOpen) this.#hood.render();
  }
}

function reasonOf(reason: string | null): string | undefined {
  switch (reason) {
    case 'device_revoked':
      return 'This device was removed from the account, and its messages were deleted.';
    case 'account_deleted':
      return 'The account was deleted.';
    case 'expired':
      return 'Your session has expired. Your messages are still here.';
    case 'logged_out':
      return 'You are signed out. Your messages stay in this browser until you come back.';
    case 'unknown':
    case 'superseded':
      return 'The server does not know this session any more. Sign in again.';
    default:
      return undefined;
  }
}

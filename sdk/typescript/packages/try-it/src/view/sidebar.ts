// The list of conversations, the search, and who is signed in.

import { h, keyed, setAttribute, setText, show } from '../dom.js';
import { icon, mark } from '../icons.js';
import type { Contact, Message } from '../model/chats.js';
import type { Person } from '../model/person.js';
import { briefTime, nameOf, plural } from '../text.js';
import { openAddContact } from './add-contact.js';
import { announce } from './announce.js';
import { notificationsOffer } from './notifications.js';
import { avatar } from './parts.js';
import { tick } from './tick.js';

interface Actions {
  open: (userId: string | null, messageId?: string) => void;
  settings: () => void;
  toggleHood: () => void;
}

/** A lost connection is reported after this time, in milliseconds: most come back before. */
const CALM_MS = 2000;

export class Sidebar {
  readonly element: HTMLElement;
  /** The open conversation. */
  current: string | null = null;

  readonly #search = h('input', { type: 'search', placeholder: 'Search', 'aria-label': 'Search messages and people', autocomplete: 'off', oninput: () => this.render() });
  readonly #list = h('ul', { class: 'conversations' });
  readonly #results = h('ul', { class: 'results', hidden: true });
  readonly #found = h('p', { class: 'found', role: 'status', hidden: true });
  readonly #empty: HTMLElement;
  readonly #emptyText = h('p', {});
  readonly #name = h('strong', {});
  readonly #status = h('small', { class: 'state' });
  readonly #request: HTMLElement;
  readonly #offer: HTMLElement;
  #me: HTMLElement | null = null;
  #downSince = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly person: Person,
    private readonly actions: Actions,
  ) {
    const add = () => openAddContact(person, (userId) => actions.open(userId));
    this.#request = h('button', { type: 'button', class: 'banner', hidden: true, onclick: actions.settings }, icon('device'), h('span', {}, 'A new device wants to sign in to your account.'));
    this.#offer = notificationsOffer(person.notifications);
    this.#empty = h(
      'div',
      { class: 'empty' },
      h('p', { class: 'empty-title' }, 'Nobody here yet'),
      this.#emptyText,
      h(
        'div',
        { class: 'empty-actions' },
        h('a', { class: 'button primary', href: '/#new', target: '_blank', rel: 'noopener' }, icon('window'), 'Open a second tab'),
        h('button', { type: 'button', class: 'plain', onclick: add }, icon('plus'), 'Add a person'),
      ),
    );
    this.element = h(
      'section',
      { class: 'side', 'aria-label': 'Conversations' },
      h(
        'div',
        { class: 'side-head' },
        mark(26),
        h('span', { class: 'brand' }, 'Sealwire'),
        h('button', { type: 'button', class: 'round hood-toggle only-phone', 'aria-label': 'Under the hood', 'aria-expanded': 'false', onclick: actions.toggleHood }, icon('hood')),
        h('button', { type: 'button', class: 'round', 'aria-label': 'Add a person', onclick: add }, icon('plus')),
      ),
      h('div', { class: 'search' }, icon('search', 18), this.#search),
      this.#request,
      h('div', { class: 'side-scroll' }, this.#list, this.#found, this.#results, this.#empty),
      this.#offer,
      h(
        'button',
        { type: 'button', class: 'me', 'aria-haspopup': 'dialog', onclick: actions.settings },
        (this.#me = h('span', {})),
        h('span', { class: 'me-text' }, this.#name, this.#status),
        icon('more'),
        h('span', { class: 'spoken' }, 'Your account and devices'),
      ),
    );
  }

  focusSearch(): void {
    this.#search.focus();
    this.#search.select();
  }

  render(): void {
    const { account, chats } = this.person;
    if (!account) return;
    if (this.#me && this.#me.dataset.address !== account.email) {
      const face = avatar(account.email);
      face.dataset.address = account.email;
      this.#me.replaceWith(face);
      this.#me = face;
    }
    setText(this.#name, account.email);
    const status = this.#statusText();
    if (this.#status.textContent !== status && this.#status.textContent) announce(status);
    setText(this.#status, status);
    setAttribute(this.#status, 'data-state', this.person.connected ? 'good' : 'waiting');
    show(this.#request, this.person.requests.length > 0);
    show(this.#offer, this.person.notifications.offered);

    const query = this.#search.value.trim();
    const contacts = chats.contacts();
    const wanted = query.toLocaleLowerCase();
    const shown = query ? contacts.filter(({ address }) => address.toLocaleLowerCase().includes(wanted)) : contacts;
    keyed(this.#list, shown, ({ userId }) => userId, (contact) => this.#makeRow(contact), (row, contact) => this.#updateRow(row, contact));
    show(this.#list, shown.length > 0);
    show(this.#empty, contacts.length === 0);
    setText(
      this.#emptyText,
      this.person.devices.length > 1
        ? 'This is a new device. Messages from now on appear here. Earlier ones stay on your other devices.'
        : 'Open a second tab, sign in there as somebody else, then add that address here.',
    );

    const messages = query ? chats.search(query) : [];
    keyed(this.#results, messages, ({ id }) => `${id} ${query}`, (message) => this.#makeResult(message, query));
    show(this.#results, messages.length > 0);
    show(this.#found, query !== '');
    if (query) setText(this.#found, messages.length + shown.length === 0 ? `Nothing found for “${query}”` : plural(messages.length, 'message'));
  }

  #statusText(): string {
    const { status, wire, client } = this.person;
    if (status.state === 'connected') {
      this.#downSince = 0;
      return client.leading ? 'Connected' : 'Connected by another tab';
    }
    if (status.state === 'ended' && status.reason === 'displaced') return 'In use elsewhere';
    if (status.state === 'ended' && status.reason === 'identity_conflict') return 'The data of this device is out of date';
    if (wire.down) return 'Connection cut';
    this.#downSince ||= Date.now();
    const left = CALM_MS - (Date.now() - this.#downSince);
    if (left > 0) {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.render(), left + 10);
      return this.person.wasConnected ? 'Connected' : 'Connecting…';
    }
    return 'Waiting for the network';
  }

  #makeRow({ userId, address }: Contact): HTMLElement {
    return h(
      'li',
      {},
      h(
        'button',
        { type: 'button', class: 'row', onclick: () => this.actions.open(userId) },
        avatar(address),
        h('span', { class: 'row-name', dir: 'auto' }),
        h('span', { class: 'row-time' }),
        h('span', { class: 'row-last' }),
        h('span', { class: 'row-count' }),
      ),
    );
  }

  #updateRow(row: HTMLElement, contact: Contact): void {
    const { chats } = this.person;
    const part = (name: string) => row.querySelector<HTMLElement>(`.row-${name}`)!;
    const last = chats.last(contact.userId);
    const draft = chats.draft(contact.userId);
    const unread = chats.unread(contact.userId);
    setAttribute(row.firstElementChild!, 'aria-current', contact.userId === this.current ? 'true' : null);
    setText(part('name'), nameOf(contact.address));
    setAttribute(part('name'), 'title', contact.address);
    setText(part('time'), last ? briefTime(last.at) : '');
    const typing = chats.isTyping(contact.userId);
    const state = typing ? 'typing' : draft && contact.userId !== this.current ? `draft ${draft}` : last ? `${last.id} ${last.state}` : 'new';
    const line = part('last');
    if (line.dataset.state !== state) {
      line.dataset.state = state;
      if (typing) line.replaceChildren(h('em', { class: 'is-typing' }, 'typing…'));
      else if (state.startsWith('draft')) line.replaceChildren(h('em', { class: 'is-draft' }, 'Draft: '), h('span', { dir: 'auto' }, draft));
      else if (last) line.replaceChildren(...(last.mine ? [tick(last.state), ' '] : []), h('span', { dir: 'auto' }, last.text.slice(0, 200)));
      else line.replaceChildren(contact.address);
    }
    const count = part('count');
    setText(count, unread > 0 ? String(Math.min(unread, 999)) : '');
    setAttribute(count, 'aria-label', unread > 0 ? plural(unread, 'unread message') : null);
    setAttribute(count, 'role', unread > 0 ? 'img' : null);
    row.firstElementChild!.classList.toggle('unread', unread > 0);
  }

  #makeResult({ id, peer, text, at, mine }: Message, query: string): HTMLElement {
    const contact = this.person.chats.contact(peer);
    const begin = text.toLocaleLowerCase().indexOf(query.toLocaleLowerCase());
    const from = Math.max(0, begin - 30);
    return h(
      'li',
      {},
      h(
        'button',
        { type: 'button', class: 'row result', onclick: () => this.actions.open(peer, id) },
        h('span', { class: 'row-name' }, `${mine ? 'You to ' : ''}${nameOf(contact?.address ?? '')}`),
        h('span', { class: 'row-time' }, briefTime(at)),
        h(
          'span',
          { class: 'row-last', dir: 'auto' },
          `${from > 0 ? '…' : ''}${text.slice(from, begin)}`,
          h('mark', {}, text.slice(begin, begin + query.length)),
          text.slice(begin + query.length, begin + query.length + 80),
        ),
      ),
    );
  }
}

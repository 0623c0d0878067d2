// The open conversation: its messages and the field to write.

import { h, keyed, setAttribute, setText, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Contact, Message } from '../model/chats.js';
import type { Person } from '../model/person.js';
import { dayOf, fullTime, nameOf, onlyEmoji, sameDay, timeOf } from '../text.js';
import { announce } from './announce.js';
import { openContact } from './contact.js';
import { avatar } from './parts.js';
import { tick } from './tick.js';
import { linked } from './links.js';

interface Actions {
  open: (userId: string | null) => void;
  toggleHood: () => void;
}

/** Messages that are shown at first, and added by "Earlier messages". */
const PAGE = 80;
/** Messages of one person within this time belong together. */
const GROUP_MS = 4 * 60_000;
/** A draft is stored after a pause of this length. */
const DRAFT_MS = 400;

/** The draft of a page that was reloaded. */
const UNSTORED = 'try-it/draft';

/** What stands in the list of messages. */
type Item = { key: string; day: number } | { key: string; unread: number } | { key: string; message: Message; first: boolean };

export class Conversation {
  readonly element: HTMLElement;

  readonly #welcome: HTMLElement;
  readonly #head: HTMLElement;
  readonly #face = h('span', {});
  readonly #name = h('h2', { dir: 'auto' });
  readonly #about = h('p', { class: 'about' });
  readonly #banner = h('div', { class: 'banners' });
  readonly #log: HTMLElement;
  readonly #items = h('ol', { class: 'messages' });
  readonly #earlier = h('button', { type: 'button', class: 'plain earlier', hidden: true, onclick: () => this.#showEarlier() }, 'Earlier messages');
  readonly #newest = h('button', { type: 'button', class: 'newest', hidden: true, onclick: () => this.#toEnd(true) }, icon('down', 18), h('span', {}, 'Newest messages'));
  readonly #opening: HTMLElement;
  readonly #composer: HTMLFormElement;
  readonly #text = h('textarea', { rows: 1, dir: 'auto', maxlength: 8000, placeholder: 'Write a message', 'aria-describedby': 'composer-hint', oninput: () => this.#written(), onkeydown: (event: KeyboardEvent) => this.#key(event) });
  readonly #hint = h('p', { class: 'composer-hint', id: 'composer-hint' });
  #peer: string | null = null;
  #count = PAGE;
  /** Where the line "New" stands: what was read when the conversation was opened. */
  #readUpTo = 0;
  #draftTimer: ReturnType<typeof setTimeout> | undefined;
  #pinned = true;

  constructor(
    private readonly person: Person,
    private readonly actions: Actions,
  ) {
    const hood = (className: string) =>
      h('button', { type: 'button', class: `hood-button hood-toggle ${className}`, 'aria-expanded': 'false', 'aria-label': 'Under the hood', onclick: actions.toggleHood }, icon('hood', 18), h('span', { class: 'wide-only', 'aria-hidden': 'true' }, 'Under the hood'));
    const details = () => this.#peer && openContact(person, this.#peer, () => actions.open(null));
    this.#head = h(
      'header',
      { class: 'talk-head' },
      h('button', { type: 'button', class: 'round only-phone', 'aria-label': 'All conversations', onclick: () => this.#back() }, icon('back')),
      h('button', { type: 'button', class: 'who', 'aria-haspopup': 'dialog', onclick: details }, this.#face, h('span', { class: 'who-text' }, this.#name, this.#about), h('span', { class: 'spoken' }, 'Details and safety number')),
      hood(''),
    );
    this.#opening = h('div', { class: 'opening' });
    this.#log = h('div', { class: 'log', role: 'log', 'aria-label': 'Messages', 'aria-live': 'off', tabindex: 0, onscroll: () => this.#scrolled() }, this.#earlier, this.#opening, this.#items);
    const label = h('label', { class: 'spoken', for: 'composer-text' }, 'Message');
    this.#text.id = 'composer-text';
    this.#composer = h(
      'form',
      {
        class: 'composer',
        novalidate: true,
        onsubmit: (event: SubmitEvent) => {
          event.preventDefault();
          this.#send();
        },
      },
      label,
      this.#text,
      h('button', { type: 'submit', class: 'send', 'aria-label': 'Send' }, icon('send')),
    );
    this.#welcome = h(
      'div',
      { class: 'nothing' },
      h('div', { class: 'nothing-head' }, hood('')),
      h(
        'div',
        { class: 'nothing-body' },
        h('h2', {}, 'Write to somebody'),
        h(
          'ol',
          { class: 'steps' },
          h('li', {}, h('strong', {}, 'Open a second tab'), h('span', {}, ' and sign in as another person. Two tabs are two people.')),
          h('li', {}, h('strong', {}, 'Add that address'), h('span', {}, ' with + and write something.')),
          h('li', {}, h('strong', {}, 'Compare the safety number'), h('span', {}, ': the same sixty digits on both sides.')),
          h('li', {}, h('strong', {}, 'Look under the hood'), h('span', {}, ': cut the connection, lose a reply, and watch nothing get lost.')),
        ),
      ),
    );
    this.element = h('section', { class: 'talk', 'aria-label': 'Conversation' }, this.#welcome, this.#head, this.#banner, h('div', { class: 'log-frame' }, this.#log, this.#newest), h('div', { class: 'foot' }, this.#composer, this.#hint));
    // A page that goes away has no time to wait for the database.
    window.addEventListener('pagehide', () => {
      this.#storeDraft();
      if (this.#peer) sessionStorage.setItem(UNSTORED, JSON.stringify({ peer: this.#peer, text: this.#text.value }));
    });
    new ResizeObserver(() => this.#pinned && this.#toEnd()).observe(this.#log);
  }

  /** Opens a conversation, perhaps at a message. */
  show(peer: string | null, messageId?: string): void {
    if (peer !== this.#peer) {
      this.#storeDraft();
      this.#peer = peer;
      this.#count = PAGE;
      this.#readUpTo = peer ? (this.person.chats.contact(peer)?.seenAt ?? 0) : 0;
      this.#items.replaceChildren();
      this.#text.value = peer ? (unstored(peer) ?? this.person.chats.draft(peer)) : '';
      this.#grow();
      this.#pinned = true;
      if (peer && this.person.connected) void this.person.trust.look(peer).catch(() => {});
    }
    if (peer && messageId) {
      const messages = this.person.chats.messages(peer);
      this.#count = Math.max(this.#count, messages.length - messages.findIndex(({ id }) => id === messageId) + 10);
      this.#pinned = false;
    }
    this.render();
    if (messageId) this.#find(messageId);
    else if (peer && matchMedia('(pointer: fine)').matches) this.#text.focus();
  }

  render(): void {
    const peer = this.#peer;
    const contact = peer ? this.person.chats.contact(peer) : undefined;
    show(this.#welcome, !contact);
    for (const part of [this.#head, this.#banner, this.#log.parentElement!, this.#composer.parentElement!]) show(part, contact !== undefined);
    if (!peer || !contact) return setAttribute(this.element, 'aria-label', 'Conversation');
    const { chats } = this.person;
    const name = nameOf(contact.address);
    setAttribute(this.element, 'aria-label', `Conversation with ${name}`);
    if (this.#face.dataset.address !== contact.address) {
      this.#face.replaceChildren(avatar(contact.address));
      this.#face.dataset.address = contact.address;
    }
    setText(this.#name, name);
    this.#name.classList.toggle('verified', contact.verified !== undefined && !contact.changed);
    setText(this.#about, chats.isTyping(peer) ? 'typing…' : contact.address);
    this.#about.classList.toggle('is-typing', chats.isTyping(peer));
    this.#renderBanner(contact, name);
    this.#renderMessages(peer, name);
    this.#renderFoot(peer, name);
    if (document.visibilityState === 'visible' && document.hasFocus() && !chats.blocked.has(peer)) void chats.read(peer);
  }

  #renderBanner(contact: Contact, name: string): void {
    const { chats, client } = this.person;
    const { peer, status } = { peer: contact.userId, status: this.person.status };
    const state = status.reason === 'displaced' ? 'displaced' : chats.blocked.has(peer) ? 'blocked' : contact.changed ? 'changed' : contact.confirmed ? '' : 'unconfirmed';
    if (this.#banner.dataset.state === `${peer} ${state}`) return;
    this.#banner.dataset.state = `${peer} ${state}`;
    const details = () => openContact(this.person, peer, () => this.actions.open(null));
    const banner = (kind: string, text: string, action: string, run: () => void) =>
      h('div', { class: `banner ${kind}` }, icon(kind === 'warning' ? 'alert' : kind === 'blocked' ? 'block' : 'shield'), h('span', {}, text), h('button', { type: 'button', class: 'quiet', onclick: run }, action));
    this.#banner.replaceChildren(
      ...(state === 'displaced' ? [banner('info', 'This device is connected elsewhere.', 'Use it here', () => void client.connect().catch(() => {}))] : []),
      ...(state === 'blocked' ? [banner('blocked', `You have blocked ${name}. Nothing arrives, and ${name} cannot tell.`, 'Unblock', () => void this.person.block(peer, false))] : []),
      ...(state === 'changed' ? [banner('warning', `The safety number with ${name} has changed since you compared it.`, 'Compare again', details)] : []),
      ...(state === 'unconfirmed' ? [banner('info', `This person claims to be ${contact.address}. The server does not confirm it.`, 'Details', details)] : []),
    );
  }

  #renderMessages(peer: string, name: string): void {
    const all = this.person.chats.messages(peer);
    const messages = all.slice(-this.#count);
    show(this.#earlier, all.length > messages.length);
    show(this.#opening, all.length === 0);
    if (all.length === 0 && this.#opening.dataset.name !== name) {
      this.#opening.dataset.name = name;
      this.#opening.replaceChildren(
        icon('lock', 22),
        h('p', {}, `Only you and ${name} can read what you write here.`),
        h('p', { class: 'hint' }, 'The first message opens an encrypted session with each of their devices.'),
      );
    }
    const items: Item[] = [];
    let unreadShown = false;
    for (const [i, message] of messages.entries()) {
      const before = messages[i - 1];
      const newDay = !before || !sameDay(before.at, message.at);
      if (newDay) items.push({ key: `day ${new Date(message.at).toDateString()}`, day: message.at });
      const isNew = message.state === 'received' && message.at > this.#readUpTo;
      if (isNew && !unreadShown && this.#readUpTo > 0 && before) {
        items.push({ key: `unread ${this.#readUpTo}`, unread: this.#readUpTo });
        unreadShown = true;
      }
      const first = newDay || before.state === 'note' || before.mine !== message.mine || message.at - before.at > GROUP_MS;
      items.push({ key: message.id, message, first });
    }
    const atEnd = this.#pinned;
    keyed(this.#items, items, ({ key }) => key, (item) => this.#make(item), (element, item) => this.#update(element, item));
    if (atEnd) this.#toEnd();
    else show(this.#newest, !this.#isAtEnd());
  }

  #make(item: Item): HTMLElement {
    if ('day' in item) return h('li', { class: 'day' }, h('span', {}, dayOf(item.day)));
    if ('unread' in item) return h('li', { class: 'new' }, h('span', {}, 'New'));
    const { message } = item;
    if (message.state === 'note') return h('li', { class: 'note' }, icon('shield', 16), h('span', {}, message.text));
    const meta = h('span', { class: 'meta' }, h('time', { datetime: new Date(message.at).toISOString(), title: fullTime(message.at) }, timeOf(message.at)), message.mine && h('span', { class: 'tick-place' }));
    const bubble = h('div', { class: `bubble${onlyEmoji(message.text) ? ' emoji' : ''}` }, h('span', { class: 'spoken' }, message.mine ? 'You: ' : `${nameOf(this.person.chats.contact(message.peer)?.address ?? '')}: `), h('span', { class: 'words', dir: 'auto' }, ...linked(message.text)), meta);
    return h('li', { class: `message ${message.mine ? 'mine' : 'theirs'}`, id: `message-${message.id}` }, bubble, h('div', { class: 'problem' }));
  }

  #update(element: HTMLElement, item: Item): void {
    if (!('message' in item) || item.message.state === 'note') return;
    const { message, first } = item;
    element.classList.toggle('first', first);
    if (element.dataset.state === message.state) return;
    element.dataset.state = message.state;
    if (!message.mine) return;
    element.querySelector('.tick-place')!.replaceChildren(tick(message.state));
    const problem = element.querySelector('.problem')!;
    if (message.state !== 'failed') return problem.replaceChildren();
    announce(`Not sent. ${message.problem}`);
    problem.replaceChildren(
      h('span', {}, message.problem ?? ''),
      h('button', { type: 'button', class: 'quiet', onclick: () => void this.person.chats.retry(message.id) }, icon('retry', 16), 'Try again'),
      h('button', { type: 'button', class: 'quiet', onclick: () => void this.person.chats.discard(message.id) }, icon('trash', 16), 'Delete'),
    );
  }

  #renderFoot(peer: string, name: string): void {
    const { chats, wire, status } = this.person;
    const blocked = chats.blocked.has(peer);
    show(this.#composer, !blocked);
    const waiting = chats.messages(peer).filter(({ state }) => state === 'queued').length;
    const offline = wire.down || (status.state !== 'connected' && waiting > 0);
    setText(
      this.#hint,
      blocked
        ? ''
        : offline
          ? waiting > 0
            ? `No connection. ${waiting === 1 ? 'A message goes' : `${waiting} messages go`} out when it is back.`
            : 'No connection. Write on: it goes out when it is back.'
          : matchMedia('(pointer: fine)').matches
            ? 'Enter sends, Shift + Enter starts a new line'
            : `Encrypted for ${name} on this device`,
    );
    this.#hint.classList.toggle('calm', offline);
  }

  #written(): void {
    this.#grow();
    clearTimeout(this.#draftTimer);
    this.#draftTimer = setTimeout(() => this.#storeDraft(), DRAFT_MS);
    if (this.#peer) this.person.chats.typing(this.#peer, this.#text.value.trim() !== '');
  }

  #storeDraft(): void {
    clearTimeout(this.#draftTimer);
    if (this.#peer && this.person.chats.contact(this.#peer)) void this.person.chats.setDraft(this.#peer, this.#text.value.trim() ? this.#text.value : '').catch(() => {});
  }

  #key(event: KeyboardEvent): void {
    // While a word is being composed, Enter accepts it.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || !matchMedia('(pointer: fine)').matches) return;
    event.preventDefault();
    this.#send();
  }

  #send(): void {
    const text = this.#text.value.trim();
    if (!text || !this.#peer) return;
    clearTimeout(this.#draftTimer);
    this.#text.value = '';
    this.#grow();
    this.#pinned = true;
    // What was new is answered.
    this.#readUpTo = Number.MAX_SAFE_INTEGER;
    void this.person.chats.send(this.#peer, text);
    this.#text.focus();
  }

  /** Makes the field as high as its text, up to six lines. */
  #grow(): void {
    this.#text.style.height = 'auto';
    this.#text.style.height = `${Math.min(this.#text.scrollHeight, 156)}px`;
  }

  #back(): void {
    if ((history.state as { peer?: string } | null)?.peer) history.back();
    else this.actions.open(null);
  }

  #isAtEnd(): boolean {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    return scrollHeight - scrollTop - clientHeight < 60;
  }

  #scrolled(): void {
    this.#pinned = this.#isAtEnd();
    show(this.#newest, !this.#pinned);
  }

  #toEnd(smooth = false): void {
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.#log.scrollTo({ top: this.#log.scrollHeight, behavior: smooth && !calm ? 'smooth' : 'instant' });
    this.#pinned = true;
    show(this.#newest, false);
  }

  #showEarlier(): void {
    const before = this.#log.scrollHeight - this.#log.scrollTop;
    this.#count += PAGE;
    this.#pinned = false;
    this.render();
    this.#log.scrollTop = this.#log.scrollHeight - before;
    this.#log.focus();
  }

  /** Scrolls to a message, and marks it for a moment. */
  #find(messageId: string): void {
    const element = document.getElementById(`message-${messageId}`);
    if (!element) return;
    element.scrollIntoView({ block: 'center' });
    element.tabIndex = -1;
    element.focus({ preventScroll: true });
    element.classList.add('found-here');
    setTimeout(() => element.classList.remove('found-here'), 2000);
  }
}

/** The draft for `peer` of the page before this one, if it was reloaded. */
function unstored(peer: string): string | null {
  const { peer: of, text } = JSON.parse(sessionStorage.getItem(UNSTORED) ?? '{}') as { peer?: string; text?: string };
  sessionStorage.removeItem(UNSTORED);
  return of === peer ? (text ?? null) : null;
}

// The messages of a conversation, with days, what is new, and how far each got.

import { h, keyed, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Message } from '../model/chats.js';
import type { Person } from '../model/person.js';
import { dayOf, fullTime, nameOf, onlyEmoji, sameDay, timeOf } from '../text.js';
import { announce } from './announce.js';
import { linked } from './links.js';
import { tick } from './tick.js';

/** Messages that are shown at first, and added by "Earlier messages". */
const PAGE = 80;
/** Messages of one person within this time belong together, in milliseconds. */
const GROUP_MS = 4 * 60_000;
/** As near to the end as this, in pixels, the list stays there when a message is added. */
const NEAR_END = 60;
/** A message that was searched for is marked for this time, in milliseconds. */
const MARKED_MS = 2000;

type Item = { key: string; day: number } | { key: string; unread: true } | { key: string; message: Message; first: boolean };

export class Messages {
  readonly element: HTMLElement;

  readonly #log: HTMLElement;
  readonly #list = h('ol', { class: 'messages' });
  readonly #opening = h('div', { class: 'opening' });
  readonly #earlier = h('button', { type: 'button', class: 'plain earlier', hidden: true, onclick: () => this.#showEarlier() }, 'Earlier messages');
  readonly #newest = h('button', { type: 'button', class: 'newest', hidden: true, onclick: () => this.toEnd(true) }, icon('down', 18), h('span', {}, 'Newest messages'));
  readonly #resized = new ResizeObserver(() => this.#atEnd && this.toEnd());
  #peer: string | null = null;
  #count = PAGE;
  /** What was read when the conversation was opened: the line "New" stands behind it. */
  #readUpTo = 0;
  /** Whether the list stays at its end. */
  #atEnd = true;
  /** Whether the list was shown: messages that are added now have just arrived. */
  #shown = false;

  constructor(private readonly person: Person) {
    this.#log = h('div', { class: 'log', role: 'log', 'aria-label': 'Messages', 'aria-live': 'off', tabindex: 0, onscroll: () => this.#scrolled() }, this.#earlier, this.#opening, this.#list);
    this.element = h('div', { class: 'log-frame' }, this.#log, this.#newest);
    this.#resized.observe(this.#log);
  }

  close(): void {
    this.#resized.disconnect();
  }

  /** Changes to another conversation. */
  show(peer: string | null): void {
    this.#peer = peer;
    this.#count = PAGE;
    this.#readUpTo = peer ? (this.person.chats.contact(peer)?.seenAt ?? 0) : 0;
    this.#atEnd = true;
    this.#shown = false;
    this.#list.replaceChildren();
  }

  render(): void {
    if (!this.#peer) return;
    const all = this.person.chats.messages(this.#peer);
    const messages = all.slice(-this.#count);
    show(this.#earlier, all.length > messages.length);
    show(this.#opening, all.length === 0);
    if (all.length === 0) this.#renderOpening(this.#nameOf(this.#peer));
    keyed(this.#list, this.#items(messages), ({ key }) => key, (item) => this.#make(item), (element, item) => this.#update(element, item));
    this.#shown = true;
    if (this.#atEnd) this.toEnd();
    else show(this.#newest, !this.#isAtEnd());
  }

  /** Scrolls to the end, and stays there. */
  toEnd(smooth = false): void {
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.#log.scrollTo({ top: this.#log.scrollHeight, behavior: smooth && !calm ? 'smooth' : 'instant' });
    this.#atEnd = true;
    show(this.#newest, false);
  }

  /** The person has answered: nothing is new any more. */
  answered(): void {
    this.#readUpTo = Number.MAX_SAFE_INTEGER;
    this.#atEnd = true;
  }

  /** Scrolls to the first new message, if not all fit. */
  toNew(): void {
    const line = this.#list.querySelector<HTMLElement>('.new');
    if (!line || line.getBoundingClientRect().top > this.#log.getBoundingClientRect().top) return;
    line.scrollIntoView({ block: 'start' });
    this.#atEnd = false;
  }

  /** Scrolls to a message, and marks it for a moment. */
  find(messageId: string): void {
    const messages = this.person.chats.messages(this.#peer!);
    this.#count = Math.max(this.#count, messages.length - messages.findIndex(({ id }) => id === messageId) + 10);
    this.#atEnd = false;
    this.render();
    const element = document.getElementById(`message-${messageId}`);
    if (!element) return;
    element.scrollIntoView({ block: 'center' });
    element.tabIndex = -1;
    element.focus({ preventScroll: true });
    element.classList.add('found-here');
    setTimeout(() => element.classList.remove('found-here'), MARKED_MS);
  }

  #nameOf(peer: string): string {
    return nameOf(this.person.chats.contact(peer)?.address ?? '');
  }

  #renderOpening(name: string): void {
    if (this.#opening.dataset.name === name) return;
    this.#opening.dataset.name = name;
    this.#opening.replaceChildren(
      icon('lock', 22),
      h('p', {}, `Only you and ${name} can read what you write here.`),
      h('p', { class: 'hint' }, 'The first message opens an encrypted session with each of their devices.'),
    );
  }

  /** The messages, with a line before each day and before what is new. */
  #items(messages: Message[]): Item[] {
    const items: Item[] = [];
    let newShown = this.#readUpTo === 0;
    for (const [i, message] of messages.entries()) {
      const before = messages[i - 1];
      const newDay = !before || !sameDay(before.at, message.at);
      if (newDay) items.push({ key: `day ${new Date(message.at).toDateString()}`, day: message.at });
      if (!newShown && before && message.state === 'received' && message.at > this.#readUpTo) {
        items.push({ key: 'new', unread: true });
        newShown = true;
      }
      const first = newDay || before.state === 'note' || before.mine !== message.mine || message.at - before.at > GROUP_MS;
      items.push({ key: message.id, message, first });
    }
    return items;
  }

  #make(item: Item): HTMLElement {
    if ('day' in item) return h('li', { class: 'day' }, h('span', {}, dayOf(item.day)));
    if ('unread' in item) return h('li', { class: 'new' }, h('span', {}, 'New'));
    const { id, mine, peer, text, at, state } = item.message;
    if (state === 'note') return h('li', { class: 'note' }, icon('shield', 16), h('span', {}, text));
    return h(
      'li',
      { class: `message ${mine ? 'mine' : 'theirs'}${this.#shown ? ' arriving' : ''}`, id: `message-${id}` },
      h(
        'div',
        { class: `bubble${onlyEmoji(text) ? ' emoji' : ''}` },
        h('span', { class: 'spoken' }, mine ? 'You: ' : `${this.#nameOf(peer)}: `),
        h('span', { class: 'words', dir: 'auto' }, ...linked(text)),
        h('span', { class: 'meta' }, h('time', { datetime: new Date(at).toISOString(), title: fullTime(at) }, timeOf(at)), mine && h('span', { class: 'tick-place' })),
      ),
      h('div', { class: 'problem' }),
    );
  }

  #update(element: HTMLElement, item: Item): void {
    if (!('message' in item) || item.message.state === 'note') return;
    const { message, first } = item;
    element.classList.toggle('first', first);
    const before = element.dataset.state;
    if (before === message.state) return;
    element.dataset.state = message.state;
    if (!message.mine) return;
    element.querySelector('.tick-place')!.replaceChildren(tick(message.state));
    const problem = element.querySelector('.problem')!;
    if (message.state !== 'failed') return problem.replaceChildren();
    if (before) announce(`Not sent. ${message.problem}`);
    problem.replaceChildren(
      h('span', {}, message.problem ?? ''),
      h('button', { type: 'button', class: 'quiet', onclick: () => void this.person.chats.retry(message.id) }, icon('retry', 16), 'Try again'),
      h('button', { type: 'button', class: 'quiet', onclick: () => void this.person.chats.discard(message.id) }, icon('trash', 16), 'Delete'),
    );
  }

  #isAtEnd(): boolean {
    const { scrollTop, scrollHeight, clientHeight } = this.#log;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  #scrolled(): void {
    this.#atEnd = this.#isAtEnd();
    show(this.#newest, !this.#atEnd);
  }

  #showEarlier(): void {
    const below = this.#log.scrollHeight - this.#log.scrollTop;
    this.#count += PAGE;
    this.#atEnd = false;
    this.#shown = false;
    this.render();
    this.#log.scrollTop = this.#log.scrollHeight - below;
    this.#log.focus();
  }
}

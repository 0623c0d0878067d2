// The field to write in, with its draft and what the person should know before sending.

import { h, setText, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Person } from '../model/person.js';
import { plural } from '../text.js';

/** A draft is stored after a pause of this length, in milliseconds. */
const DRAFT_MS = 400;
/** Where a page that is reloaded leaves the draft that it has not stored. */
const UNSTORED = 'try-it/draft';
/** The highest that the field grows. */
const MAX_HEIGHT_REM = 9.75;

const hasKeyboard = (): boolean => matchMedia('(pointer: fine)').matches;

export class Composer {
  readonly element: HTMLElement;

  readonly #form: HTMLFormElement;
  readonly #text = h('textarea', {
    id: 'composer-text',
    rows: 1,
    dir: 'auto',
    maxlength: 8000,
    placeholder: 'Write a message',
    'aria-describedby': 'composer-hint',
    oninput: () => this.#written(),
    onkeydown: (event: KeyboardEvent) => this.#key(event),
  });
  readonly #hint = h('p', { class: 'composer-hint', id: 'composer-hint' });
  readonly #closing = new AbortController();
  #peer: string | null = null;
  #draftTimer: ReturnType<typeof setTimeout> | undefined;

  /** @param sent called when the person has sent a message */
  constructor(
    private readonly person: Person,
    private readonly sent: () => void,
  ) {
    this.#form = h(
      'form',
      {
        class: 'composer',
        novalidate: true,
        onsubmit: (event: SubmitEvent) => {
          event.preventDefault();
          this.#send();
        },
      },
      h('label', { class: 'spoken', for: 'composer-text' }, 'Message'),
      this.#text,
      h('button', { type: 'submit', class: 'send', 'aria-label': 'Send' }, icon('send')),
    );
    this.element = h('div', { class: 'foot' }, this.#form, this.#hint);
    window.addEventListener('pagehide', () => this.#leave(), { signal: this.#closing.signal });
  }

  close(): void {
    this.#storeDraft();
    this.#closing.abort();
  }

  /** Changes to another conversation. */
  show(peer: string | null): void {
    this.#storeDraft();
    this.#peer = peer;
    this.#text.value = peer ? (this.#unstored(peer) ?? this.person.chats.draft(peer)) : '';
    this.#grow();
  }

  /** Puts the focus into the field; not on a phone, where that would bring up the keyboard. Returns whether it did. */
  focus(): boolean {
    if (!hasKeyboard()) return false;
    this.#text.focus();
    return true;
  }

  render(peer: string, name: string): void {
    const { chats, wire, connected } = this.person;
    const blocked = chats.blocked.has(peer);
    show(this.#form, !blocked);
    const waiting = chats.messages(peer).filter(({ state }) => state === 'queued').length;
    const offline = wire.down || (!connected && waiting > 0);
    setText(this.#hint, blocked ? '' : offline ? offlineHint(waiting) : hasKeyboard() ? 'Enter sends, Shift + Enter starts a new line' : `Encrypted for ${name} on this device`);
    this.#hint.classList.toggle('calm', offline);
  }

  #written(): void {
    this.#grow();
    clearTimeout(this.#draftTimer);
    this.#draftTimer = setTimeout(() => this.#storeDraft(), DRAFT_MS);
    if (this.#peer) this.person.chats.typing(this.#peer, this.#text.value.trim() !== '');
  }

  #key(event: KeyboardEvent): void {
    // While a word is being composed, Enter accepts it.
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing || !hasKeyboard()) return;
    event.preventDefault();
    this.#send();
  }

  #send(): void {
    const text = this.#text.value.trim();
    if (!text || !this.#peer) return;
    clearTimeout(this.#draftTimer);
    this.#text.value = '';
    this.#grow();
    void this.person.chats.send(this.#peer, text);
    this.#text.focus();
    this.sent();
  }

  #storeDraft(): void {
    clearTimeout(this.#draftTimer);
    if (!this.#peer || !this.person.chats.contact(this.#peer)) return;
    void this.person.chats.setDraft(this.#peer, this.#text.value.trim() ? this.#text.value : '').catch(() => {});
  }

  /** A page that goes away has no time to wait for the database. */
  #leave(): void {
    this.#storeDraft();
    if (this.#peer) sessionStorage.setItem(UNSTORED, JSON.stringify({ person: this.person.id, peer: this.#peer, text: this.#text.value }));
  }

  /** The draft that the page before this one has left, if it is for `peer`. */
  #unstored(peer: string): string | null {
    const left = JSON.parse(sessionStorage.getItem(UNSTORED) ?? '{}') as { person?: string; peer?: string; text?: string };
    sessionStorage.removeItem(UNSTORED);
    return left.person === this.person.id && left.peer === peer ? (left.text ?? null) : null;
  }

  /** Makes the field as high as its text. */
  #grow(): void {
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    this.#text.style.height = 'auto';
    this.#text.style.height = `${Math.min(this.#text.scrollHeight, MAX_HEIGHT_REM * rem)}px`;
  }
}

function offlineHint(waiting: number): string {
  if (waiting === 0) return 'No connection. Keep writing: messages are sent when it is back.';
  return `No connection. ${plural(waiting, 'message')} will be sent when it is back.`;
}

// The open conversation: who it is with, its messages, and the field to write in; or what to do while none is open.

import { h, setAttribute, setText, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Contact } from '../model/chats.js';
import type { Person } from '../model/person.js';
import { nameOf } from '../text.js';
import { notify } from './announce.js';
import { Composer } from './composer.js';
import { openContact } from './contact.js';
import { Messages } from './messages.js';
import { avatar, explain } from './parts.js';

interface Actions {
  open: (userId: string | null) => void;
  toggleHood: () => void;
}

export class Conversation {
  readonly element: HTMLElement;

  readonly #invitation = h('h2', {});
  /** What to do first, as long as there is nobody to write to. */
  readonly #firstSteps = [
    h('li', {}, h('strong', {}, 'Open a second tab'), h('span', {}, ' and sign in as another person. Two tabs are two people.')),
    h('li', {}, h('strong', {}, 'Add that address'), h('span', {}, ' with + and write something.')),
  ];
  readonly #nothing: HTMLElement;
  readonly #head: HTMLElement;
  readonly #who: HTMLElement;
  readonly #face = h('span', {});
  readonly #name = h('h2', { dir: 'auto' });
  readonly #about = h('p', { class: 'about' });
  readonly #verify: HTMLElement;
  readonly #banner = h('div', { class: 'banners' });
  readonly #messages: Messages;
  readonly #composer: Composer;
  #peer: string | null = null;

  constructor(
    private readonly person: Person,
    private readonly actions: Actions,
  ) {
    this.#messages = new Messages(person);
    this.#composer = new Composer(person, () => this.#messages.answered());
    const hood = () =>
      h(
        'button',
        { type: 'button', class: 'hood-button hood-toggle', 'aria-expanded': 'false', 'aria-label': 'Under the hood', onclick: actions.toggleHood },
        icon('hood', 18),
        h('span', { class: 'wide-only', 'aria-hidden': 'true' }, 'Under the hood'),
      );
    const details = () => this.#peer && this.#openDetails(this.#peer);
    this.#who = h(
      'button',
      { type: 'button', class: 'who', 'aria-haspopup': 'dialog', onclick: details },
      this.#face,
      h('span', { class: 'who-text' }, this.#name, this.#about),
      h('span', { class: 'spoken' }, 'Details and safety number'),
    );
    this.#verify = h(
      'button',
      { type: 'button', class: 'hood-button', 'aria-haspopup': 'dialog', onclick: details },
      icon('shield', 18),
      h('span', { class: 'wide-only' }, 'Verify'),
      h('span', { class: 'spoken' }, 'the safety number'),
    );
    this.#head = h(
      'header',
      { class: 'talk-head' },
      h('button', { type: 'button', class: 'round only-phone', 'aria-label': 'All conversations', onclick: () => this.#back() }, icon('back')),
      this.#who,
      this.#verify,
      hood(),
    );
    this.#nothing = h(
      'div',
      { class: 'nothing' },
      h('div', { class: 'nothing-head' }, hood()),
      h(
        'div',
        { class: 'nothing-body' },
        this.#invitation,
        h(
          'ol',
          { class: 'steps' },
          ...this.#firstSteps,
          h('li', {}, h('strong', {}, 'Compare the safety number'), h('span', {}, ': the same sixty digits on both sides.')),
          h('li', {}, h('strong', {}, 'Look under the hood'), h('span', {}, ': cut the connection, lose a reply, and watch nothing get lost.')),
        ),
      ),
    );
    this.element = h('section', { class: 'talk', 'aria-label': 'Conversation' }, this.#nothing, this.#head, this.#banner, this.#messages.element, this.#composer.element);
  }

  close(): void {
    this.#messages.close();
    this.#composer.close();
  }

  /** Opens a conversation, perhaps at a message. */
  show(peer: string | null, messageId?: string): void {
    if (peer !== this.#peer) {
      this.#peer = peer;
      this.#messages.show(peer);
      this.#composer.show(peer);
      if (peer && this.person.connected) void this.person.trust.look(peer).catch(() => {});
    }
    this.render();
    if (!peer) return;
    if (messageId) return this.#messages.find(messageId);
    this.#messages.toNew();
    if (!this.#composer.focus()) this.#who.focus();
  }

  render(): void {
    const peer = this.#peer;
    const { chats } = this.person;
    const contact = peer ? chats.contact(peer) : undefined;
    show(this.#nothing, !contact);
    for (const part of [this.#head, this.#banner, this.#messages.element, this.#composer.element]) show(part, contact !== undefined);
    if (!peer || !contact) return this.#renderNothing();
    const name = nameOf(contact.address);
    const typing = chats.isTyping(peer);
    setAttribute(this.element, 'aria-label', `Conversation with ${name}`);
    if (this.#face.dataset.address !== contact.address) {
      this.#face.dataset.address = contact.address;
      this.#face.replaceChildren(avatar(contact.address));
    }
    setText(this.#name, name);
    this.#name.classList.toggle('verified', contact.verified !== undefined && !contact.changed);
    setText(this.#about, typing ? 'typing…' : contact.address);
    this.#about.classList.toggle('is-typing', typing);
    show(this.#verify, contact.verified === undefined && chats.last(peer) !== undefined);
    this.#renderBanner(contact, name);
    this.#messages.render();
    this.#composer.render(peer, name);
    if (document.visibilityState === 'visible' && document.hasFocus() && !chats.blocked.has(peer)) void chats.read(peer);
  }

  #renderNothing(): void {
    const anybody = this.person.chats.contacts().length > 0;
    setAttribute(this.element, 'aria-label', 'Conversation');
    setText(this.#invitation, anybody ? 'Choose a conversation' : 'Write to somebody');
    for (const step of this.#firstSteps) show(step, !anybody);
  }

  /** What the person has to know about this conversation, the most important only. */
  #renderBanner(contact: Contact, name: string): void {
    const { chats, client, status } = this.person;
    const { userId, address, changed, confirmed } = contact;
    const state = status.reason === 'displaced' ? 'displaced' : chats.blocked.has(userId) ? 'blocked' : changed ? 'changed' : confirmed ? 'none' : 'unconfirmed';
    if (this.#banner.dataset.state === `${userId} ${state}`) return;
    this.#banner.dataset.state = `${userId} ${state}`;
    const details = () => this.#openDetails(userId);
    const unblock = () => void this.person.block(userId, false).catch((error) => notify(explain(error)));
    const use = () => void client.connect().catch(() => {});
    const banners = {
      none: null,
      displaced: banner('', 'device', 'This device is connected elsewhere.', 'Use it here', use),
      blocked: banner('blocked', 'block', `You have blocked ${name}. Nothing arrives, and ${name} cannot tell.`, 'Unblock', unblock),
      changed: banner('warning', 'alert', `The safety number with ${name} has changed since you compared it.`, 'Compare again', details),
      unconfirmed: banner('', 'shield', `This person claims to be ${address}. The server does not confirm it.`, 'Details', details),
    };
    this.#banner.replaceChildren(...(banners[state] ? [banners[state]] : []));
  }

  #openDetails(userId: string): void {
    openContact(this.person, userId, () => this.actions.open(null));
  }

  #back(): void {
    if ((history.state as { peer?: string } | null)?.peer) history.back();
    else this.actions.open(null);
  }
}

function banner(kind: string, name: 'alert' | 'block' | 'device' | 'shield', text: string, action: string, run: () => void): HTMLElement {
  return h('div', { class: `banner ${kind}` }, icon(name), h('span', {}, text), h('button', { type: 'button', class: 'quiet', onclick: run }, action));
}

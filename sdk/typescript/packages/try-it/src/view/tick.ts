// How far a message got, as a mark whose width never changes.

import { h } from '../dom.js';
import { icon } from '../icons.js';
import type { Message } from '../model/chats.js';

const WORDS: Record<Message['state'], string> = {
  queued: 'Waiting to be sent',
  stored: 'Stored on the server',
  delivered: 'Delivered',
  read: 'Read',
  failed: 'Not sent',
  received: '',
  note: '',
};

const ICONS = { queued: 'clock', stored: 'check', delivered: 'checks', read: 'checks', failed: 'alert' } as const;

export function tick(state: Message['state']): HTMLElement {
  const name = ICONS[state as keyof typeof ICONS];
  return h('span', { class: `tick tick-${state}`, title: WORDS[state] }, name && icon(name, 16), h('span', { class: 'spoken' }, WORDS[state]));
}

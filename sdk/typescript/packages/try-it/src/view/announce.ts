// Announcements for screen readers without a change of focus, and short notices on the screen.

import { h } from '../dom.js';

const announcer = document.getElementById('announcer')!;

export function announce(text: string): void {
  announcer.textContent = text;
}

let notice: HTMLElement | null = null;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Shows a notice for some seconds, over the page. */
export function notify(text: string, action?: { label: string; run: () => void }): void {
  announce(text);
  clearTimeout(timer);
  notice?.remove();
  const close = () => notice?.remove();
  notice = h(
    'div',
    { class: 'notice' },
    h('span', {}, text),
    action && h('button', { type: 'button', class: 'quiet', onclick: () => (close(), action.run()) }, action.label),
  );
  // Inside an open dialog: what is outside it is not shown above it.
  (document.querySelector('dialog[open]') ?? document.getElementById('page')!.querySelector('main') ?? document.body).append(notice);
  timer = setTimeout(close, 7000);
}

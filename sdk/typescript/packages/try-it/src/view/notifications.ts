// Notifications: the switch in the settings, and the one offer in the list.

import { h, setAttribute, setText, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Choice, Notifications } from '../model/notifications.js';
import { notify } from './announce.js';

const OFF = 'For messages that come while this tab is in the background or closed.';
const BLOCKED = 'The browser blocks notifications of this page. To get them, allow them in its settings for this page.';
const UNSUPPORTED = 'This browser shows no notifications of this page.';
const ON: Record<NonNullable<Choice['closed']>, string> = {
  active: 'While this tab is in the background you see who wrote, and what. While it is closed, only that a message came: the push service learns nothing else.',
  waiting: 'While this tab is in the background. For a closed tab, the push service of the browser has yet to answer.',
  'not-offered': 'While this tab is in the background. For a closed tab the server would need Web Push, which it does not offer.',
  failed: 'While this tab is in the background. For a closed tab, the push service of the browser would be needed, and it cannot be reached.',
};

const textOf = ({ state, choice }: Notifications): string =>
  state === 'on' ? ON[choice.closed ?? 'waiting'] : { off: OFF, blocked: BLOCKED, unsupported: UNSUPPORTED }[state];

/** The part of the settings. Call `render` when something has changed. */
export function notificationsPart(notifications: Notifications): { element: HTMLElement; render: () => void; listen: (signal: AbortSignal, changed: () => void) => void } {
  const text = h('p', { class: 'hint', id: 'notifications-text', role: 'status' });
  const toggle = async () => {
    if (button.getAttribute('aria-busy') === 'true') return;
    setAttribute(button, 'aria-busy', 'true');
    await (notifications.state === 'on' ? notifications.turnOff() : notifications.turnOn()).catch(() => {});
    setAttribute(button, 'aria-busy', null);
    render();
  };
  const button = h(
    'button',
    { type: 'button', class: 'switch', role: 'switch', 'aria-describedby': text.id, onclick: () => void toggle() },
    h('span', {}, 'Notify me of new messages'),
    h('span', { class: 'switch-track', 'aria-hidden': 'true' }),
  );
  const render = () => {
    const { state } = notifications;
    setAttribute(button, 'aria-checked', String(state === 'on'));
    show(button, state === 'on' || state === 'off');
    setText(text, textOf(notifications));
  };
  const listen = (signal: AbortSignal, changed: () => void) => {
    // The permission can be changed in the settings of the browser.
    navigator.permissions?.query({ name: 'notifications' }).then(
      (status) => status.addEventListener('change', changed, { signal }),
      () => {},
    );
    // A registration that was not confirmed in time is repeated.
    void notifications.resume().catch(() => {});
  };
  return { element: h('section', { class: 'part' }, h('h3', {}, 'Notifications'), h('div', { class: 'setting' }, button, text)), render, listen };
}

/** The offer, after the first message that came while the page was not visible. */
export function notificationsOffer(notifications: Notifications): HTMLElement {
  const accept = async () => {
    await notifications.turnOn().catch(() => {});
    if (notifications.state === 'on') notify('Notifications are on. The switch is in your account.');
    if (notifications.state === 'blocked') notify(BLOCKED);
  };
  const decline = async () => {
    await notifications.decline();
    notify('You can turn them on in your account.');
  };
  return h(
    'section',
    { class: 'offer', 'aria-label': 'Notifications', hidden: true },
    h('p', {}, icon('bell'), h('span', {}, 'A message came while this tab was in the background. Do you want to be notified next time?')),
    h('div', { class: 'actions start' }, h('button', { type: 'button', class: 'primary', onclick: () => void accept() }, 'Notify me'), h('button', { type: 'button', class: 'plain', onclick: () => void decline() }, 'Not now')),
  );
}

// Parts that several views use.

import { SealwireError } from '@sealwire/client';
import { h, type Child } from '../dom.js';
import { colourOf, initials } from '../text.js';
import { spaced } from '../model/demo.js';

export const avatar = (address: string, className = ''): HTMLElement =>
  h('span', { class: `avatar hue-${colourOf(address)} ${className}`, 'aria-hidden': 'true' }, initials(address));

/** A text field with its label, a hint, and a place for what is wrong with it. */
export function field(label: string, input: HTMLInputElement, hint?: string): { element: HTMLElement; input: HTMLInputElement; fail: (text: string) => void } {
  const id = (input.id ||= `field-${crypto.randomUUID().slice(0, 8)}`);
  const error = h('p', { class: 'field-error', id: `${id}-error`, role: 'alert' });
  input.setAttribute('aria-describedby', hint ? `${id}-hint ${id}-error` : `${id}-error`);
  input.addEventListener('input', () => fail(''));
  const fail = (text: string) => {
    error.textContent = text;
    if (text) input.setAttribute('aria-invalid', 'true');
    else input.removeAttribute('aria-invalid');
  };
  const element = h('div', { class: 'field' }, h('label', { for: id }, label), input, hint && h('p', { class: 'hint', id: `${id}-hint` }, hint), error);
  return { element, input, fail };
}

/** The mail that the server would have sent. */
export function mailCard(code: string, use?: () => void): HTMLElement {
  return h(
    'div',
    { class: 'mail' },
    h('p', { class: 'mail-from' }, 'Mail from Sealwire'),
    h('p', { class: 'mail-code' }, spaced(code)),
    h('p', { class: 'mail-why' }, 'This server sends no mail, so this page shows you the code.'),
    use && h('button', { type: 'button', class: 'plain', onclick: use }, 'Use this code'),
  );
}

/** A form that is handled by the page. While `submit` runs, its button is busy. */
export function form(props: Record<string, string>, submit: () => Promise<void>, ...children: Child[]): HTMLFormElement {
  const element = h('form', { novalidate: true, ...props }, ...children);
  element.addEventListener('submit', (event) => {
    event.preventDefault();
    const button = element.querySelector<HTMLButtonElement>('button[type=submit]');
    if (button?.getAttribute('aria-busy') === 'true') return;
    button?.setAttribute('aria-busy', 'true');
    void submit().finally(() => button?.removeAttribute('aria-busy'));
  });
  return element;
}

/** What went wrong, for people. */
export function explain(error: unknown): string {
  if (!(error instanceof SealwireError)) return 'Something went wrong. Try again.';
  switch (error.code) {
    case 'network':
    case 'timeout':
      return 'The server cannot be reached. Try again in a moment.';
    case 'invalid_code':
      return 'That code is not right. Check it and try again.';
    case 'too_many_attempts':
      return 'Too many wrong codes. Ask for a new one.';
    case 'rate_limited':
      return 'Too many attempts. Wait a while.';
    case 'bad_request':
      return error.details?.path === 'email' ? 'This is not a mail address.' : error.details?.path === 'code' ? 'A code has eight digits.' : error.message;
    case 'denied':
      return 'Another device of this account refused the request.';
    case 'device_too_new':
      return 'This device is too new for that. An older device of the account can do it.';
    default:
      return error.message;
  }
}

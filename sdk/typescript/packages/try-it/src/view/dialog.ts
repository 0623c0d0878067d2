// Dialogs: the element of the browser, which keeps the focus inside, closes with Escape and gives the focus back.

import { h, type Child } from '../dom.js';
import { icon } from '../icons.js';

export interface Dialog {
  element: HTMLDialogElement;
  body: HTMLElement;
  close: () => void;
  signal: AbortSignal;
}

let count = 0;

/** Opens a dialog with a title. `signal` is aborted when it closes. */
export function openDialog(title: string, options: { className?: string; onclose?: () => void } = {}, ...children: Child[]): Dialog {
  const closing = new AbortController();
  const id = `dialog-${++count}`;
  const close = () => element.close();
  const body = h('div', { class: 'dialog-body' }, ...children);
  const element = h(
    'dialog',
    { class: `dialog ${options.className ?? ''}`, 'aria-labelledby': id },
    h(
      'div',
      { class: 'dialog-head' },
      h('h2', { id, tabindex: -1 }, title),
      h('button', { type: 'button', class: 'round', 'aria-label': 'Close', onclick: close }, icon('close')),
    ),
    body,
  );
  element.addEventListener('close', () => {
    closing.abort();
    element.remove();
    options.onclose?.();
  });
  // A click beside the dialog closes it.
  element.addEventListener('mousedown', (event) => event.target === element && close());
  document.body.append(element);
  element.showModal();
  return { element, body, close, signal: closing.signal };
}

/** Asks before something that cannot be undone. */
export function confirm(title: string, text: string, action: string): Promise<boolean> {
  return new Promise((resolve) => {
    let confirmed = false;
    const dialog = openDialog(
      title,
      { className: 'small', onclose: () => resolve(confirmed) },
      h('p', {}, text),
      h(
        'div',
        { class: 'actions' },
        h('button', { type: 'button', class: 'plain', onclick: () => dialog.close() }, 'Cancel'),
        h('button', { type: 'button', class: 'danger', onclick: () => ((confirmed = true), dialog.close()) }, action),
      ),
    );
  });
}

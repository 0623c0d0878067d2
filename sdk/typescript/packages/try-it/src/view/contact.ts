// A contact: the safety number, blocking, and removing the conversation.

import { h, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Person } from '../model/person.js';
import type { Comparison } from '../model/trust.js';
import { nameOf, plural } from '../text.js';
import { announce, notify } from './announce.js';
import { confirm, openDialog } from './dialog.js';
import { avatar, explain } from './parts.js';

export function openContact(person: Person, userId: string, removed: () => void): void {
  const { chats, trust } = person;
  const contact = chats.contact(userId)!;
  const name = nameOf(contact.address);
  const number = h('div', { class: 'safety' });
  const state = h('p', { class: 'safety-state', role: 'status' });
  const answers = h('div', { class: 'actions start' });
  const block = h('button', { type: 'button', class: 'plain' });
  let dialog: ReturnType<typeof openDialog>;

  const render = (comparison: Comparison | null) => {
    const { verified, changed } = chats.contact(userId) ?? contact;
    state.className = `safety-state ${changed ? 'warning' : verified ? 'good' : ''}`;
    state.replaceChildren(
      icon(changed ? 'alert' : 'shield'),
      h(
        'span',
        {},
        changed
          ? `${name} has keys that you have not compared. It may be a new device, or somebody in between. Compare again.`
          : verified
            ? `You have compared this number with ${name}.`
            : `Not compared yet. Until then you trust the server to have given you the keys of ${name}.`,
      ),
    );
    answers.replaceChildren(
      ...(comparison === null
        ? []
        : verified && !changed
          ? [h('button', { type: 'button', class: 'plain', onclick: () => void trust.unverify(userId).then(() => render(comparison)) }, 'Forget the comparison')]
          : [
              h('button', { type: 'button', class: 'primary', onclick: () => void matched(comparison) }, icon('check'), 'They match'),
              h('button', { type: 'button', class: 'plain', onclick: differs }, 'They differ'),
            ]),
    );
    const blocked = chats.blocked.has(userId);
    block.replaceChildren(icon('block'), blocked ? `Unblock ${name}` : `Block ${name}`);
  };
  const matched = async (comparison: Comparison) => {
    await trust.verify(userId, comparison.keys);
    announce(`Safety number with ${name} compared`);
    render(comparison);
  };
  const differs = () => {
    number.classList.add('differs');
    state.className = 'safety-state warning';
    state.replaceChildren(
      icon('alert'),
      h('span', {}, `Somebody may be reading along, or one of you has just added a device. Close this on both sides, write to each other once, and compare again. If the numbers still differ, do not write anything private to ${name}.`),
    );
  };
  const load = async () => {
    number.replaceChildren(...Array.from({ length: 12 }, () => h('span', { 'aria-hidden': 'true' }, '·····')));
    try {
      const comparison = await trust.compare(userId);
      if (comparison.otherDevices === 0) {
        number.replaceChildren();
        covers.textContent = `${name} has no device at present, so there is nothing to compare.`;
        return;
      }
      number.replaceChildren(...comparison.groups.map((group) => h('span', {}, group)));
      number.setAttribute('aria-label', `Safety number: ${comparison.groups.join(' ')}`);
      covers.textContent = `It covers ${comparison.ownDevices === 1 ? 'this device' : `your ${plural(comparison.ownDevices, 'device')}`} and ${plural(comparison.otherDevices, 'device')} of ${name}.`;
      render(comparison);
    } catch (error) {
      number.replaceChildren();
      covers.textContent = person.connected ? explain(error) : 'To show it, this device has to be connected.';
    }
  };
  const covers = h('p', { class: 'hint' }, ' ');
  block.addEventListener('click', () => {
    const on = !chats.blocked.has(userId);
    void person
      .block(userId, on)
      .then(() => (on ? dialog.close() : undefined, render(null), notify(on ? `${name} is blocked.` : `${name} is not blocked any more.`)))
      .catch((error) => notify(explain(error)));
  });
  const remove = async () => {
    if (!(await confirm(`Remove the conversation with ${name}?`, 'The messages are deleted from this device. Your other devices and the other side keep theirs.', 'Remove'))) return;
    await chats.remove(userId);
    dialog.close();
    removed();
  };
  number.setAttribute('role', 'group');
  number.setAttribute('aria-label', 'Safety number');
  dialog = openDialog(
    name,
    {},
    h('div', { class: 'person' }, avatar(contact.address, 'large'), h('div', {}, h('p', { class: 'person-address' }, contact.address), h('p', { class: 'hint' }, contact.confirmed ? 'The server confirms this address.' : 'The server does not confirm this address.'))),
    h(
      'section',
      { class: 'part' },
      h('h3', {}, 'Safety number'),
      h('p', {}, `Read it to each other, or hold the screens side by side. If ${name} sees the same sixty digits, nobody is in between, not even this server.`),
      number,
      covers,
      state,
      answers,
    ),
    h('div', { class: 'part quiet-actions' }, block, h('button', { type: 'button', class: 'plain', onclick: () => void remove() }, icon('trash'), 'Remove the conversation')),
  );
  render(null);
  show(block, true);
  void load();
}

// Adding a person by address.

import { h } from '../dom.js';
import { icon } from '../icons.js';
import type { Person } from '../model/person.js';
import * as profiles from '../model/profiles.js';
import { nameOf } from '../text.js';
import { openDialog } from './dialog.js';
import { avatar, explain, field, form } from './parts.js';

export function openAddContact(person: Person, added: (userId: string) => void): void {
  const missing = h('div', { class: 'missing', hidden: true });
  const { element, input, fail } = field(
    'Mail address',
    h('input', { type: 'email', name: 'contact', autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', placeholder: 'bob@example.org' }),
    'The server finds people by their exact address. It has no list to browse.',
  );
  const submit = async () => {
    const address = input.value.trim().toLowerCase();
    missing.hidden = true;
    if (!address.includes('@')) return (fail('A mail address has an @.'), input.focus());
    if (address === person.account?.email) return (fail('That is you.'), input.focus());
    try {
      const contact = await person.chats.add(address);
      if (contact) {
        dialog.close();
        return added(contact.userId);
      }
      fail('No account has this address yet.');
      missing.replaceChildren(
        h('p', {}, 'Somebody has to sign in with it first. In a second tab, that can be you.'),
        h('a', { class: 'button plain', href: `/#as=${encodeURIComponent(address)}`, target: '_blank', rel: 'noopener' }, icon('window'), `Sign in as ${nameOf(address)} in a new tab`),
      );
      missing.hidden = false;
      input.focus();
    } catch (error) {
      fail(explain(error));
    }
  };
  // People of this browser who are not contacts yet.
  const known = new Set([person.account?.email, ...person.chats.contacts().map(({ address }) => address)]);
  const others = [...new Set(profiles.all().map(({ address }) => address))].filter((address) => address && !known.has(address)).slice(0, 3);
  const sent = form({ class: 'stack' }, submit, element, missing, h('button', { type: 'submit', class: 'primary' }, 'Add'));
  const dialog = openDialog(
    'Add a person',
    { className: 'small' },
    others.length > 0 &&
      h(
        'div',
        { class: 'choices' },
        h('p', { class: 'label' }, 'Signed in with this browser'),
        ...others.map((address) =>
          h(
            'button',
            {
              type: 'button',
              class: 'choice',
              onclick: () => {
                input.value = address;
                sent.requestSubmit();
              },
            },
            avatar(address),
            h('span', {}, h('strong', {}, nameOf(address)), h('small', {}, address)),
          ),
        ),
      ),
    sent,
  );
  input.focus();
}

// The account: notifications, devices and their approval, signing out, deleting.

import type { ListedDevice, PendingApproval } from '@sealwire/client/protocol';
import { h, keyed, setText } from '../dom.js';
import { icon } from '../icons.js';
import { codeOf } from '../model/demo.js';
import type { Person } from '../model/person.js';
import * as profiles from '../model/profiles.js';
import { relative } from '../text.js';
import { announce, notify } from './announce.js';
import { confirm, openDialog } from './dialog.js';
import { notificationsPart } from './notifications.js';
import { avatar, explain, field, form, mailCard } from './parts.js';

export function openSettings(person: Person): void {
  const account = person.account!;
  const devices = h('ul', { class: 'devices' });
  const requests = h('div', { class: 'requests' });
  const lock = h('div', { class: 'lock' });
  const status = h('p', { class: 'hint', role: 'status' });
  const notifications = notificationsPart(person.notifications);
  const refresh = () => Promise.all([person.refreshDevices(), person.refreshRequests()]).then(() => setText(status, ''), () => setText(status, person.connected ? 'The server did not answer.' : 'To change these, this device has to be connected.'));

  const render = () => {
    notifications.render();
    keyed(devices, person.devices, ({ device_id, name, last_seen }) => `${device_id} ${name} ${last_seen}`, (device) => deviceRow(person, device, refresh));
    keyed(requests, person.requests, ({ request_id }) => request_id, (request) => requestCard(person, request, refresh));
    const state = person.locked === null ? 'unknown' : person.locked ? 'locked' : 'open';
    if (lock.dataset.state === state) return;
    lock.dataset.state = state;
    lock.replaceChildren(...(state === 'unknown' ? [] : lockPart(person, state === 'locked', refresh)));
  };

  const signOut = async () => {
    if (!(await confirm('Sign out?', 'Your messages stay in this browser, and messages to you wait on the server until you sign in here again.', 'Sign out'))) return;
    try {
      await person.notifications.pause().catch(() => {});
      await person.client.logout();
      dialog.close();
    } catch (error) {
      notify(explain(error));
      await person.notifications.resume();
    }
  };
  const forget = async () => {
    if (!(await confirm('Remove this device?', 'The device leaves the account, and all its messages in this browser are deleted.', 'Remove'))) return;
    try {
      // The server closes the connection, and the client deletes its data.
      await person.client.request('devices.revoke', { device_id: account.deviceId });
    } catch (error) {
      notify(explain(error));
    }
  };

  const before = person.onchange;
  const dialog = openDialog(
    'Your account',
    {
      onclose: () => {
        person.onchange = before;
        person.onchange();
      },
    },
    h('div', { class: 'person' }, avatar(account.email, 'large'), h('div', {}, h('p', { class: 'person-address' }, account.email), status)),
    requests,
    notifications.element,
    h(
      'section',
      { class: 'part' },
      h('h3', {}, 'Devices'),
      h('p', {}, 'Each device has its own keys. What you write is encrypted for each of them.'),
      devices,
      h('a', { class: 'button plain', href: `/#device=${encodeURIComponent(account.email)}`, target: '_blank', rel: 'noopener' }, icon('window'), 'Add a device in a new tab'),
    ),
    h('section', { class: 'part' }, h('h3', {}, 'Approval of new devices'), lock),
    h(
      'section',
      { class: 'part' },
      h('h3', {}, 'Leave'),
      h(
        'div',
        { class: 'quiet-actions' },
        h('button', { type: 'button', class: 'plain', onclick: () => void signOut() }, icon('signout'), 'Sign out'),
        h('button', { type: 'button', class: 'plain', onclick: () => void forget() }, icon('device'), 'Remove this device'),
        h('button', { type: 'button', class: 'plain is-danger', onclick: () => deleteAccount(person) }, icon('trash'), 'Delete the account'),
      ),
    ),
  );
  person.onchange = () => {
    before();
    if (dialog.element.open) person.account ? render() : dialog.close();
  };
  notifications.listen(dialog.signal, render);
  render();
  void refresh();
}

function deviceRow(person: Person, device: ListedDevice, refresh: () => Promise<void>): HTMLElement {
  const name = device.name ?? 'A device without a name';
  const rename = () => {
    const { element, input, fail } = field('Name', h('input', { type: 'text', maxlength: 64, value: device.name ?? '' }));
    const dialog = openDialog(
      'Name the device',
      { className: 'small' },
      form(
        { class: 'stack' },
        async () => {
          const wanted = input.value.trim();
          if (!wanted) return fail('A name has at least one character.');
          try {
            await person.client.request('devices.rename', { device_id: device.device_id, name: wanted });
            if (device.current) profiles.remember(person.id, person.account!.email, wanted);
            dialog.close();
            await refresh();
          } catch (error) {
            fail(explain(error));
          }
        },
        element,
        h('button', { type: 'submit', class: 'primary' }, 'Save'),
      ),
    );
    input.select();
  };
  const remove = async () => {
    if (!(await confirm(`Remove “${name}”?`, 'It is signed out at once and deletes its messages. What you write from now on is not encrypted for it.', 'Remove'))) return;
    await person.client.request('devices.revoke', { device_id: device.device_id }).catch((error) => notify(explain(error)));
    await refresh();
  };
  return h(
    'li',
    {},
    icon('device', 22),
    h('span', { class: 'device-text' }, h('strong', { dir: 'auto' }, name), h('small', {}, device.current ? 'This device' : device.last_seen ? `Seen ${relative(Date.parse(device.last_seen))}` : 'Not connected yet', ` · added ${relative(Date.parse(device.created_at))}`)),
    h('button', { type: 'button', class: 'quiet', onclick: rename, 'aria-label': `Rename ${name}` }, 'Rename'),
    !device.current && h('button', { type: 'button', class: 'quiet is-danger', onclick: () => void remove(), 'aria-label': `Remove ${name}` }, 'Remove'),
  );
}

/** A new device that waits to be approved. The person types the number that it shows. */
function requestCard(person: Person, request: PendingApproval, refresh: () => Promise<void>): HTMLElement {
  const { element, input, fail } = field('Number that the new device shows', h('input', { type: 'text', inputmode: 'numeric', maxlength: 2, autocomplete: 'off', class: 'code', placeholder: '00' }));
  const decide = async (approve: boolean) => {
    try {
      await person.client.request('devices.decide', { request_id: request.request_id, approve, ...(approve && { number: input.value.trim() }) });
      notify(approve ? 'The device is approved.' : 'The device is refused. If it was not yours, change the password of your mailbox.');
    } catch (error) {
      if ((error as { code?: string }).code === 'denied') notify('That was another number, so the device is refused.');
      else return fail(explain(error));
    }
    await refresh();
  };
  return h(
    'section',
    { class: 'request', 'aria-label': 'A new device wants to sign in' },
    h('h3', {}, 'A new device wants to sign in'),
    h('p', {}, h('strong', { dir: 'auto' }, request.device_name ?? 'A device without a name'), ` asked ${relative(Date.parse(request.created_at))}${request.client_network ? ` from ${request.client_network}` : ''}. Is it yours?`),
    form(
      { class: 'stack' },
      async () => {
        if (!/^\d\d$/.test(input.value.trim())) return (fail('The number has two digits.'), input.focus());
        await decide(true);
      },
      element,
      h('div', { class: 'actions start' }, h('button', { type: 'submit', class: 'primary' }, 'Approve'), h('button', { type: 'button', class: 'danger', onclick: () => void decide(false) }, 'Not mine, refuse')),
    ),
  );
}

function lockPart(person: Person, locked: boolean, refresh: () => Promise<void>): HTMLElement[] {
  const problem = h('p', { class: 'field-error', role: 'alert' });
  const set = async () => {
    const key = crypto.getRandomValues(new Uint8Array(32));
    const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', key));
    try {
      await person.client.request('account.lock', { recovery_key_hash: base64(hash) });
      await refresh();
      showRecoveryKey(base64(key));
    } catch (error) {
      problem.textContent = explain(error);
    }
  };
  if (!locked) {
    return [
      h('p', {}, 'Now a mailed code is enough to add a device. Under a lock, one of your devices has to approve it.'),
      h('button', { type: 'button', class: 'plain', onclick: () => void set() }, icon('lock'), 'Lock the account'),
      problem,
    ];
  }
  const { element, input, fail } = field('Recovery key', h('input', { type: 'text', autocomplete: 'off', spellcheck: 'false' }), 'Needed to unlock within the first week.');
  return [
    h('p', { class: 'safety-state good' }, icon('lock'), h('span', {}, 'Locked: a new device needs the approval of one of yours, or the recovery key.')),
    h(
      'details',
      {},
      h('summary', {}, 'Unlock the account'),
      form(
        { class: 'stack' },
        async () => {
          const key = input.value.replace(/\s/g, '');
          try {
            await person.client.request('account.unlock', key ? { recovery_key: key } : {});
            await refresh();
          } catch (error) {
            fail((error as { code?: string }).code === 'invalid_code' ? 'That recovery key is not right.' : explain(error));
          }
        },
        element,
        h('button', { type: 'submit', class: 'plain' }, 'Unlock'),
      ),
    ),
  ];
}

/** The recovery key is shown once. */
function showRecoveryKey(key: string): void {
  const grouped = key.match(/.{1,4}/g)!.join(' ');
  const dialog = openDialog(
    'Save your recovery key',
    { className: 'small' },
    h('p', {}, 'It signs you in on a new device without an approval. It is shown this once. Without it and without your devices you wait a week.'),
    h('p', { class: 'recovery', tabindex: 0 }, grouped),
    h(
      'div',
      { class: 'actions' },
      h('button', { type: 'button', class: 'plain', onclick: () => void navigator.clipboard.writeText(key).then(() => announce('Copied'), () => notify('The browser does not allow it. Select the key and copy it.')) }, 'Copy'),
      h('button', { type: 'button', class: 'primary', onclick: () => dialog.close() }, 'I have saved it'),
    ),
  );
}

function deleteAccount(person: Person): void {
  const { email } = person.account!;
  const place = h('div', { class: 'stack' });
  openDialog(
    'Delete the account',
    { className: 'small' },
    h('p', {}, 'All your devices are signed out, and your keys and the messages that wait for you are deleted from the server. There is no way back.'),
    place,
  );
  const ask = async () => {
    let challengeId: string;
    let code: string | null;
    try {
      challengeId = (await person.client.requestCode(email, 'delete')).challenge_id;
      code = await codeOf(challengeId);
    } catch (error) {
      return place.replaceChildren(h('p', { class: 'field-error', role: 'alert' }, explain(error)));
    }
    const { element, input, fail } = field('Code from the mail', h('input', { type: 'text', inputmode: 'numeric', maxlength: 11, autocomplete: 'off', class: 'code', placeholder: '0000 0000' }));
    place.replaceChildren(
      ...(code ? [mailCard(code, () => (input.value = `${code.slice(0, 4)} ${code.slice(4)}`))] : []),
      form(
        { class: 'stack' },
        async () => {
          try {
            await person.client.request('account.delete', { challenge_id: challengeId, code: input.value });
          } catch (error) {
            fail(explain(error));
          }
        },
        element,
        h('button', { type: 'submit', class: 'danger' }, 'Delete forever'),
      ),
    );
    input.focus();
  };
  place.append(h('button', { type: 'button', class: 'danger', onclick: () => void ask() }, 'Send me the code'));
}

const base64 = (bytes: Uint8Array): string => btoa(String.fromCharCode(...bytes));

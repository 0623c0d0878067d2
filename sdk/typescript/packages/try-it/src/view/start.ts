// The first screen: what this page is, and signing in.

import { type Approval, SealwireError, type ServerError } from '@sealwire/client';
import { h, type Child } from '../dom.js';
import { icon, mark } from '../icons.js';
import { codeOf, spaced } from '../model/demo.js';
import { Person } from '../model/person.js';
import * as profiles from '../model/profiles.js';
import { deviceName, nameOf, relative } from '../text.js';
import { avatar, explain, field, form, mailCard } from './parts.js';
import { announce } from './announce.js';

export interface StartOptions {
  page: HTMLElement;
  /** The person of this tab, whose session has ended; or null. */
  person: Person | null;
  /** An address to sign in with at once. */
  address?: string;
  /** Why the person has to sign in again. */
  reason?: string;
  /** Somebody has signed in. */
  done: (person: Person) => void;
}

export function showStart(options: StartOptions): void {
  const card = h('div', { class: 'card', id: 'sign-in' });
  options.page.replaceChildren(
    h(
      'main',
      { class: 'welcome' },
      h('header', { class: 'welcome-brand' }, mark(32), h('span', {}, 'Sealwire')),
      h(
        'div',
        { class: 'welcome-pitch' },
        h('h1', {}, h('span', {}, 'Two tabs, two people, '), h('span', {}, 'one sealed conversation.')),
        h('p', { class: 'lead' }, 'Sign in here as one person and in a second tab as another. Everything you write is encrypted in this browser; the server passes it on and cannot read it.'),
        wire(),
      ),
      card,
      h('p', { class: 'welcome-foot' }, 'This page is part of the server you are running. It contacts no other server.'),
    ),
  );
  const steps = new Steps(card, options);
  if (options.address) void steps.request(options.address);
  else void steps.askAddress();
}

/** A picture of what happens: what Alice writes, what the server sees, what Bob reads. */
function wire(): HTMLElement {
  const end = (address: string, className: string) =>
    h('div', { class: `wire-end ${className}` }, h('span', { class: 'wire-who' }, avatar(address), nameOf(address)), h('span', { class: 'bubble' }, 'Lunch at noon?'));
  return h(
    'div',
    { class: 'wire', role: 'img', 'aria-label': 'Alice writes “Lunch at noon?”. The server passes on letters that mean nothing to it. Bob reads “Lunch at noon?”.' },
    end('alice@example.org', 'mine'),
    h(
      'div',
      { class: 'wire-line' },
      h('span', { class: 'wire-cipher' }, 'AkVx0m9S+pQfJ7wHdl3uYz8K5tGcR2eNbLi4'),
      h('span', { class: 'wire-note' }, icon('lock', 14), 'all that the server sees'),
    ),
    end('bob@example.org', ''),
  );
}

class Steps {
  #person: Person | null;

  constructor(
    private readonly card: HTMLElement,
    private readonly options: StartOptions,
  ) {
    this.#person = options.person;
  }

  #show(title: string, ...children: Child[]): void {
    const heading = h('h2', { tabindex: -1 }, title);
    this.card.replaceChildren(heading, ...children.filter((child) => child !== null && child !== undefined && child !== false));
  }

  /** Step one: who are you? */
  async askAddress(problem = ''): Promise<void> {
    const known = this.#person?.account ?? null;
    const { input, element, fail } = field(
      'Mail address',
      h('input', { type: 'email', name: 'email', autocomplete: 'off', spellcheck: 'false', autocapitalize: 'none', placeholder: 'you@example.org', value: known?.email, readonly: known !== null }),
      known ? undefined : 'Any address works; no mail is sent.',
    );
    const idle = known ? [] : await profiles.idle();
    const quick = (address: string) =>
      h('button', { type: 'button', class: 'choice', onclick: () => void this.request(address) }, avatar(address), h('span', {}, h('strong', {}, nameOf(address)), h('small', {}, address)));
    const taken = new Set(profiles.all().map(({ address }) => address));
    const suggestions = ['alice@example.org', 'bob@example.org', 'carol@example.org'].filter((address) => !taken.has(address)).slice(0, 2);
    this.#show(
      known ? `Welcome back, ${nameOf(known.email)}` : 'Sign in',
      this.options.reason && h('p', { class: 'reason' }, this.options.reason),
      idle.length > 0 &&
        h(
          'div',
          { class: 'choices' },
          h('p', { class: 'label' }, 'Continue as'),
          ...idle.slice(0, 4).map((profile) =>
            h(
              'button',
              { type: 'button', class: 'choice', onclick: () => void this.#goOn(profile.id) },
              avatar(profile.address),
              h('span', {}, h('strong', {}, nameOf(profile.address)), h('small', {}, `${profile.address} · ${profile.device}`)),
            ),
          ),
        ),
      !known && suggestions.length > 0 && h('div', { class: 'choices' }, h('p', { class: 'label' }, idle.length > 0 ? 'Or start as someone new' : 'The quickest way'), ...suggestions.map(quick)),
      form(
        { class: 'stack' },
        async () => {
          const address = input.value.trim();
          if (!address.includes('@')) return (fail('A mail address has an @.'), input.focus());
          await this.request(address, fail);
        },
        !known && h('p', { class: 'or' }, 'or with any address'),
        element,
        h('button', { type: 'submit', class: 'primary' }, 'Continue'),
      ),
      known && h('button', { type: 'button', class: 'plain wide', onclick: () => void this.#somebodyElse() }, 'Use another account in this tab'),
    );
    if (problem) fail(problem);
  }

  async #somebodyElse(): Promise<void> {
    await this.#person?.close();
    profiles.leave();
    this.#person = null;
    this.options.person = null;
    delete this.options.reason;
    await this.askAddress();
  }

  async #goOn(id: string): Promise<void> {
    profiles.use(id);
    const person = new Person(id);
    this.#person = person;
    if (await person.load()) return this.options.done(person);
    this.options.person = person;
    await this.askAddress();
  }

  /** Asks the server for a code. */
  async request(address: string, fail?: (text: string) => void): Promise<void> {
    const person = (this.#person ??= new Person(profiles.create()));
    try {
      const challenge = await person.client.signIn.request(address);
      await this.#askCode(person, address, await codeOf(challenge.challenge_id));
    } catch (error) {
      if (fail) fail(explain(error));
      else await this.askAddress(explain(error));
    }
  }

  /** Step two: the code. */
  async #askCode(person: Person, address: string, code: string | null): Promise<void> {
    const { input, element, fail } = field(
      'Code',
      h('input', { type: 'text', inputmode: 'numeric', autocomplete: 'one-time-code', name: 'code', maxlength: 11, placeholder: '0000 0000', class: 'code', value: code && spaced(code) }),
    );
    const name = field('Name of this device', h('input', { type: 'text', name: 'device', maxlength: 64, value: await freeName(address), autocomplete: 'off' }), 'Your other devices show it.');
    const known = person.account !== null;
    const submit = async () => {
      const digits = input.value.replace(/\D/g, '');
      if (digits.length !== 8) return (fail('A code has eight digits.'), input.focus());
      await this.#verify(person, address, digits, name.input.value.trim() || deviceName(), fail);
    };
    const sent = form(
      { class: 'stack' },
      submit,
      element,
      !known && name.element,
      h('button', { type: 'submit', class: 'primary' }, 'Sign in'),
      h('button', { type: 'button', class: 'plain', onclick: () => void this.askAddress() }, 'Another address'),
    );
    this.#show(
      'Enter the code',
      h('p', { class: 'lead small' }, h('bdi', {}, address)),
      code ? mailCard(code) : h('p', { class: 'reason' }, 'The server has mailed a code of eight digits to this address.'),
      sent,
    );
    announce(code ? `The code is ${code}` : 'A code was mailed');
    (code ? sent.querySelector<HTMLElement>('.primary')! : input).focus();
  }

  async #verify(person: Person, address: string, code: string, device: string, fail: (text: string) => void, replaceDeviceId?: string, recoveryKey?: string): Promise<void> {
    try {
      const { approval } = await person.client.signIn.verify(code, {
        deviceName: device,
        ...(replaceDeviceId && { replaceDeviceId }),
        ...(recoveryKey && { recoveryKey }),
      });
      if (approval) return this.#waitForApproval(person, address, device, approval, (key) => this.#verify(person, address, code, device, fail, replaceDeviceId, key));
      this.#signedIn(person, address, device);
    } catch (error) {
      const refused = error as ServerError;
      if (refused.code === 'device_limit') return this.#askReplaced(refused, (id) => this.#verify(person, address, code, device, fail, id));
      if (recoveryKey) throw error;
      if (refused.code === 'other_account') {
        // The device was removed while it was signed out, or the account deleted.
        await person.notifications.pause().catch(() => {});
        await person.client.wipe();
        return this.askAddress('This device was removed from the account. Sign in again, as a new device.');
      }
      if (replaceDeviceId) return this.askAddress(refused.code === 'proof_required' ? 'That device was in use this week, so another one cannot replace it.' : explain(error));
      fail(explain(error));
    }
  }

  #signedIn(person: Person, address: string, device: string): void {
    profiles.remember(person.id, address, device);
    this.options.done(person);
  }

  /** The account is locked: another device has to approve. */
  #waitForApproval(person: Person, address: string, device: string, approval: Approval, recover: (key: string) => Promise<void>): void {
    const waiting = new AbortController();
    const key = field('Recovery key', h('input', { type: 'text', name: 'recovery', autocomplete: 'off', spellcheck: 'false' }));
    this.#show(
      'Approve on another device',
      h('p', {}, 'This account is locked. Open it on a device where you are signed in, and type this number there:'),
      h('p', { class: 'approval-number', 'aria-label': `Number ${approval.number}` }, approval.number),
      h('p', { class: 'hint waiting' }, `Waiting for the approval. Without an answer it is approved ${relative(Date.parse(approval.decidesAt))}.`),
      h(
        'details',
        {},
        h('summary', {}, 'I have the recovery key'),
        form(
          { class: 'stack' },
          async () => {
            try {
              await recover(key.input.value.replace(/\s/g, ''));
              waiting.abort();
            } catch (error) {
              key.fail(error instanceof SealwireError && error.code === 'invalid_code' ? 'That recovery key is not right.' : explain(error));
            }
          },
          key.element,
          h('button', { type: 'submit', class: 'plain' }, 'Sign in with the recovery key'),
        ),
      ),
    );
    announce(`Approve on another device with the number ${approval.number}`);
    person.client.signIn.approval({ signal: waiting.signal }).then(
      () => this.#signedIn(person, address, device),
      (error) => {
        if (!waiting.signal.aborted) void this.askAddress(explain(error));
      },
    );
  }

  /** The account has as many devices as are allowed: one must go. */
  #askReplaced(error: ServerError, replace: (id: string) => Promise<void>): void {
    const { devices = [] } = error.details ?? {};
    this.#show(
      'Which device should it replace?',
      h('p', {}, 'The account has as many devices as the server allows.'),
      h(
        'div',
        { class: 'choices' },
        ...devices.map(({ device_id, name, last_seen }) =>
          h('button', { type: 'button', class: 'choice', onclick: () => void replace(device_id) }, icon('device'), h('span', {}, h('strong', {}, name ?? 'A device without a name'), h('small', {}, last_seen ? `Seen ${relative(Date.parse(last_seen))}` : 'Never connected'))),
        ),
      ),
    );
  }
}

/** A device name that no other profile of this address has. */
async function freeName(address: string): Promise<string> {
  const used = new Set(profiles.all().filter((profile) => profile.address === address).map(({ device }) => device));
  const name = deviceName();
  for (let n = 1; ; n++) {
    const candidate = n === 1 ? name : `${name} ${n}`;
    if (!used.has(candidate)) return candidate;
  }
}

// Conversations: contacts, messages with how far they got, drafts, and who is typing.

import { type Message as Received, SealwireError, type SealwireClient } from '@sealwire/client';
import { decode, describe, encode, type Envelope, type Receipt } from './envelope.js';
import { Receipts } from './receipts.js';
import type { Records } from './records.js';

export interface Contact {
  userId: string;
  address: string;
  addedAt: number;
  /** Whether the server says that this address belongs to this user. A message alone only claims it. */
  confirmed: boolean;
  /** The conversation was read up to this time. */
  seenAt: number;
  /** Identity keys of the contact's devices when they were last looked at, sorted. */
  keys?: string[];
  /** The identity keys whose safety number was compared. */
  verified?: string[];
  /** Whether there are keys that were not compared, since another safety number was. */
  changed?: boolean;
}

export interface Message {
  id: string;
  peer: string;
  mine: boolean;
  text: string;
  /** Milliseconds since 1970: of its sender when it was written, of the server when it was received. */
  at: number;
  /** Of one's own: how far it got. `received` for others, `note` for what the page itself notes. */
  state: 'queued' | 'stored' | Receipt | 'failed' | 'received' | 'note';
  /** Why it failed. */
  problem?: string;
  /** Of a received one: which receipt its sender was sent. */
  receipt?: Receipt;
  /** Of one's own: whether the other devices of this person have a copy, or need none. */
  copied?: boolean;
}

const ORDER = ['failed', 'queued', 'stored', 'delivered', 'read'];
/** Most messages whose content is remembered for the drawer. */
const DESCRIBED = 500;
/** Typing is sent again after this time, and shown for longer. */
const TYPING_MS = 3000;
const TYPING_SHOWN_MS = 6000;

/** Which of two versions of a record is the newer one. Two tabs may note at the same time how far a message got. */
export function newer(before: unknown, after: unknown): unknown {
  const [old, fresh] = [before, after] as [Message | undefined, Message | undefined];
  const further = old?.mine && fresh?.mine && fresh.state !== 'failed' && ORDER.indexOf(old.state) > ORDER.indexOf(fresh.state);
  return further ? Object.assign(fresh, { state: old.state }) : after;
}

export class Chats {
  /** Users that this person has blocked. */
  readonly blocked = new Set<string>();
  /** Called with every message that arrives, also if it repeats one. */
  onmessage: (message: Message) => void = () => {};
  /** What is inside messages that are not of a person, by their ids: for the drawer. */
  readonly contents = new Map<string, string>();
  /** Called when a message came from a device. */
  ondevice: (userId: string, deviceId: string) => void = () => {};

  readonly #typing = new Map<string, number>();
  readonly #typingSent = new Map<string, number>();
  readonly #receipts: Receipts;
  readonly #confirming = new Map<string, Promise<void>>();
  #index: Map<string, Message[]> | null = null;

  constructor(
    private readonly client: SealwireClient,
    private readonly records: Records,
    private readonly changed: () => void,
  ) {
    this.#receipts = new Receipts((peer, state, ids) => this.#sendReceipt(peer, state, ids));
  }

  /** The records have changed. */
  refresh(): void {
    this.#index = null;
  }

  get self(): string {
    return this.client.account?.userId ?? '';
  }

  contact(userId: string): Contact | undefined {
    return this.records.get(`contact/${userId}`);
  }

  /** All contacts, the one with the newest message first. */
  contacts(): Contact[] {
    const last = ({ userId, addedAt }: Contact) => this.last(userId)?.at ?? addedAt;
    return this.records.list<Contact>('contact/').sort((a, b) => last(b) - last(a));
  }

  /** The messages of a conversation, oldest first. */
  messages(peer: string): Message[] {
    if (!this.#index) {
      this.#index = new Map();
      for (const message of this.records.list<Message>('message/')) {
        const list = this.#index.get(message.peer);
        if (list) list.push(message);
        else this.#index.set(message.peer, [message]);
      }
      for (const list of this.#index.values()) list.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
    }
    return this.#index.get(peer) ?? [];
  }

  last(peer: string): Message | undefined {
    return this.messages(peer).findLast(({ state }) => state !== 'note');
  }

  /** The number of messages that were not read. */
  unread(peer: string): number {
    const { seenAt = 0 } = this.contact(peer) ?? {};
    return this.messages(peer).filter(({ state, at }) => state === 'received' && at > seenAt).length;
  }

  unreadTotal(): number {
    return this.contacts().reduce((sum, { userId }) => sum + this.unread(userId), 0);
  }

  draft(peer: string): string {
    return this.records.get<string>(`draft/${peer}`) ?? '';
  }

  async setDraft(peer: string, text: string): Promise<void> {
    if (text !== this.draft(peer)) await this.records.put({ [`draft/${peer}`]: text || undefined });
  }

  isTyping(peer: string): boolean {
    return (this.#typing.get(peer) ?? 0) > Date.now();
  }

  /** Messages whose text contains `query`, newest first. */
  search(query: string, most = 50): Message[] {
    const wanted = query.trim().toLocaleLowerCase();
    if (!wanted) return [];
    const fits = ({ state, text }: Message) => state !== 'note' && text.toLocaleLowerCase().includes(wanted);
    return this.records.list<Message>('message/').filter(fits).sort((a, b) => b.at - a.at).slice(0, most);
  }

  /** Adds the person with an address. Returns null if no account has it. */
  async add(address: string): Promise<Contact | null> {
    const userId = await this.client.findUser(address);
    if (!userId) return null;
    const known = this.contact(userId);
    const contact: Contact = { addedAt: Date.now(), seenAt: 0, ...known, userId, address, confirmed: true };
    await this.records.put({ [`contact/${userId}`]: contact });
    return contact;
  }

  async update(userId: string, changes: Partial<Contact>): Promise<void> {
    const contact = this.contact(userId);
    if (contact) await this.records.put({ [`contact/${userId}`]: Object.assign(contact, changes) });
  }

  /** Removes a conversation from this device. */
  async remove(userId: string): Promise<void> {
    const gone: Record<string, undefined> = { [`contact/${userId}`]: undefined, [`draft/${userId}`]: undefined };
    for (const { id } of this.messages(userId)) gone[`message/${id}`] = undefined;
    await this.records.put(gone);
  }

  /** Puts a remark of the page into a conversation. Several tabs may do so; under the same id there is one. */
  note(id: string, peer: string, text: string): Promise<void> {
    const note: Message = { id, peer, mine: false, text, at: Date.now(), state: 'note' };
    return this.records.put({ [`message/${note.id}`]: note });
  }

  // --- Sending -------------------------------------------------------------------------------------------------------

  async send(peer: string, text: string): Promise<void> {
    // Never before the message that it answers, whatever the clocks say.
    const at = Math.max(Date.now(), (this.messages(peer).at(-1)?.at ?? 0) + 1);
    const message: Message = { id: crypto.randomUUID(), peer, mine: true, text, at, state: 'queued' };
    this.#typingSent.delete(peer);
    await this.records.put({ [`message/${message.id}`]: message, [`draft/${peer}`]: undefined });
    await this.#deliver(message);
  }

  /** Tries again what failed, under the same id, so that it cannot arrive twice. */
  async retry(id: string): Promise<void> {
    const message = this.records.get<Message>(`message/${id}`);
    if (message?.state !== 'failed') return;
    delete message.problem;
    await this.records.put({ [`message/${id}`]: Object.assign(message, { state: 'queued' }) });
    await this.#deliver(message);
  }

  discard(id: string): Promise<void> {
    return this.records.put({ [`message/${id}`]: undefined });
  }

  /** After a start: sends what was not confirmed, and the receipts that are due. */
  resume(): void {
    for (const message of this.records.list<Message>('message/')) {
      if (message.state === 'queued') void this.#deliver(message);
      else if (message.mine && message.state !== 'failed' && !message.copied && this.client.leading) void this.#copy(message);
      if (message.state === 'received' && !message.receipt && this.client.leading) this.#acknowledge(message, 'delivered');
    }
  }

  async #deliver(message: Message): Promise<void> {
    const by = this.client.account?.email ?? '';
    try {
      await this.client.send(message.peer, encode({ v: 1, kind: 'text', by, text: message.text }), { messageId: message.id });
      await this.reached(message.id, 'stored');
      await this.#copy(message);
    } catch (error) {
      await this.failed(message.id, error);
    }
  }

  /** A message was refused for good, unless it still waits. */
  async failed(id: string, error: unknown): Promise<void> {
    const message = this.records.get<Message>(`message/${id}`);
    const problem = problemOf(error);
    if (problem && message?.state === 'queued') await this.records.put({ [`message/${id}`]: Object.assign(message, { state: 'failed', problem }) });
  }

  /** Whether this person has other devices, which get copies. */
  get #otherDevices(): boolean {
    return (this.records.get<number>('devices') ?? 1) > 1;
  }

  /** Sends a copy of a message to the other devices of this person. */
  async #copy(message: Message): Promise<void> {
    const { id, peer, at, text } = message;
    const copy: Envelope = { v: 1, kind: 'copy', to: peer, address: this.contact(peer)?.address ?? '', id, at, text };
    if (this.#otherDevices && !(await this.#post(this.self, copy))) return;
    const present = this.records.get<Message>(`message/${id}`);
    if (present) await this.records.put({ [`message/${id}`]: Object.assign(present, { copied: true }) });
  }

  /** Sends what is no message of a person, and wakes nobody for it. The outbox of the client keeps it until the server has it. */
  async #post(to: string, envelope: Envelope): Promise<boolean> {
    const messageId = crypto.randomUUID();
    this.#describe(messageId, envelope);
    try {
      await this.client.send(to, encode(envelope), { messageId, urgent: false });
      return true;
    } catch {
      return false;
    }
  }

  #describe(messageId: string, envelope: Envelope): void {
    this.contents.set(messageId, describe(envelope));
    if (this.contents.size > DESCRIBED) this.contents.delete(this.contents.keys().next().value!);
  }

  /** Notes how far a message got; never less than before. */
  async reached(id: string, state: Receipt | 'stored'): Promise<void> {
    const message = this.#further(id, state);
    if (message) await this.records.put({ [`message/${id}`]: message });
  }

  #further(id: string, state: Receipt | 'stored'): Message | null {
    const message = this.records.get<Message>(`message/${id}`);
    if (!message?.mine || ORDER.indexOf(message.state) >= ORDER.indexOf(state)) return null;
    return Object.assign(message, { state });
  }

  /** This person is typing, or has stopped. */
  typing(peer: string, on: boolean): void {
    const sent = this.#typingSent.get(peer);
    if (on ? sent && Date.now() - sent < TYPING_MS : !sent) return;
    if (on) this.#typingSent.set(peer, Date.now());
    else this.#typingSent.delete(peer);
    if (this.client.state !== 'connected' || this.blocked.has(peer)) return;
    this.client.send(peer, encode({ v: 1, kind: 'typing', on }), { ephemeral: true }).catch(() => {});
  }

  /** The conversation is on the screen: everything in it is read. */
  async read(peer: string): Promise<void> {
    const contact = this.contact(peer);
    if (!contact) return;
    const unread = this.messages(peer).filter(({ state, at }) => state === 'received' && at > contact.seenAt);
    if (unread.length === 0) return;
    const seenAt = unread.at(-1)!.at;
    await this.update(peer, { seenAt });
    for (const message of unread) this.#acknowledge(message, 'read');
    if (this.#otherDevices) void this.#post(this.self, { v: 1, kind: 'seen', peer, at: seenAt });
  }

  /** Tells the sender of a message that it arrived, or was read. */
  #acknowledge({ peer, id }: Message, state: Receipt): void {
    if (!this.blocked.has(peer)) this.#receipts.plan(peer, id, state);
  }

  async #sendReceipt(peer: string, state: Receipt, ids: string[]): Promise<void> {
    if (!(await this.#post(peer, { v: 1, kind: 'receipt', state, ids }))) return;
    const records: Record<string, Message> = {};
    for (const id of ids) {
      const message = this.records.get<Message>(`message/${id}`);
      if (message && message.receipt !== 'read') records[`message/${id}`] = Object.assign(message, { receipt: state });
    }
    await this.records.put(records).catch(() => {});
  }

  // --- Receiving -----------------------------------------------------------------------------------------------------

  receive(received: Received): void {
    const envelope = decode(received.text);
    const { userId, deviceId } = received.from;
    this.ondevice(userId, deviceId);
    if (!envelope) return;
    this.#describe(received.id, envelope);
    if (userId === this.self) return this.#fromOwnDevice(received, envelope);
    switch (envelope.kind) {
      case 'text': {
        if (this.blocked.has(userId) || this.records.get(`message/${received.id}`)) return;
        this.#known(received, userId, envelope.by);
        this.#typing.delete(userId);
        const message: Message = { id: received.id, peer: userId, mine: false, text: envelope.text, at: Date.parse(received.acceptedAt), state: 'received' };
        const before = this.messages(userId).at(-1)?.at ?? 0;
        // Messages of one sender are in the order in which they were sent, also within a millisecond.
        if (message.at <= before && before - message.at < 1000) message.at = before + 1;
        this.records.putWith(received, `message/${message.id}`, message);
        if (this.client.leading) this.#acknowledge(message, 'delivered');
        this.onmessage(message);
        return;
      }
      case 'receipt':
        for (const id of envelope.ids) {
          const known = this.records.get<Message>(`message/${id}`);
          // The copy of a message that was written on another device may come after its receipt.
          if (!known) this.records.putWith(received, `early/${id}`, { peer: userId, state: envelope.state });
          if (known?.peer !== userId) continue;
          const message = this.#further(id, envelope.state);
          if (message) this.records.putWith(received, `message/${id}`, message);
        }
        return;
      case 'typing':
        if (this.blocked.has(userId)) return;
        if (envelope.on) {
          this.#typing.set(userId, Date.now() + TYPING_SHOWN_MS);
          setTimeout(() => this.changed(), TYPING_SHOWN_MS + 50);
        } else {
          this.#typing.delete(userId);
        }
        this.changed();
    }
  }

  /** Takes over what another device of this person did. */
  #fromOwnDevice(received: Received, envelope: Envelope): void {
    if (envelope.kind === 'copy') {
      this.#known(received, envelope.to, envelope.address);
      if (this.records.get(`message/${envelope.id}`)) return;
      const { id, to: peer, text, at } = envelope;
      const early = this.records.get<{ peer: string; state: Receipt }>(`early/${id}`);
      const message: Message = { id, peer, mine: true, text, at, state: early?.peer === peer ? early.state : 'stored', copied: true };
      this.records.putWith(received, `message/${id}`, message);
      this.onmessage(message);
    } else if (envelope.kind === 'seen') {
      const contact = this.contact(envelope.peer);
      if (!contact || contact.seenAt >= envelope.at) return;
      this.records.putWith(received, `contact/${envelope.peer}`, Object.assign(contact, { seenAt: envelope.at }));
    }
  }

  /** Makes the other side of a message a contact. */
  #known(received: Received, userId: string, address: string): void {
    if (this.contact(userId)) return;
    const contact: Contact = { userId, address, addedAt: Date.now(), confirmed: false, seenAt: 0 };
    this.records.putWith(received, `contact/${userId}`, contact);
    void this.confirm(contact);
  }

  /** The address in a message is what its sender claims. The server knows whose it is. */
  confirm({ userId, address }: Contact): Promise<void> {
    const asking = this.#confirming.get(userId);
    if (asking) return asking;
    const asked = (async () => {
      const found = await this.client.findUser(address).catch(() => null);
      if (found === userId) await this.update(userId, { confirmed: true });
    })().finally(() => this.#confirming.delete(userId));
    this.#confirming.set(userId, asked);
    return asked;
  }

  /** Asks the server for the contacts that it has not confirmed. */
  confirmAll(): void {
    for (const contact of this.records.list<Contact>('contact/')) if (!contact.confirmed) void this.confirm(contact);
  }
}

/** Why a message was not sent, for people; null if it still waits. */
function problemOf(error: unknown): string | null {
  if (!(error instanceof SealwireError)) return null;
  switch (error.code) {
    case 'signed_out':
    case 'ended':
    case 'network':
      return null;
    case 'no_devices':
      return 'This person has signed out everywhere and has no device that can receive it.';
    case 'not_found':
      return 'This account no longer exists.';
    case 'mailbox_full':
      return 'The mailbox of this person is full.';
    case 'untrusted':
      return 'The keys of this person cannot be trusted, so nothing was sent.';
    case 'payload_too_large':
      return 'The message is too long.';
    default:
      return 'The server did not accept it.';
  }
}

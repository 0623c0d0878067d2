// Safety numbers: whether the server gave out the keys of the right person.
//
// A person may have several devices, each with an identity key. The number covers the keys of all devices of both people, so it is the
// same on all of them; with one device each it is that of these two devices.

import type { SealwireClient, Storage } from '@sealwire/client';
import type { Suite } from '@sealwire/client/protocol';
import { knownIdentityKeys, safetyNumber } from '@sealwire/x3dh';
import type { Chats } from './chats.js';
import { nameOf } from '../text.js';

export interface Comparison {
  /** Twelve groups of five digits. */
  groups: string[];
  /** Identity keys of the other person, sorted. */
  keys: string[];
  ownDevices: number;
  otherDevices: number;
}

const SUITES: Suite[] = ['ed25519-x3dh'];

export class Trust {
  /** The keys of these people are being looked at. */
  readonly #looking = new Map<string, Promise<string[]>>();

  constructor(
    private readonly client: SealwireClient,
    private readonly storage: Storage,
    private readonly chats: Chats,
  ) {}

  async compare(userId: string): Promise<Comparison> {
    const own = this.client.account!.userId;
    const [keys, others, mine] = await Promise.all([this.look(userId), this.#keys(own), this.client.identityKey()]);
    const ownKeys = [...others.map(({ key }) => key), mine].sort();
    const number = safetyNumber({ userId: own, identityKey: joined(ownKeys) }, { userId, identityKey: joined(keys) });
    return { groups: number.match(/.{5}/g)!, keys, ownDevices: ownKeys.length, otherDevices: keys.length };
  }

  /** Looks at the keys of a person, and notes what has changed. Returns them. */
  look(userId: string): Promise<string[]> {
    const looking = this.#looking.get(userId) ?? this.#look(userId).finally(() => this.#looking.delete(userId));
    this.#looking.set(userId, looking);
    return looking;
  }

  async #look(userId: string): Promise<string[]> {
    const keys = (await this.#keys(userId)).map(({ key }) => key).sort();
    const contact = this.chats.contact(userId);
    if (!contact || keys.length === 0 || String(contact.keys) === String(keys)) return keys;
    const added = contact.keys ? keys.filter((key) => !contact.keys!.includes(key)) : [];
    const unverified = contact.verified ? keys.some((key) => !contact.verified!.includes(key)) : false;
    await this.chats.update(userId, { keys, ...(unverified && { changed: true }) });
    if (added.length > 0) {
      const text = `${nameOf(contact.address)} uses ${added.length === 1 ? 'a new device' : `${added.length} new devices`}. The safety number has changed.`;
      await this.chats.note(`keys-${added.map((key) => key.slice(0, 12)).join('-')}`, userId, text);
    }
    return keys;
  }

  /** Notes that this person compared the number. */
  verify(userId: string, keys: string[]): Promise<void> {
    return this.chats.update(userId, { keys, verified: keys, changed: false });
  }

  unverify(userId: string): Promise<void> {
    const contact = this.chats.contact(userId)!;
    delete contact.verified;
    return this.chats.update(userId, { changed: false });
  }

  /** The identity keys of a user's devices: those with which this device encrypts, and for devices that it has not met, those of the server. */
  async #keys(userId: string): Promise<{ deviceId: string; key: string }[]> {
    const [{ bundles }, known] = await Promise.all([
      this.client.request('keys.fetch', { user_id: userId, suites: SUITES }),
      knownIdentityKeys(this.storage),
    ]);
    return bundles.map(({ device_id: deviceId, identity_key }) => ({ deviceId, key: known.get(deviceId) ?? identity_key }));
  }
}

/** Keys in base64 as one text in base64. */
const joined = (keys: string[]): string => btoa(keys.map((key) => atob(key)).join(''));

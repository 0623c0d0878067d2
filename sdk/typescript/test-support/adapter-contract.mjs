// What every crypto adapter must do: `(make, assert, random) => Promise`, where `make` makes an adapter. Runs in Node and in browsers.
//
// `Party` is a device with an adapter and a storage, and stands in for the server: it gives out bundles of its keys.

import { memoryStorage } from '@sealwire/client';
import { Store } from '../packages/core/dist/storage.js';

const DAY = 86_400_000;

export class Party {
  static count = 0;

  static async create(make, keys = 10) {
    const party = new Party();
    party.adapter = make();
    party.store = new Store(memoryStorage());
    const n = String(++Party.count).padStart(12, '0');
    party.address = { userId: `00000000-0000-4000-8000-${n}`, deviceId: `00000000-0000-4000-9000-${n}` };
    await party.run(async (tx) => {
      const { key, registrationId = 1 } = await party.adapter.identity(tx);
      Object.assign(party, { identityKey: key, registrationId });
    });
    await party.publish({ signed: true, oneTime: keys, pqOneTime: keys });
    return party;
  }

  oneTime = [];
  pqOneTime = [];

  run(work) {
    return this.store.transaction(work);
  }

  async publish(wanted, now = Date.now()) {
    const keys = await this.run((tx) => this.adapter.newKeys(tx, { now, ...wanted }));
    this.published = { ...this.published, ...keys };
    this.oneTime.push(...(keys.one_time_prekeys ?? []));
    this.pqOneTime.push(...(keys.pq_one_time ?? []));
    return keys;
  }

  /** A bundle as the server gives it, which takes one-time keys. */
  bundle({ exhausted = false, ...changes } = {}) {
    const oneTime = exhausted ? undefined : this.oneTime.shift();
    const pq = exhausted ? undefined : this.pqOneTime.shift();
    return {
      device_id: this.address.deviceId,
      registration_id: this.registrationId,
      suite: this.adapter.suite,
      identity_key: this.identityKey,
      signed_prekey: { ...this.published.signed_prekey, expires_at: new Date().toISOString() },
      one_time_prekey: oneTime ?? null,
      one_time: oneTime ? 'claimed' : 'exhausted',
      pq_prekey: this.adapter.pq ? { ...(pq ?? this.published.pq_last_resort), last_resort: !pq } : null,
      ...changes,
    };
  }

  open(other, bundle = other.bundle()) {
    return this.run((tx) => this.adapter.openSession(tx, this.address, other.address, bundle));
  }

  encrypt(other, text) {
    return this.run((tx) => this.adapter.encrypt(tx, this.address, other.address, new TextEncoder().encode(text)));
  }

  async decrypt(other, sealed) {
    return new TextDecoder().decode(await this.run((tx) => this.adapter.decrypt(tx, this.address, other.address, sealed)));
  }

  has(other) {
    return this.run((tx) => this.adapter.hasSession(tx, other.address));
  }
}

const flip = (base64, at) => {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  bytes[at < 0 ? bytes.length + at : at] ^= 4;
  return btoa(String.fromCharCode(...bytes));
};

async function pair(make) {
  const [alice, bob] = [await Party.create(make), await Party.create(make)];
  await alice.open(bob);
  return { alice, bob };
}

export const adapterContract = {
  async 'a conversation in both directions'(make, assert) {
    const { alice, bob } = await pair(make);
    assert.equal(await bob.has(alice), false);
    const first = await alice.encrypt(bob, 'hello');
    assert.equal(first.type, 3);
    assert.equal(await bob.decrypt(alice, first), 'hello');
    assert.equal(await bob.has(alice), true);
    for (let i = 0; i < 10; i++) {
      const answer = await bob.encrypt(alice, `answer ${i}`);
      assert.equal(answer.type, 2);
      assert.equal(await alice.decrypt(bob, answer), `answer ${i}`);
      for (let j = 0; j < 3; j++) {
        const next = await alice.encrypt(bob, `next ${i} ${j}`);
        assert.equal(next.type, 2);
        assert.equal(await bob.decrypt(alice, next), `next ${i} ${j}`);
      }
    }
  },

  async 'first messages in any order, before any answer'(make, assert) {
    const { alice, bob } = await pair(make);
    const sealed = [];
    for (let i = 0; i < 5; i++) sealed.push(await alice.encrypt(bob, `${i}`));
    for (const i of [3, 0, 4, 1, 2]) assert.equal(await bob.decrypt(alice, sealed[i]), `${i}`);
    for (const message of sealed) await assert.rejects(bob.decrypt(alice, message), { code: 'undecryptable' });
    assert.equal(await alice.decrypt(bob, await bob.encrypt(alice, 'ok')), 'ok');
  },

  async 'a message is decrypted once, and not if it was changed'(make, assert) {
    const { alice, bob } = await pair(make);
    assert.equal(await bob.decrypt(alice, await alice.encrypt(bob, 'one')), 'one');
    await alice.decrypt(bob, await bob.encrypt(alice, 'two'));
    const sealed = await alice.encrypt(bob, 'three');
    for (let at = 0; at < sealed.content.length; at++) {
      const content = sealed.content.slice();
      content[at] ^= 1;
      await assert.rejects(bob.decrypt(alice, { type: 2, content }), { name: 'CryptoError' });
    }
    for (const length of [0, 1, 2, 40, sealed.content.length - 1]) {
      await assert.rejects(bob.decrypt(alice, { type: 2, content: sealed.content.slice(0, length) }), { name: 'CryptoError' });
      await assert.rejects(bob.decrypt(alice, { type: 3, content: sealed.content.slice(0, length) }), { name: 'CryptoError' });
    }
    assert.equal(await bob.decrypt(alice, sealed), 'three');
    await assert.rejects(bob.decrypt(alice, sealed), { code: 'undecryptable' });
  },

  async 'lost messages do not stop the others'(make, assert) {
    const { alice, bob } = await pair(make);
    await bob.decrypt(alice, await alice.encrypt(bob, 'first'));
    const late = [];
    for (let i = 0; i < 60; i++) {
      const [from, to] = i % 3 === 0 ? [alice, bob] : [bob, alice];
      const sealed = await from.encrypt(to, `${i}`);
      if (i % 7 === 0) continue;
      if (i % 5 === 0) late.push([from, to, sealed, `${i}`]);
      else assert.equal(await to.decrypt(from, sealed), `${i}`);
      // Libraries keep the keys of about five older chains.
      if (late.length < 2) continue;
      for (const [from, to, sealed, text] of late.splice(0).reverse()) assert.equal(await to.decrypt(from, sealed), text);
    }
  },

  async 'both open a session at the same time'(make, assert) {
    const { alice, bob } = await pair(make);
    await bob.open(alice);
    const [a, b] = [await alice.encrypt(bob, 'from alice'), await bob.encrypt(alice, 'from bob')];
    assert.equal(await bob.decrypt(alice, a), 'from alice');
    assert.equal(await alice.decrypt(bob, b), 'from bob');
    for (let i = 0; i < 6; i++) {
      const crossed = [await alice.encrypt(bob, `a${i}`), await bob.encrypt(alice, `b${i}`)];
      assert.equal(await bob.decrypt(alice, crossed[0]), `a${i}`);
      assert.equal(await alice.decrypt(bob, crossed[1]), `b${i}`);
    }
  },

  async 'an older session still decrypts what was sent over it'(make, assert) {
    const { alice, bob } = await pair(make);
    await bob.decrypt(alice, await alice.encrypt(bob, 'one'));
    await alice.decrypt(bob, await bob.encrypt(alice, 'two'));
    const old = await bob.encrypt(alice, 'over the old session');
    // Alice lost her state of the conversation and opens another one.
    await alice.open(bob);
    assert.equal(await bob.decrypt(alice, await alice.encrypt(bob, 'new')), 'new');
    assert.equal(await alice.decrypt(bob, old), 'over the old session');
    assert.equal(await alice.decrypt(bob, await bob.encrypt(alice, 'answer')), 'answer');
  },

  async 'a one-time key works once'(make, assert) {
    const [alice, mallory, bob] = [await Party.create(make), await Party.create(make), await Party.create(make)];
    const bundle = bob.bundle();
    await alice.open(bob, bundle);
    await mallory.open(bob, bundle);
    assert.equal(await bob.decrypt(alice, await alice.encrypt(bob, 'one')), 'one');
    await assert.rejects(bob.decrypt(mallory, await mallory.encrypt(bob, 'two')), { code: 'undecryptable' });
    assert.equal(await bob.has(mallory), false);
    const { one_time_prekeys } = await bob.run((tx) => bob.adapter.publicKeys(tx));
    assert.equal(one_time_prekeys.length, 9);
  },

  async 'without one-time keys it works, and a first message cannot be replayed'(make, assert) {
    const [alice, bob] = [await Party.create(make), await Party.create(make)];
    await alice.open(bob, bob.bundle({ exhausted: true }));
    const first = await alice.encrypt(bob, 'one');
    assert.equal(await bob.decrypt(alice, first), 'one');
    await assert.rejects(bob.decrypt(alice, first), { code: 'undecryptable' });
    // Nor after Bob has lost the session.
    await bob.run((tx) => bob.adapter.dropSessions(tx, alice.address.deviceId));
    assert.equal(await bob.has(alice), false);
    await assert.rejects(bob.decrypt(alice, first), { code: 'undecryptable' });
    // Others may use the same keys.
    const carol = await Party.create(make);
    await carol.open(bob, bob.bundle({ exhausted: true }));
    assert.equal(await bob.decrypt(carol, await carol.encrypt(bob, 'two')), 'two');
  },

  async 'a bundle is refused if a signature does not verify or the identity has changed'(make, assert) {
    const [alice, bob, eve] = [await Party.create(make), await Party.create(make), await Party.create(make)];
    const bad = (changes) => alice.open(bob, { ...bob.bundle(), ...changes });
    const { signed_prekey, identity_key } = bob.bundle();
    await assert.rejects(bad({ signed_prekey: { ...signed_prekey, signature: flip(signed_prekey.signature, 3) } }), { code: 'untrusted' });
    await assert.rejects(bad({ signed_prekey: { ...signed_prekey, public_key: flip(signed_prekey.public_key, -3) } }), { code: 'untrusted' });
    await assert.rejects(bad({ signed_prekey: eve.bundle().signed_prekey }), { code: 'untrusted' });
    await assert.rejects(bad({ identity_key: eve.identityKey }), { code: 'untrusted' });
    await assert.rejects(bad({ identity_key: '' }), { code: 'untrusted' });
    await assert.rejects(bad({ device_id: eve.address.deviceId }), { code: 'untrusted' });
    if (alice.adapter.pq) {
      const { pq_prekey } = bob.bundle();
      await assert.rejects(bad({ pq_prekey: { ...pq_prekey, signature: flip(pq_prekey.signature, 3) } }), { code: 'untrusted' });
      await assert.rejects(bad({ pq_prekey: null }), { code: 'untrusted' });
    }
    assert.equal(await alice.has(bob), false);
    await alice.open(bob);
    // The server gives Eve's keys for Bob's device.
    const theirs = eve.bundle();
    await assert.rejects(alice.open(bob, { ...theirs, device_id: bob.address.deviceId }), { code: 'untrusted' });
    assert.equal(identity_key, bob.identityKey);
    await alice.run((tx) => alice.adapter.dropSessions(tx));
    await assert.rejects(alice.open(bob, { ...theirs, device_id: bob.address.deviceId }), { code: 'untrusted' });
    await alice.open(bob);
  },

  async 'a first message of another identity is not taken for that of a known device'(make, assert) {
    const [alice, bob, eve] = [await Party.create(make), await Party.create(make), await Party.create(make)];
    await alice.open(bob);
    await bob.decrypt(alice, await alice.encrypt(bob, 'one'));
    // Eve takes Alice's address.
    eve.address = alice.address;
    await eve.open(bob);
    await assert.rejects(bob.decrypt(alice, await eve.encrypt(bob, 'I am Alice')), { code: 'untrusted' });
    assert.equal(await bob.decrypt(alice, await alice.encrypt(bob, 'two')), 'two');
  },

  async 'signed prekeys are rotated, and old ones work until they are dropped'(make, assert) {
    const [alice, bob] = [await Party.create(make), await Party.create(make)];
    await alice.open(bob, bob.bundle({ exhausted: true }));
    const early = await alice.encrypt(bob, 'early');
    const before = bob.published.signed_prekey.key_id;
    const now = Date.now();
    await bob.publish({ signed: true }, now + 7 * DAY);
    assert.equal(bob.published.signed_prekey.key_id > before, true);
    const publicKeys = () => bob.run((tx) => bob.adapter.publicKeys(tx));
    assert.deepEqual((await publicKeys()).signed_prekey, bob.published.signed_prekey);
    if (bob.adapter.pq) assert.deepEqual((await publicKeys()).pq_last_resort, bob.published.pq_last_resort);
    await bob.run((tx) => bob.adapter.dropReplacedKeys(tx, now + 6 * DAY));
    assert.equal(await bob.decrypt(alice, early), 'early');
    await bob.run((tx) => bob.adapter.dropSessions(tx));
    await alice.open(bob, bob.bundle({ exhausted: true }));
    await bob.run((tx) => bob.adapter.dropReplacedKeys(tx, now + 8 * DAY));
    assert.equal(await bob.decrypt(alice, await alice.encrypt(bob, 'late')), 'late');
    const carol = await Party.create(make);
    await carol.open(bob, bob.bundle({ exhausted: true }));
    const unread = await carol.encrypt(bob, 'x');
    await bob.publish({ signed: true }, now + 9 * DAY);
    await bob.run((tx) => bob.adapter.dropReplacedKeys(tx, now + 60 * DAY));
    await assert.rejects(bob.decrypt(carol, unread), { code: 'undecryptable' });
  },

  async 'ids grow, and can be made to jump'(make, assert) {
    const bob = await Party.create(make, 3);
    const ids = (keys) => [...(keys.one_time_prekeys ?? []), ...(keys.pq_one_time ?? [])].map(({ key_id }) => key_id);
    const first = ids(bob.published);
    const second = ids(await bob.publish({ oneTime: 3, pqOneTime: 3 }));
    assert.equal(new Set([...first, ...second]).size, first.length + second.length);
    const third = await bob.publish({ signed: true, oneTime: 1, minId: 50_000 });
    assert.equal(third.signed_prekey.key_id >= 50_000 && third.one_time_prekeys[0].key_id >= 50_000, true);
    const held = await bob.run((tx) => bob.adapter.publicKeys(tx));
    assert.equal(held.one_time_prekeys.length, 7);
    await bob.run((tx) => bob.adapter.dropKeys(tx, 'one_time', [third.one_time_prekeys[0].key_id]));
    if (bob.adapter.pq) await bob.run((tx) => bob.adapter.dropKeys(tx, 'pq_one_time', [held.pq_one_time[0].key_id]));
    const left = await bob.run((tx) => bob.adapter.publicKeys(tx));
    assert.equal(left.one_time_prekeys.length, 6);
    if (bob.adapter.pq) assert.equal(left.pq_one_time.length, held.pq_one_time.length - 1);
  },

  async 'a failed decryption changes nothing'(make, assert) {
    const { alice, bob } = await pair(make);
    const first = await alice.encrypt(bob, 'one');
    const before = await bob.run((tx) => tx.list(''));
    await assert.rejects(bob.decrypt(alice, { type: 3, content: first.content.slice(0, -1) }));
    assert.deepEqual(await bob.run((tx) => tx.list('')), before);
    assert.equal(await bob.decrypt(alice, first), 'one');
  },
};

/** Steps of `schedule` of two parties that open sessions, write, and get messages late, twice or never. All that arrives must decrypt, once. */
export async function randomSchedule(make, assert, random, steps) {
  const parties = [await Party.create(make, 40), await Party.create(make, 40)];
  const below = (n) => Math.floor(random() * n);
  const way = [];
  const decrypted = [];
  let n = 0;
  await parties[0].open(parties[1]);
  for (let step = 0; step < steps; step++) {
    const choice = random();
    const from = below(2);
    const [sender, receiver] = [parties[from], parties[1 - from]];
    if (choice < 0.5) {
      if (!(await sender.has(receiver))) await sender.open(receiver, receiver.bundle({ exhausted: random() < 0.2 }));
      const text = `message ${n++}`;
      way.push({ step, sender, receiver, text, sealed: await sender.encrypt(receiver, text) });
    } else if (choice < 0.9) {
      // Mostly in order, sometimes not; but not so late that libraries have deleted the keys of its chain.
      const at = random() < 0.7 || step - way[0]?.step > 8 ? 0 : below(way.length);
      const [message] = way.splice(at, 1);
      if (!message || random() < 0.05) continue;
      assert.equal(await message.receiver.decrypt(message.sender, message.sealed), message.text);
      decrypted.push(message);
    } else if (choice < 0.97) {
      const message = decrypted[below(decrypted.length)];
      if (message) await assert.rejects(message.receiver.decrypt(message.sender, message.sealed), { name: 'CryptoError' });
    } else {
      await sender.open(receiver, receiver.bundle({ exhausted: random() < 0.5 }));
    }
  }
  return decrypted.length;
}

/** A small seeded generator (mulberry32). */
export function seeded(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

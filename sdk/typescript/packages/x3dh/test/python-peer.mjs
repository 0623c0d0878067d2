// A device in Python, and the conversation that it has with one of this package.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { seeded } from '../../../test-support/adapter-contract.mjs';

const python = process.env.PYTHON_X3DH;
export const skipPython = python ? false : 'no Python with X3DH and DoubleRatchet: name it in PYTHON_X3DH';
const children = [];

/** Ends all Python processes. */
export const endPeers = () => children.forEach((child) => child.kill());

export class Peer {
  static async create(deviceId) {
    const peer = new Peer();
    const child = spawn(python, [fileURLToPath(new URL('peer.py', import.meta.url))], { stdio: ['pipe', 'pipe', 'inherit'] });
    children.push(child);
    peer.lines = createInterface(child.stdout)[Symbol.asyncIterator]();
    peer.child = child;
    peer.address = { userId: deviceId, deviceId };
    peer.keys = await peer.call('create', deviceId);
    return peer;
  }

  async call(...request) {
    this.child.stdin.write(`${JSON.stringify(request)}\n`);
    const { ok, error } = JSON.parse((await this.lines.next()).value);
    if (error) throw new Error(error);
    return ok;
  }

  bundle(exhausted = false) {
    const { one_time_prekeys, ...keys } = this.keys;
    return { device_id: this.address.deviceId, registration_id: 1, suite: 'ed25519-x3dh', ...keys, one_time_prekey: exhausted ? null : one_time_prekeys.shift(), pq_prekey: null };
  }

  async encrypt(text) {
    const { type, content } = await this.call('encrypt', text);
    return { type, content: new Uint8Array(Buffer.from(content, 'base64')) };
  }

  decrypt(sender, { type, content }) {
    return this.call('decrypt', sender.address.deviceId, type, Buffer.from(content).toString('base64'));
  }
}

/** A conversation of `alice`, a party of this package, with `bob`, a `Peer`: in order, out of order, skipped, lost and repeated. */
export async function conversation(alice, bob, openedByAlice) {
  const toBob = async (...texts) => {
    const sealed = [];
    for (const text of texts) sealed.push(await alice.encrypt(bob, text));
    return sealed;
  };
  const read = (sealed) => bob.decrypt(alice, sealed);
  if (openedByAlice) {
    const [one, two, three] = await toBob('one', 'two', 'three');
    assert.equal(one.type, 3);
    assert.equal(await read(one), 'one');
    assert.equal(await read(three), 'three');
    assert.equal(await read(two), 'two');
    await assert.rejects(read(two));
  } else {
    const sealed = [await bob.encrypt('one'), await bob.encrypt('two'), await bob.encrypt('three')];
    for (const i of [0, 2, 1]) assert.equal(await alice.decrypt(bob, sealed[i]), ['one', 'two', 'three'][i]);
    await assert.rejects(alice.decrypt(bob, sealed[1]), { code: 'undecryptable' });
    await assert.rejects(alice.decrypt(bob, sealed[0]), { code: 'undecryptable' });
  }
  const random = seeded(7);
  const way = [];
  for (let i = 0; i < 80; i++) {
    const fromAlice = random() < 0.5;
    const text = `message ${i}`;
    way.push({ i, fromAlice, text, sealed: fromAlice ? (await toBob(text))[0] : await bob.encrypt(text) });
    while (way.length > 0 && (random() < 0.5 || i - way[0].i > 6)) {
      const [message] = way.splice(i - way[0].i > 6 ? 0 : Math.floor(random() * way.length), 1);
      if (random() < 0.1) continue;
      assert.equal(message.fromAlice ? await read(message.sealed) : await alice.decrypt(bob, message.sealed), message.text);
      if (random() < 0.2) await assert.rejects(message.fromAlice ? read(message.sealed) : alice.decrypt(bob, message.sealed));
    }
  }
  const long = await toBob(...Array.from({ length: 300 }, (_, i) => `long ${i}`));
  assert.equal(await read(long[299]), 'long 299');
  for (const i of [0, 150, 298]) assert.equal(await read(long[i]), `long ${i}`);
}

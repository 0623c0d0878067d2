// Crashes at every single write: the client stops before or after the n-th write of its storage, and is started again.
//
// Alice writes to Bob, and Bob answers; one of the two crashes, for every n. At the end all messages have been handled once, in order,
// and no claim has taken a second key.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import WebSocket from 'ws';
import { Server, skip } from '../../../test-support/server.mjs';
import { toyCrypto } from '../../../test-support/toy.mjs';
import { until } from '../../../test-support/until.mjs';

let server;
before(async () => !skip && (server = await Server.start()));
after(() => server?.stop());

const MESSAGES = 3;

/** A storage that crashes at its n-th write: from then on every use fails, as if the process had ended. */
function crashing(inner, n, stored, crashed) {
  let count = 0;
  let over = false;
  const use = async (work) => {
    if (over) return new Promise(() => {});
    return work();
  };
  return {
    get: (key) => use(() => inner.get(key)),
    list: (prefix) => use(() => inner.list(prefix)),
    write: (batch) =>
      use(async () => {
        if (++count === n) {
          over = true;
          if (stored) await inner.write(batch);
          crashed();
          return new Promise(() => {});
        }
        await inner.write(batch);
      }),
  };
}

/** A person whose client is started again whenever it crashes. */
class Person {
  seen = [];

  constructor(name, crashAt, stored) {
    this.email = `${name}@crash.example`;
    this.memory = memoryStorage();
    this.crashAt = crashAt;
    this.stored = stored;
  }

  async run(work) {
    this.work = work;
    await this.#start(this.crashAt);
  }

  async #start(crashAt) {
    this.storage = crashing(this.memory, crashAt, this.stored, () => {
      const { client } = this;
      // The process is gone, and with it its connection.
      void client.close().catch(() => {});
      this.crashed = true;
      void this.#start(0);
    });
    const client = new SealwireClient({
      url: server.url, storage: this.storage, crypto: toyCrypto(), WebSocket, random: () => 0.001,
    });
    this.client = client;
    client.on('error', ({ error, during }) => (this.failure ??= `${during}: ${error.stack}`));
    client.on('failed', ({ error }) => (this.failure ??= `failed: ${error.message}`));
    client.on('undecryptable', (report) => (this.failure ??= `undecryptable: ${report.message}`));
    client.on('message', (m) => {
      // The number of the message, so that the order can be checked.
      m.write(`${String(m.seq).padStart(9, '0')}`, m.text);
    });
    await this.work?.(client, this);
  }

  async texts() {
    return (await this.memory.list('data/')).map(([, text]) => text);
  }
}

async function signedIn(person) {
  const { client } = person;
  await server.signIn(client, person.email);
  await client.close();
}

/** Sends what is still to be sent, as an app does that knows the ids of its messages. */
async function sendAll(client, to, prefix) {
  await client.connect();
  const sends = [];
  for (let i = 0; i < MESSAGES; i++) {
    const messageId = `00000000-0000-4000-8000-${prefix}${String(i).padStart(4, '0')}`;
    sends.push(client.send(to, `${prefix} ${i}`, { messageId }));
  }
  await Promise.all(sends);
}

let run = 0;

async function conversation(crashAt, who, stored) {
  const suffix = `${run++}`;
  const people = { alice: new Person(`alice${suffix}`, 0, stored), bob: new Person(`bob${suffix}`, 0, stored) };
  const { alice, bob } = people;
  for (const person of [alice, bob]) {
    await person.run(null);
    await signedIn(person);
  }
  const ids = { alice: (await alice.memory.get('account')).userId, bob: (await bob.memory.get('account')).userId };
  people[who].crashAt = crashAt;
  const done = [];
  const write = (person, to, prefix) =>
    person.run((client, { crashed }) => {
      const sent = sendAll(client, to, prefix);
      done.push(sent.catch(() => {}));
      if (crashed) person.recovered = sent;
      return undefined;
    });
  const expected = (prefix) => Array.from({ length: MESSAGES }, (_, i) => `${prefix} ${i}`);
  await write(bob, ids.alice, '0000000b');
  await write(alice, ids.bob, '0000000a');
  const complete = async () => (await alice.texts()).length >= MESSAGES && (await bob.texts()).length >= MESSAGES;
  await until(async () => alice.failure || bob.failure || (await complete()), `crash of ${who} at write ${crashAt}, ${stored ? 'after' : 'before'} it`);
  await until(async () => (await Promise.all([alice, bob].map((person) => person.client.pending()))).flat().length === 0);
  assert.equal(alice.failure, undefined);
  assert.equal(bob.failure, undefined);
  assert.deepEqual(await bob.texts(), expected('0000000a'));
  assert.deepEqual(await alice.texts(), expected('0000000b'));
  // Nobody took a second key of anybody. Whether both opened an encrypted session, or one of them, depends on who was first.
  for (const person of [alice, bob]) {
    const { one_time } = await person.client.request('keys.status');
    assert(one_time >= 99, `${one_time} keys are left`);
  }
  for (const person of [alice, bob]) {
    await until(async () => (await person.memory.list('inbox/')).length === 0 && (await person.memory.list('outbox/')).length === 0);
    await person.client.close().catch(() => {});
  }
  return { crashed: people[who].crashed === true };
}

for (const who of ['alice', 'bob']) {
  for (const stored of [false, true]) {
    test(`${who} crashes ${stored ? 'after' : 'before'} each write`, { skip }, async () => {
      let crashes = 0;
      for (let n = 1; ; n++) {
        const { crashed } = await conversation(n, who, stored);
        if (!crashed) break;
        crashes++;
      }
      assert(crashes > 10, `${crashes} crashes`);
    });
  }
}

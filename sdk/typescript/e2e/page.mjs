// The script of the pages in the tests: an app that sends numbered messages and keeps what it receives.
//
// It works as a careful app does. The ids of its messages follow from their numbers, so after a reload it sends again what was not
// confirmed; and it stores what it receives in the same write that notes that the message was handled.

import { SealwireClient } from '@sealwire/client';
import { indexedDbStorage } from '@sealwire/client/browser';
import { x3dhCrypto } from '@sealwire/x3dh';
import { storageContract } from '../test-support/storage-contract.mjs';
import { adapterContract, Party, randomSchedule, seeded } from '../test-support/adapter-contract.mjs';

const problems = [];
const settings = JSON.parse(localStorage.getItem('settings') ?? 'null');

/** The id of message `i` of this app. */
const messageId = (prefix, i) => `${prefix}-0000-4000-8000-${String(i).padStart(12, '0')}`;

function start({ url, database, longWaits }) {
  const random = () => (longWaits ? 0.999 : Math.random() * 0.05);
  const client = new SealwireClient({ url, storage: indexedDbStorage(database), crypto: x3dhCrypto(), random });
  client.on('error', ({ error, during }) => problems.push(`${during}: ${error.message}`));
  client.on('undecryptable', ({ message }) => problems.push(`undecryptable: ${message}`));
  client.on('untrusted', ({ message }) => problems.push(`untrusted: ${message}`));
  client.on('message', (m) => {
    if (m.ephemeral) return;
    app.shown.push(m.text);
    m.write(`in/${String(m.seq).padStart(9, '0')}`, m.text);
  });
  return client;
}

const app = {
  problems,
  shown: [],
  client: settings && start(settings),

  /** Stores the settings for this page and the next ones. */
  configure(settings) {
    localStorage.setItem('settings', JSON.stringify(settings));
    app.client = start(settings);
  },

  /** Sends the messages from the first that was not confirmed, or `from`, up to `count`, some at a time. */
  async sendAll({ to, prefix, count, atOnce = 5, from }) {
    let next = from ?? (await app.client.data.get('sent')) ?? 0;
    const under = [];
    for (; next < count; next++) {
      const i = next;
      under.push(app.client.send(to, `${prefix} ${i}`, { messageId: messageId(prefix, i) }).then(() => app.client.data.write({ sent: i + 1 })));
      if (under.length >= atOnce) await under.shift();
    }
    await Promise.all(under);
  },

  async received() {
    return (await app.client.data.list('in/')).map(([, text]) => text);
  },

  storageContract: Object.keys(storageContract),
  adapterContract: Object.keys(adapterContract),
  async checkStorage(what) {
    const storage = indexedDbStorage(`contract-${what}`);
    await storageContract[what](storage, assert);
    await storage.close();
  },
  async checkAdapter(what) {
    await adapterContract[what](x3dhCrypto, assert);
  },
  /** Calls a method of a party that lives in this page. Bytes go in and out as lists of numbers. */
  async party(method, ...args) {
    if (method === 'create') {
      app.alice = await Party.create(x3dhCrypto);
      return app.alice.address;
    }
    const revived = args.map((arg) => (arg?.content ? { ...arg, content: Uint8Array.from(arg.content) } : arg));
    const result = await app.alice[method](...revived);
    return result?.content ? { ...result, content: [...result.content] } : result;
  },
  async randomSchedule(seed) {
    return randomSchedule(x3dhCrypto, assert, seeded(seed), 150);
  },
};

/** What the contracts need of node:assert. */
const plain = (value) =>
  value instanceof Uint8Array ? { bytes: [...value] } : Array.isArray(value) ? value.map(plain) : value && typeof value === 'object'
    ? Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, plain(inner)]).sort())
    : value === undefined ? '(undefined)' : value;
const assert = {
  equal(a, b) {
    if (a !== b) throw new Error(`${a} is not ${b}`);
  },
  deepEqual(a, b) {
    const [x, y] = [JSON.stringify(plain(a)), JSON.stringify(plain(b))];
    if (x !== y) throw new Error(`${x} is not ${y}`);
  },
  async rejects(promise, fields = {}) {
    let error;
    try {
      await promise;
    } catch (caught) {
      error = caught;
    }
    if (!error) throw new Error('it did not fail');
    for (const [name, value] of Object.entries(fields)) assert.equal(error[name], value);
  },
};

window.app = app;
if (settings?.onLoad) app.client.connect().then(() => app.sendAll(settings.onLoad)).catch((error) => problems.push(`send: ${error.message}`));

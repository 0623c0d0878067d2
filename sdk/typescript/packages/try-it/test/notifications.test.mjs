// What notifications say, and the service worker: which tabs it asks, what it shows, and what a click does. The worker runs in a context of its
// own with a stand-in for the browser.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { createContext, runInContext } from 'node:vm';
import { build } from 'esbuild';

async function bundle(path, format) {
  const { outputFiles } = await build({ entryPoints: [fileURLToPath(new URL(`../${path}`, import.meta.url))], bundle: true, format, write: false });
  return outputFiles[0].text;
}

const script = await bundle('worker/worker.ts', 'iife');

// The browser, as the model sees it. A worker is active at once.
const registration = { active: { state: 'activated' }, getNotifications: async () => [], unregister: async () => true };
globalThis.Notification = { permission: 'granted', requestPermission: async () => 'granted' };
globalThis.ServiceWorkerRegistration = class {
  showNotification() {}
};
Object.defineProperty(globalThis, 'navigator', { value: { serviceWorker: { register: async () => registration, getRegistration: async () => registration } }, configurable: true });
let kept = new Map();
globalThis.caches = {
  open: async () => ({
    put: async (url, response) => void kept.set(url, await response.text()),
    match: async (url) => (kept.has(url) ? new Response(kept.get(url)) : undefined),
    delete: async (url) => kept.delete(url),
  }),
  delete: async () => true,
};
const { contentOf, Notifications } = await import(`data:text/javascript,${encodeURIComponent(await bundle('src/model/notifications.ts', 'esm'))}`);
const ORIGIN = 'http://127.0.0.1:8080';

/** A tab of a person, or of nobody who is signed in; a frozen one answers nothing. */
class Tab {
  posts = [];
  focused = 0;

  constructor(person, { visible = false, frozen = false } = {}) {
    Object.assign(this, { person, visible, frozen });
  }

  postMessage(post, [port] = []) {
    if (this.frozen) return;
    if (post.kind === 'who') port.postMessage({ mine: post.person === this.person, visible: this.visible });
    else this.posts.push(structuredClone(post));
  }

  async focus() {
    this.focused++;
  }
}

/** The service worker of the person `p1`. */
class Worker {
  shown = [];
  opened = [];
  kept = new Map();
  #handlers = {};

  constructor(...tabs) {
    const { kept } = this;
    const cache = {
      put: async (url, response) => void kept.set(url, await response.text()),
      match: async (url) => (kept.has(url) ? new Response(kept.get(url)) : undefined),
    };
    const self = {
      registration: { scope: `${ORIGIN}/try-it/people/p1/`, showNotification: async (title, options) => void this.shown.push([title, options]) },
      clients: { matchAll: async () => tabs, openWindow: async (url) => void this.opened.push(url) },
      addEventListener: (event, handler) => (this.#handlers[event] = handler),
      skipWaiting: async () => {},
    };
    // A tab that does not answer at once does not answer.
    const setTimeout = (work) => setImmediate(() => setImmediate(() => setImmediate(work)));
    const caches = { open: async (name) => (assert.equal(name, 'try-it:p1'), cache) };
    runInContext(script, createContext({ self, caches, setTimeout, Response, MessageChannel: Channel }));
    kept.set('/try-it/people/p1/address', 'alice@example.org');
  }

  async #dispatch(name, event) {
    let done;
    this.#handlers[name]({ ...event, waitUntil: (promise) => (done = promise) });
    await done;
  }

  push(text) {
    return this.#dispatch('push', { data: text === null ? null : { json: () => JSON.parse(text) } });
  }

  async click(data) {
    let closed = 0;
    await this.#dispatch('notificationclick', { notification: { data, close: () => closed++ } });
    assert.equal(closed, 1);
  }
}

/** A channel whose second port is only written to. */
class Channel {
  port1 = { onmessage: null };
  port2 = { postMessage: (data) => this.port1.onmessage({ data }) };
}

const WAKE = '{"sealwire":"wake"}';
const CONFIRM = '{"sealwire":"confirm","nonce":"n"}';
const titles = ({ shown }) => shown.map(([title]) => title);

test('a notification names a sender whom the server confirms, and counts what was not read', () => {
  const bob = { address: 'bob@example.org', confirmed: true };
  assert.deepEqual(contentOf(bob, { text: 'Lunch?' }, 1), { title: 'Bob', body: 'Lunch?' });
  assert.deepEqual(contentOf(bob, { text: 'At noon?' }, 2), { title: 'Bob (2)', body: 'At noon?' });
  assert.deepEqual(contentOf({ ...bob, confirmed: false }, { text: 'It is me' }, 1), { title: 'Somebody new', body: 'It is me' });
  assert.equal(contentOf(bob, { text: '🎉'.repeat(400) }, 1).body, `${'🎉'.repeat(300)}…`);
});

/** The notifications of a person whose server and push service answer when the test says so. */
function openModel() {
  kept = new Map();
  const records = new Map();
  const server = { state: 'none', asked: [], confirming: Promise.resolve() };
  const push = {
    status: async () => ({ state: server.state }),
    subscribe: () => new Promise((resolve) => server.asked.push(resolve)),
    receive: async () => {
      await server.confirming;
      server.state = 'active';
      return 'confirmed';
    },
    remove: async () => void (server.state = 'none'),
  };
  const store = { get: (key) => records.get(key), put: async (entries) => Object.entries(entries).forEach(([key, value]) => records.set(key, value)) };
  const model = new Notifications('p1', { push, state: 'connected', leading: true, account: { email: 'alice@example.org' } }, store, {}, () => {});
  return { model, server };
}

const turns = async (n = 20) => {
  for (let i = 0; i < n; i++) await new Promise((resolve) => setImmediate(resolve));
};

test('a confirmation that overtakes the reply to the registration counts, and so does one beside another attempt', async () => {
  const { model, server } = openModel();
  await model.turnOn();
  await turns();
  assert.deepEqual(model.choice, { on: true });
  // The push with the nonce was answered by another tab meanwhile.
  server.state = 'active';
  server.asked[0]('unconfirmed');
  await turns();
  assert.deepEqual(model.choice, { on: true, closed: 'active' });

  // A confirmation was kept, and is still under way when the settings are opened, which try once more.
  const other = openModel();
  await other.model.turnOn();
  await turns();
  other.server.asked[0]('unconfirmed');
  await turns();
  assert.deepEqual(other.model.choice, { on: true, closed: 'waiting' });
  kept.set('/try-it/people/p1/confirmation', CONFIRM);
  let confirm;
  other.server.confirming = new Promise((resolve) => (confirm = resolve));
  const first = other.model.resume();
  await turns();
  const second = other.model.resume();
  await turns();
  other.server.asked[1]('unconfirmed');
  await second;
  assert.deepEqual(other.model.choice, { on: true, closed: 'waiting' });
  confirm();
  await turns();
  other.server.asked[2]('active');
  await first;
  assert.deepEqual(other.model.choice, { on: true, closed: 'active' });
});

test('a push while no tab is open says that there is a message, and for whom', async () => {
  const worker = new Worker();
  await worker.push(WAKE);
  const [[title, { body, tag }]] = worker.shown;
  assert.deepEqual([title, body, tag], ['New message', 'For alice@example.org. Open it to read.', 'push']);
  assert.equal(worker.shown.length, 1);
});

test('nothing is shown if the person is looking at the page, but another person does not count', async () => {
  const [alice, bob] = [new Tab('p1', { visible: true }), new Tab('p2', { visible: true })];
  const open = new Worker(bob, alice);
  await open.push(WAKE);
  assert.deepEqual([titles(open), alice.posts, bob.posts], [[], [{ kind: 'push', content: { sealwire: 'wake' } }], []]);
  for (const tabs of [[bob], [new Tab(null, { visible: true })], [bob, new Tab('p1')]]) {
    const worker = new Worker(...tabs);
    await worker.push(WAKE);
    assert.deepEqual(titles(worker), ['New message']);
  }
});

test('a confirmation goes to a tab of the person, or is kept for the next one', async () => {
  const tab = new Tab('p1');
  const open = new Worker(new Tab('p2'), tab);
  await open.push(CONFIRM);
  assert.deepEqual(tab.posts, [{ kind: 'push', content: { sealwire: 'confirm', nonce: 'n' } }]);
  assert.deepEqual([titles(open), open.kept.get('/try-it/people/p1/confirmation')], [['Notifications are on'], undefined]);
  for (const tabs of [[], [new Tab('p2')], [new Tab('p1', { frozen: true })]]) {
    const worker = new Worker(...tabs);
    await worker.push(CONFIRM);
    assert.deepEqual([titles(worker), worker.kept.get('/try-it/people/p1/confirmation')], [['Notifications are on'], CONFIRM]);
  }
});

test('a push that says nothing known is ignored', async () => {
  const tab = new Tab('p1');
  const worker = new Worker(tab);
  for (const text of [null, 'null', '{}', '[]', '"wake"', '{"sealwire":"other"}', 'no JSON']) await worker.push(text);
  assert.deepEqual([worker.shown, tab.posts], [[], []]);
});

test('a click shows the tab of the person with the conversation, or opens one', async () => {
  const [first, second, other] = [new Tab('p1'), new Tab('p1'), new Tab('p2')];
  const worker = new Worker(other, first, second);
  await worker.click({ peer: 'u1' });
  assert.deepEqual([first.posts, first.focused], [[{ kind: 'open', peer: 'u1' }], 1]);
  await worker.click(null);
  assert.deepEqual([first.posts[1], first.focused], [{ kind: 'open', peer: null }, 2]);
  assert.deepEqual([second.focused, other.focused, worker.opened], [0, 0, []]);
  const closed = new Worker(other, new Tab('p1', { frozen: true }));
  await closed.click({ peer: 'u1' });
  await closed.click(undefined);
  assert.deepEqual(closed.opened, ['/#open=p1/u1', '/#open=p1']);
});

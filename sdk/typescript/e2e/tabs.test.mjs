// Several tabs share one device: one leads, the others go through it, and when it is closed the next takes over.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { x3dhCrypto } from '@sealwire/x3dh';
import WebSocket from 'ws';
import { seeded } from '../test-support/adapter-contract.mjs';
import { Proxy } from '../test-support/proxy.mjs';
import { Server, skip as skipServer } from '../test-support/server.mjs';
import { newSeed, openBrowser, Pages, skipBrowser, until } from './support.mjs';

const skip = skipServer || skipBrowser;

let pages;
let server;
let proxy;
let browser;
let bob;
let account;
const fromAlice = [];
before(async () => {
  if (skip) return;
  pages = await Pages.start('page.mjs');
  server = await Server.start({ SEALWIRE__SERVER__ALLOWED_ORIGINS: pages.origin });
  proxy = await Proxy.start(server.port);
  browser = await openBrowser();
  bob = new SealwireClient({ url: server.url, storage: memoryStorage(), crypto: x3dhCrypto(), WebSocket });
  bob.on('message', (m) => fromAlice.push(m.text));
  await server.signIn(bob, 'bob@tabs.example');
});
after(async () => {
  await browser?.close();
  await bob?.close();
  await proxy?.stop();
  await server?.stop();
  await pages?.stop();
});

async function open() {
  const page = await browser.context.newPage();
  await page.goto(pages.origin);
  await page.waitForFunction('window.app');
  return page;
}

const leading = async (tabs) => (await Promise.all(tabs.map((tab) => tab.evaluate('app.client.leading')))).map(Number);

test('signing in, in a tab that does not lead', { skip }, async () => {
  const settings = { url: proxy.url, database: 'tabs' };
  const first = await open();
  await first.evaluate((settings) => window.app.configure(settings), settings);
  await assert.rejects(first.evaluate('app.client.connect()'), /signed out/);
  const second = await open();
  await until(async () => (await leading([first, second])).join() === '1,0');
  const code = await server.code('alice@tabs.example', () => second.evaluate("app.client.signIn.request('alice@tabs.example')"));
  const refused = await second.evaluate("app.client.signIn.verify('00000000').catch(({ name, code, retryable }) => ({ name, code, retryable }))");
  assert.deepEqual(refused, { name: 'ServerError', code: 'invalid_code', retryable: false });
  ({ account } = await second.evaluate((code) => window.app.client.signIn.verify(code), code));
  for (const tab of [first, second]) {
    assert.equal(await tab.evaluate('app.client.state'), 'connected');
    assert.deepEqual(await tab.evaluate('app.client.account'), account);
  }
  await Promise.all([first.close(), second.close()]);
});

test('messages are sent from and shown in all tabs, and stored once', { skip }, async () => {
  const tabs = [await open(), await open(), await open()];
  await Promise.all(tabs.map((tab) => tab.evaluate('app.client.connect()')));
  assert.equal((await leading(tabs)).reduce((a, b) => a + b), 1);
  for (const [i, tab] of tabs.entries()) {
    const sent = await tab.evaluate(([to, text]) => window.app.client.send(to, text), [bob.account.userId, `from tab ${i}`]);
    assert.equal(sent.stored, 1);
  }
  await until(() => fromAlice.length === 3);
  await bob.send(account.userId, 'to all tabs');
  for (const tab of tabs) await until(async () => (await tab.evaluate('app.shown')).join() === 'to all tabs');
  for (const tab of tabs) assert.deepEqual(await tab.evaluate('app.received()'), ['to all tabs']);
  const aborted = await tabs[2].evaluate("app.client.request('devices.list', {}, { signal: AbortSignal.abort() }).catch(({ name }) => name)");
  assert.equal(aborted, 'AbortError');
  await Promise.all(tabs.map((tab) => tab.close()));
});

test('the leading tab is closed in mid-send, again and again', { skip }, async () => {
  const random = seeded(newSeed());
  fromAlice.length = 0;
  // The lock goes from tab to tab in the order in which they asked for it; the tab that writes is the last.
  const tabs = [];
  for (let i = 0; i < 7; i++) {
    tabs.push(await open());
    await tabs.at(-1).evaluate('app.client.connect()');
  }
  const writer = tabs.pop();
  const COUNT = 200;
  let done = false;
  const sending = writer
    .evaluate(([to, count]) => window.app.sendAll({ to, prefix: '0000000c', count, atOnce: 4 }), [bob.account.userId, COUNT])
    .finally(() => (done = true));
  let closed = 0;
  for (const leader of tabs) {
    await until(() => leader.evaluate('app.client.leading'), 'the next tab leads');
    await new Promise((resolve) => setTimeout(resolve, random() * 100));
    if (!done) closed++;
    await leader.close();
  }
  const state = () => writer.evaluate('({ ...app.client.status, leading: app.client.leading, problems: app.problems })');
  await until(() => done).catch(async (error) => assert.fail(`${error.message}: ${JSON.stringify(await state())}, bob has ${fromAlice.length}`));
  await sending;
  await until(() => fromAlice.length >= COUNT);
  assert.deepEqual(fromAlice, Array.from({ length: COUNT }, (_, i) => `0000000c ${i}`));
  assert(closed >= 3, `${closed} leading tabs were closed in mid-send`);
  assert.equal(await writer.evaluate('app.client.leading'), true);
  assert.deepEqual(await writer.evaluate('app.problems'), []);
  await writer.close();
});

test('the connections that closed tabs had begun come late, and the tab that leads comes back after each', { skip }, async () => {
  fromAlice.length = 0;
  const tabs = [await open(), await open(), await open()];
  for (const tab of tabs) await tab.evaluate('app.client.connect()');
  const last = tabs.pop();
  let welcomes = 0;
  await last.exposeFunction('welcomed', () => {
    welcomes++;
    if (proxy.held > 0) proxy.release();
  });
  const sending = last.evaluate(([to, count]) => window.app.sendAll({ to, prefix: '0000000e', count, from: 0 }), [bob.account.userId, 20]);
  proxy.mode = 'hold';
  proxy.cut();
  for (const [i, tab] of tabs.entries()) {
    await until(() => proxy.held === i + 1, `the connection of tab ${i} is held`);
    // From now on the last tab has the connection.
    if (i === 1) await last.evaluate("app.client.on('welcome', () => window.welcomed())");
    if (i === 1) proxy.mode = 'pass';
    await tab.close();
  }
  await until(() => welcomes === 3, () => `it has come back: ${welcomes} welcomes`);
  await sending;
  await until(() => fromAlice.length === 20);
  assert.deepEqual(fromAlice, Array.from({ length: 20 }, (_, i) => `0000000e ${i}`));
  assert.equal(await last.evaluate('app.client.state'), 'connected');
  assert.deepEqual(await last.evaluate('app.problems'), []);
  await last.close();
});

test('a client that is closed leaves its calls to the next tab, and the connection to those that want it', { skip }, async () => {
  fromAlice.length = 0;
  const [leader, idle, writer] = [await open(), await open(), await open()];
  await leader.evaluate('app.client.connect()');
  // The second tab takes part, and does not want to be connected.
  await idle.evaluate("app.client.data.get('sent')");
  await writer.evaluate('app.client.connect()');
  proxy.mode = 'hang';
  const sending = writer.evaluate(([to, count]) => window.app.sendAll({ to, prefix: '0000000f', count, from: 0 }), [bob.account.userId, 20]);
  const asking = writer.evaluate("app.client.request('devices.list')");
  await until(async () => (await writer.evaluate('app.client.pending()')).length === 5);
  // The connection that hangs stays so; the next one works.
  proxy.mode = 'pass';
  await leader.evaluate('app.client.close()');
  await sending;
  assert.equal((await asking).devices.length, 1);
  assert.equal(await idle.evaluate('app.client.leading'), true);
  assert.equal(await writer.evaluate('app.client.state'), 'connected');
  await until(() => fromAlice.length === 20);
  assert.deepEqual(fromAlice, Array.from({ length: 20 }, (_, i) => `0000000f ${i}`));
  for (const tab of [idle, writer]) assert.deepEqual(await tab.evaluate('app.problems'), []);
  await Promise.all([leader.close(), idle.close(), writer.close()]);
});

test('a page that is online or visible again does not wait', { skip }, async () => {
  const page = await open();
  await page.evaluate((settings) => window.app.configure(settings), { url: proxy.url, database: 'tabs', longWaits: true });
  await page.evaluate('app.client.connect()');
  for (const [target, event] of [['window', 'online'], ['document', 'visibilitychange']]) {
    proxy.mode = 'refuse';
    proxy.cut();
    const left = () => page.evaluate('app.client.status.retryAt - Date.now()');
    await until(async () => (await left()) > 5000, 'the wait is long');
    const { retryAt } = await page.evaluate('app.client.status');
    proxy.mode = 'pass';
    await page.evaluate(`${target}.dispatchEvent(new Event('${event}'))`);
    await until(() => page.evaluate("app.client.state === 'connected'"));
    assert(Date.now() < retryAt, `${event} ends the wait`);
  }
  await page.close();
});

// Push wake-ups in Chromium: a page registers, its service worker confirms, and wakes up when the page is closed. The push service of the
// test decrypts what the server sends, and hands it to the service worker by the DevTools protocol.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { PushService } from '../test-support/push-service.mjs';
import { Server, skip as skipServer } from '../test-support/server.mjs';
import { closeClients, openBrowser, openClient, Pages, skipBrowser, until } from './support.mjs';

const skip = skipServer || skipBrowser;

let pages;
let server;
let service;
let browser;
before(async () => {
  if (skip) return;
  pages = await Pages.start('push-page.mjs', 'push-worker.mjs');
  service = await PushService.start();
  server = await Server.start({
    SEALWIRE__SERVER__ALLOWED_ORIGINS: pages.origin,
    SEALWIRE__PUSH__ALLOW_INSECURE: 'true',
    SEALWIRE__PUSH__CONTACT: 'mailto:operator@push.example',
  });
  browser = await openBrowser();
  await browser.context.grantPermissions(['notifications'], { origin: pages.origin });
});
after(async () => {
  await closeClients();
  await browser?.close();
  await server?.stop();
  await service?.stop();
  await pages?.stop();
});

async function openPage() {
  const page = await browser.context.newPage();
  await page.goto(pages.origin);
  await page.waitForFunction('window.app');
  return page;
}

/** Hands the content of a push to the service worker, from a page of its own that does not run the app. */
async function deliver(page, content) {
  const devTools = await browser.context.newCDPSession(page);
  const registered = new Promise((resolve) => {
    devTools.on('ServiceWorker.workerRegistrationUpdated', ({ registrations }) => {
      const found = registrations.find(({ scopeURL }) => scopeURL.startsWith(pages.origin));
      if (found) resolve(found.registrationId);
    });
  });
  await devTools.send('ServiceWorker.enable');
  await devTools.send('ServiceWorker.deliverPushMessage', { origin: pages.origin, registrationId: await registered, data: content });
  await devTools.detach();
}

test('the worker of the tests is the recipe', async () => {
  const recipes = await readFile(new URL('../packages/core/RECIPES.md', import.meta.url), 'utf8');
  const worker = await readFile(new URL('push-worker.mjs', import.meta.url), 'utf8');
  const [, recipe] = recipes.match(/```ts\n(self\.addEventListener\('push'[^]*?)```/);
  assert(worker.endsWith(recipe));
});

test('a service worker confirms the registration, and fetches messages while no page is open', { skip }, async () => {
  const page = await openPage();
  await page.evaluate((url) => window.app.start(url), server.url);
  await page.evaluate((url) => window.app.startWorker(url), server.url);
  const code = await server.code('alice@push.example', () => page.evaluate("app.client.signIn.request('alice@push.example')"));
  const { account } = await page.evaluate((code) => window.app.client.signIn.verify(code), code);
  const status = await page.evaluate('app.client.push.status()');
  assert.deepEqual([status.state, status.kinds, status.vapidPublicKey.length], ['none', ['webpush'], 87]);

  const { target, contents } = service.subscribe();
  assert.equal(await page.evaluate((target) => window.app.client.push.register(target), target), 'unconfirmed');
  await until(() => contents.length === 1);
  assert.match(contents[0], /^\{"sealwire":"confirm","nonce":"[\w-]{22}"\}$/);
  await deliver(page, contents[0]);
  await until(async () => (await page.evaluate('app.client.push.status()')).state === 'active');
  assert.equal(await page.evaluate((target) => window.app.client.push.register(target), target), 'active');
  // The page is visible.
  assert.deepEqual(await page.evaluate('app.notifications()'), []);

  // The page goes on to run no client, as if it were closed: a worker needs a page for the DevTools protocol.
  await page.evaluate('app.client.close()');
  const bob = openClient(server.url);
  await server.signIn(bob, 'bob@push.example');
  await bob.send(account.userId, 'hello');
  await until(() => contents.length === 2);
  assert.equal(contents[1], '{"sealwire":"wake"}');
  // The app is not on the screen: the browser shows another page.
  const other = await browser.context.newPage();
  await other.goto('about:blank');
  await other.bringToFront();
  await page.goto(`${pages.origin}/closed`);
  await deliver(page, contents[1]);

  const reopened = await openPage();
  await reopened.evaluate((url) => window.app.start(url), server.url);
  await until(async () => (await reopened.evaluate("app.client.data.list('chat/')")).length === 1);
  assert.deepEqual((await reopened.evaluate("app.client.data.list('chat/')")).map(([, text]) => text), ['hello']);
});

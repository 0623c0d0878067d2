// In headless Chromium: the storage in IndexedDB and the x3dh adapter.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { conversation, endPeers, Peer, skipPython } from '../packages/x3dh/test/python-peer.mjs';
import { openBrowser, newSeed, Pages, skipBrowser } from './support.mjs';

let pages;
let browser;
let page;
before(async () => {
  if (skipBrowser) return;
  pages = await Pages.start('page.mjs');
  browser = await openBrowser();
  page = await browser.context.newPage();
  await page.goto(pages.origin);
  await page.waitForFunction('window.app');
});
after(async () => {
  endPeers();
  await browser?.close();
  await pages?.stop();
});

test('IndexedDB does what a storage must do', { skip: skipBrowser }, async () => {
  for (const what of await page.evaluate('app.storageContract')) await page.evaluate((what) => window.app.checkStorage(what), what);
});

test('the x3dh adapter does what an adapter must do', { skip: skipBrowser }, async () => {
  for (const what of await page.evaluate('app.adapterContract')) await page.evaluate((what) => window.app.checkAdapter(what), what);
  const seed = newSeed();
  assert((await page.evaluate((seed) => window.app.randomSchedule(seed), seed)) > 20);
});

for (const exhausted of [false, true]) {
  for (const opener of ['the page', 'Python']) {
    const keys = exhausted ? 'without a one-time prekey' : 'with a one-time prekey';
    test(`a page and Python write to each other: ${opener} opens the session, ${keys}`, { skip: skipBrowser || skipPython }, async () => {
      const call = (...args) => page.evaluate((args) => window.app.party(...args), args);
      const sealed = ({ type, content }) => ({ type, content: [...content] });
      const other = ({ address }) => ({ address });
      const alice = {
        address: await call('create'),
        encrypt: async (to, text) => call('encrypt', other(to), text).then(({ type, content }) => ({ type, content: Uint8Array.from(content) })),
        decrypt: (from, message) => call('decrypt', other(from), sealed(message)).catch((error) => {
          throw Object.assign(new Error(error.message), { code: error.message.includes('CryptoError') && 'undecryptable' });
        }),
      };
      const bob = await Peer.create('00000000-0000-4000-9000-00000000000c');
      if (opener === 'Python') await bob.call('open', await call('bundle', { exhausted }));
      else await call('open', other(bob), bob.bundle(exhausted));
      await conversation(alice, bob, opener === 'the page');
    });
  }
}

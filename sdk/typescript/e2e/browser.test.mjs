// In headless Chromium: the storage in IndexedDB and the x3dh adapter.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
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

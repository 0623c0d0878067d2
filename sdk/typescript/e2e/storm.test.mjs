// The reload storm: a page is reloaded at random moments while it sends and receives, and the server is killed and restarted. No message
// is lost, none is shown twice, their order is kept, and no second key is spent.
//
//     SEED=1 RELOADS=200 KILLS=10 node --test e2e/storm.test.mjs

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { x3dhCrypto } from '@sealwire/x3dh';
import WebSocket from 'ws';
import { seeded } from '../test-support/adapter-contract.mjs';
import { Server, skip as skipServer } from '../test-support/server.mjs';
import { newSeed, openBrowser, Pages, skipBrowser, until } from './support.mjs';

const skip = skipServer || skipBrowser;
const RELOADS = Number(process.env.RELOADS ?? 200);
const KILLS = Number(process.env.KILLS ?? 10);
const MESSAGES = Number(process.env.MESSAGES ?? 300);

let pages;
let server;
let browser;
before(async () => {
  if (skip) return;
  pages = await Pages.start('page.mjs');
  server = await Server.start({ SEALWIRE__SERVER__ALLOWED_ORIGINS: pages.origin });
  browser = await openBrowser();
});
after(async () => {
  await browser?.close();
  await server?.stop();
  await pages?.stop();
});

test(`a page that is reloaded ${RELOADS} times, and a server that is killed ${KILLS} times`, { skip }, async () => {
  const random = seeded(newSeed());
  const bob = new SealwireClient({ url: server.url, storage: memoryStorage(), crypto: x3dhCrypto(), WebSocket, random: () => Math.random() * 0.05 });
  const problems = [];
  const fromAlice = [];
  bob.on('message', (m) => fromAlice.push(m.text));
  for (const event of ['error', 'undecryptable', 'untrusted', 'failed']) bob.on(event, (data) => problems.push(`bob: ${event}: ${JSON.stringify(data)}`));
  await server.signIn(bob, 'bob@storm.example');

  const page = await browser.context.newPage();
  const seen = [];
  page.on('pageerror', (error) => problems.push(`page: ${error.message}`));
  await page.goto(pages.origin);
  await page.waitForFunction('window.app');
  const settings = { url: server.url, database: 'storm' };
  const code = await server.code('alice@storm.example', () =>
    page.evaluate((settings) => (window.app.configure(settings), window.app.client.signIn.request('alice@storm.example')), settings),
  );
  const { account } = await page.evaluate((code) => window.app.client.signIn.verify(code), code);

  // From now on the page sends by itself whenever it is loaded.
  const onLoad = { to: bob.account.userId, prefix: '0000000a', count: MESSAGES };
  await page.evaluate((settings) => localStorage.setItem('settings', JSON.stringify(settings)), { ...settings, onLoad });

  const answers = (async () => {
    for (let i = 0; i < MESSAGES; i++) {
      await bob.send(account.userId, `b ${i}`);
      await pause(random() * 40);
    }
  })();

  const collect = async () => {
    for (const problem of await page.evaluate('app.problems').catch(() => [])) seen.push(problem);
  };
  const kills = (async () => {
    for (let i = 0; i < KILLS; i++) {
      await pause(500 + random() * 1500);
      await server.kill();
      await pause(random() * 300);
      await server.restart();
    }
  })();
  for (let i = 0; i < RELOADS; i++) {
    // Some reloads come before the page has connected, some in the middle of its work.
    await pause(random() * (i % 4 === 0 ? 30 : 250));
    await collect();
    await page.reload({ waitUntil: 'commit' });
  }
  await kills;
  await answers;

  await page.waitForFunction('window.app');
  await until(async () => fromAlice.length >= MESSAGES, () => `bob got ${fromAlice.length} messages`, 120_000);
  await until(async () => (await page.evaluate('app.received()')).length >= MESSAGES, 'alice got all messages', 60_000);
  await pause(500);
  await collect();
  assert.deepEqual(fromAlice, Array.from({ length: MESSAGES }, (_, i) => `0000000a ${i}`));
  assert.deepEqual(await page.evaluate('app.received()'), Array.from({ length: MESSAGES }, (_, i) => `b ${i}`));
  // Each has taken at most one key of the other.
  const left = [(await bob.request('keys.status')).one_time, (await page.evaluate("app.client.request('keys.status')")).one_time];
  assert(left.every((count) => count >= 99), `keys left: ${left}`);
  assert.deepEqual([...problems, ...seen], []);
  assert.deepEqual(await bob.pending(), []);
  assert.deepEqual(await page.evaluate('app.client.pending()'), []);
  await bob.close();
});

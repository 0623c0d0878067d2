// The try-it page: two people talk, over everything that can go wrong.

import assert from 'node:assert/strict';
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { check, skip, TryIt, until } from './try-it-support.mjs';

let tryIt;
before(async () => {
  if (!skip) tryIt = await TryIt.start();
});
after(() => tryIt?.stop());
afterEach(() => {
  if (!tryIt) return;
  const problems = tryIt.problems.splice(0);
  assert.deepEqual(problems, []);
});

/** Two people in two browsers, who have written to each other. */
async function twoPeople(first, second) {
  const [one, two] = await Promise.all([tryIt.context(), tryIt.context()]);
  const [a, b] = await Promise.all([tryIt.tab(one), tryIt.tab(two)]);
  await a.signIn(first, 'First of A');
  await b.signIn(second, 'First of B');
  await a.add(second);
  await a.write('Hello');
  await b.open(name(first));
  await b.write('Hello yourself');
  await a.message('Hello yourself').waitFor();
  return { a, b, one, two, close: () => Promise.all([one.close(), two.close()]) };
}

const name = (address) => address[0].toUpperCase() + address.slice(1, address.indexOf('@'));

test('two people sign in, find each other, compare their number, and talk through reloads and kills of the server', { skip }, async () => {
  const [alicesBrowser, bobsBrowser] = await Promise.all([tryIt.context(), tryIt.context()]);
  const alice = await tryIt.tab(alicesBrowser);
  await alice.button('Alice alice@example.org').click();
  await alice.enterCode();
  await alice.connected();

  // People who have not signed in cannot be found.
  await alice.add('bob@example.org');
  await alice.page.getByText('No account has this address yet.').waitFor();
  await check(alice.page, 'an address that nobody has');
  const bob = await tryIt.tab(bobsBrowser);
  await bob.signIn('bob@example.org');
  await alice.button('Add').click();
  await alice.page.getByRole('heading', { level: 2, name: 'Bob' }).waitFor();

  // Unread, delivered, read.
  await alice.write('Lunch at noon?');
  await alice.write('Or at one?');
  await bob.row('Alice').locator('.row-count', { hasText: '2' }).waitFor();
  assert.match(await bob.page.title(), /^\(2\) /);
  await alice.reached('Or at one?', 'delivered');
  await bob.open('Alice');
  await alice.reached('Lunch at noon?', 'read');
  await until(async () => !(await bob.page.title()).startsWith('('));

  // Typing, and a draft that survives a reload; so do the person and the messages.
  await bob.page.getByLabel('Message', { exact: true }).pressSequentially('Noon i');
  await alice.page.getByText('typing…').first().waitFor();
  await bob.page.reload();
  await bob.connected();
  assert.equal(await bob.page.getByLabel('Message', { exact: true }).inputValue(), 'Noon i');
  await bob.write('Noon is fine');
  await alice.message('Noon is fine').waitFor();
  assert.deepEqual(await bob.texts(), ['Lunch at noon?', 'Or at one?', 'Noon is fine']);

  // The safety number is the same on both sides. What was compared stays so.
  const numbers = [await alice.safetyNumber(), await bob.safetyNumber()];
  assert.equal(numbers[0], numbers[1]);
  await alice.button('They match').click();
  await alice.page.getByText('You have compared this number with Bob.').waitFor();
  await alice.closeDialog();
  await bob.closeDialog();
  await alice.page.reload();
  await alice.page.locator('h2.verified', { hasText: 'Bob' }).waitFor();

  // The server is killed. What Alice writes waits, also over a reload of another tab's server; Bob's page is reloaded after the restart.
  await tryIt.kill();
  await alice.write('Written while the server was dead');
  await alice.write('And another');
  await alice.reached('And another', 'queued');
  await alice.page.getByText('2 messages will be sent when it is back').waitFor();
  await tryIt.server.restart();
  await alice.reached('And another', 'read');
  await bob.page.reload();
  await bob.message('And another').waitFor();
  const said = ['Lunch at noon?', 'Or at one?', 'Noon is fine', 'Written while the server was dead', 'And another'];
  assert.deepEqual(await bob.texts(), said);

  // The page is closed with a message that was not sent, and the server killed. It goes out from the next page.
  await tryIt.kill();
  await alice.write('From before the reload');
  await alice.reached('From before the reload', 'queued');
  await tryIt.server.restart();
  await alice.page.reload();
  await alice.reached('From before the reload', 'read');
  assert.deepEqual(await bob.texts(), [...said, 'From before the reload']);

  // Search.
  await alice.page.getByLabel('Search messages and people').fill('NOON');
  await alice.page.locator('.results .row').nth(1).waitFor();
  assert.equal(await alice.page.locator('.results .row').count(), 2);
  await alice.page.locator('.results .row', { hasText: 'Lunch' }).click();
  await alice.page.locator('.message.found-here', { hasText: 'Lunch at noon?' }).waitFor();

  await Promise.all([alicesBrowser.close(), bobsBrowser.close()]);
});

test('two tabs of one browser are two people, and a reload keeps each', { skip }, async () => {
  const context = await tryIt.context();
  const tabs = [await tryIt.tab(context), await tryIt.tab(context)];
  await tabs[0].signIn('dora@example.org');
  await tabs[1].signIn('emil@example.org');
  for (const tab of tabs) await tab.page.reload();
  for (const tab of tabs) await tab.connected();
  await tabs[0].page.locator('.me', { hasText: 'dora@' }).waitFor();
  await tabs[1].page.locator('.me', { hasText: 'emil@' }).waitFor();
  // The page suggests who else has signed in with this browser.
  await tabs[0].button('Add a person').first().click();
  await tabs[0].button('Emil emil@example.org').click();
  await tabs[0].write('From tab to tab');
  await tabs[1].open('Dora');
  await tabs[1].message('From tab to tab').waitFor();
  await context.close();
});

test('a second tab of the same person shows the same, over one connection', { skip }, async () => {
  const { a, b, one, close } = await twoPeople('fay@example.org', 'gus@example.org');
  // A duplicated tab has a copy of the session storage.
  const copy = await a.page.evaluate(() => ({ ...sessionStorage }));
  const page = await one.newPage();
  await page.addInitScript((entries) => Object.entries(entries).forEach(([key, value]) => sessionStorage.setItem(key, value)), copy);
  await page.goto(tryIt.server.url);
  const second = new a.constructor(page);
  await second.connected();
  await second.open('Gus');
  await second.write('From the second tab');
  await b.message('From the second tab').waitFor();
  await a.message('From the second tab').waitFor();
  await b.write('To both tabs');
  await a.message('To both tabs').waitFor();
  await second.message('To both tabs').waitFor();
  // A tab that writes while the server is dead, and is closed before it is back: the other one shows how far the message got.
  await tryIt.kill();
  await second.write('From a tab that is gone');
  await a.reached('From a tab that is gone', 'queued');
  await page.close();
  await tryIt.server.restart();
  await b.message('From a tab that is gone').waitFor();
  await a.reached('From a tab that is gone', 'read');

  // The tab with the connection is closed: another one takes over.
  const third = new a.constructor(await one.newPage());
  await third.page.addInitScript((entries) => Object.entries(entries).forEach(([key, value]) => sessionStorage.setItem(key, value)), copy);
  await third.page.goto(tryIt.server.url);
  await third.connected();
  await third.open('Gus');
  await a.page.close();
  await third.write('Alone now');
  await b.message('Alone now').waitFor();
  await third.reached('Alone now', 'read');
  await close();
});

test('a second device gets what is written on both sides; the other side is warned, and devices can be renamed and removed', { skip }, async () => {
  const { a, b, one, close } = await twoPeople('hana@example.org', 'ivan@example.org');
  await b.safetyNumber();
  await b.button('They match').click();
  await b.closeDialog();

  await a.hood();
  const [page] = await Promise.all([one.waitForEvent('page'), a.page.getByRole('link', { name: 'Second device' }).click()]);
  const second = new a.constructor(page);
  await second.enterCode('Second of A');
  await second.connected();
  await a.page.locator('.notice', { hasText: 'Second of A signed in to your account.' }).waitFor();

  await a.write('To Ivan, and to my own other device');
  await second.open('Ivan');
  await second.message('To Ivan, and to my own other device').waitFor();
  await second.reached('To Ivan, and to my own other device', 'read');
  await second.write('From the second device');
  await b.message('From the second device').waitFor();
  await a.message('From the second device').waitFor();
  await b.write('To both devices');
  await a.message('To both devices').waitFor();
  await second.message('To both devices').waitFor();

  // Ivan had compared the number, so he is warned; it is the same on all devices again.
  await b.page.getByText('The safety number with Hana has changed').waitFor();
  await b.page.getByText('Hana uses a new device.').waitFor();
  await check(b.page, 'a changed safety number');
  const numbers = [await b.safetyNumber(), await a.safetyNumber(), await second.safetyNumber()];
  assert.equal(new Set(numbers).size, 1);
  await b.button('They differ').click();
  await check(b.page, 'numbers that differ');
  await b.button('They match').click();
  await b.closeDialog();
  await b.page.getByText('The safety number with Hana has changed').waitFor({ state: 'hidden' });
  await a.closeDialog();
  await second.closeDialog();

  await a.page.locator('.me').click();
  await a.button('Rename Second of A').click();
  await a.page.getByRole('dialog').last().getByLabel('Name').fill('Kitchen');
  await a.button('Save').click();
  await a.button('Remove Kitchen').click();
  await a.button('Remove', true).last().click();
  await second.page.getByText('This device was removed from the account').waitFor();
  assert.equal(await second.page.evaluate(() => indexedDB.databases().then((list) => list.length)), 1, 'the data of the removed device is deleted');
  await close();
});

test('under a lock a new device needs the approval of another, or the recovery key', { skip }, async () => {
  const { a, one, close } = await twoPeople('jana@example.org', 'karl@example.org');
  await a.page.locator('.me').click();
  await a.button('Lock the account').click();
  const recovery = await a.page.locator('.recovery').textContent();
  await check(a.page, 'the recovery key');
  await a.button('I have saved it').click();
  await a.page.getByText('Locked: a new device needs').waitFor();

  const second = await tryIt.tab(one, '#device=jana@example.org');
  await second.enterCode('Tablet');
  const number = await second.page.locator('.approval-number').textContent();
  await a.page.getByRole('heading', { name: 'A new device wants to sign in' }).waitFor();
  await check(a.page, 'a request of a new device');
  await check(second.page, 'a number to approve');
  await a.page.getByLabel('Number that the new device shows').fill(number);
  await a.button('Approve').click();
  await second.connected();

  // A wrong number refuses it.
  const third = await tryIt.tab(one, '#device=jana@example.org');
  await third.enterCode('Thief');
  const right = await third.page.locator('.approval-number').textContent();
  await a.page.getByLabel('Number that the new device shows').fill(right === '00' ? '01' : '00');
  await a.button('Approve').click();
  await third.page.getByText('Another device of this account refused the request.').waitFor();
  tryIt.problems = tryIt.problems.filter((problem) => !/status of 403/.test(problem));

  const fourth = await tryIt.tab(one, '#device=jana@example.org');
  await fourth.enterCode('Laptop');
  await fourth.page.getByText('I have the recovery key').click();
  await fourth.page.getByLabel('Recovery key').fill(recovery);
  await fourth.button('Sign in with the recovery key').click();
  await fourth.connected();
  await close();
});

test('a person with many new messages starts at the first of them, and finds the draft again', { skip }, async () => {
  const { a, b, close } = await twoPeople('rosa@example.org', 'sven@example.org');
  await a.page.getByLabel('Message', { exact: true }).fill('Not finished');
  await tryIt.tab(a.page.context(), '#new').then(async (other) => {
    await other.signIn('tilda@example.org');
    await other.add('rosa@example.org');
    await other.write('Hello from Tilda');
    await other.reached('Hello from Tilda', 'delivered');
    await other.page.close();
  });
  await a.open('Tilda');
  await a.row('Sven').locator('.is-draft').waitFor();
  for (let i = 1; i <= 30; i++) await b.write(`Number ${i}`);
  await b.reached('Number 30', 'delivered');
  await a.row('Sven').locator('.row-count', { hasText: '30' }).waitFor();
  await a.open('Sven');
  assert.equal(await a.page.getByLabel('Message', { exact: true }).inputValue(), 'Not finished');
  assert(await a.page.locator('.new').isVisible());
  const seen = (text) =>
    a.page.locator('.words', { hasText: new RegExp(`^${text}$`) }).evaluate((words) => {
      const { top, bottom } = words.closest('.log').getBoundingClientRect();
      const rect = words.getBoundingClientRect();
      return rect.top >= top && rect.bottom <= bottom;
    });
  assert.equal(await seen('Number 1'), true);
  assert.equal(await seen('Number 30'), false);
  await a.button('Newest messages').click();
  await until(() => seen('Number 30'));
  await close();
});

test('a blocked person gets no message through, and cannot tell', { skip }, async () => {
  const { a, b, close } = await twoPeople('lena@example.org', 'mika@example.org');
  await a.safetyNumber();
  await a.button('Block Mika').click();
  await a.page.getByText('You have blocked Mika.').waitFor();
  await check(a.page, 'a blocked person');
  await b.write('Can you hear me?');
  await b.reached('Can you hear me?', 'stored');
  await a.page.getByRole('button', { name: 'Unblock' }).click();
  await b.write('And now?');
  await a.message('And now?').waitFor();
  assert.deepEqual(await a.texts(), ['Hello', 'Hello yourself', 'And now?']);
  await close();
});

test('what failed says why, and can be tried again; signing out keeps the messages, deleting the account does not', { skip }, async () => {
  const { a, b, close } = await twoPeople('nora@example.org', 'olaf@example.org');
  // Olaf signs out, and what is written to him waits.
  await b.page.locator('.me').click();
  await b.button('Sign out').click();
  await b.button('Sign out').last().click();
  await b.page.getByText('You are signed out.').waitFor();
  await check(b.page, 'signed out');
  await a.write('For later');
  await a.reached('For later', 'stored');
  await b.button('Continue').click();
  await b.enterCode();
  await b.connected();
  await b.open('Nora');
  await b.message('For later').waitFor();
  assert.deepEqual(await b.texts(), ['Hello', 'Hello yourself', 'For later']);
  await a.reached('For later', 'read');

  // He deletes his account: the code does nothing else.
  await b.page.locator('.me').click();
  await b.button('Delete the account').click();
  await b.button('Send me the code').click();
  await b.page.locator('dialog .mail').waitFor();
  await check(b.page, 'deleting the account');
  await b.button('Use this code').click();
  await b.button('Delete forever').click();
  await b.page.getByText('The account was deleted.').waitFor();
  await a.write('Are you there?');
  await a.page.getByText('This account no longer exists.', { exact: true }).waitFor();
  await check(a.page, 'a message that failed');
  await a.button('Try again').click();
  await a.page.getByText('This account no longer exists.', { exact: true }).waitFor();
  await a.page.reload();
  await a.connected();
  await a.page.locator('.message', { hasText: 'Are you there?' }).getByRole('button', { name: 'Delete' }).click();
  await a.message('Are you there?').waitFor({ state: 'detached' });
  await close();
});

test('after the server has lost its database, people sign in as new devices and can write again', { skip }, async () => {
  const { a, b, close } = await twoPeople('uma@example.org', 'vito@example.org');
  await tryIt.kill();
  for (const name of await readdir(tryIt.server.dir)) if (name.startsWith('sealwire.db')) await rm(join(tryIt.server.dir, name));
  await tryIt.server.restart();
  for (const tab of [a, b]) {
    await tab.page.getByText('The server does not know this session any more.').waitFor();
    await tab.button('Continue').click();
    await tab.enterCode();
    await tab.page.getByText('This device was removed from the account.').waitFor();
  }
  await a.signIn('uma@example.org');
  await b.signIn('vito@example.org');
  await a.add('vito@example.org');
  await a.write('A new beginning');
  await b.open('Uma');
  assert.deepEqual(await b.texts(), ['A new beginning']);
  // Chromium itself reports the refusals.
  tryIt.problems = tryIt.problems.filter((problem) => !/status of 4\d\d/.test(problem));
  await close();
});

test('under the hood: keys run low and are refilled, a cut connection loses nothing, a lost reply sends nothing twice', { skip }, async () => {
  const { a, b, close } = await twoPeople('pia@example.org', 'quin@example.org');
  await a.hood();
  const count = a.page.locator('.pool-count');
  await until(async () => ['23', '24'].includes(await count.textContent()));
  await a.button('Let a stranger take five').click();
  await a.page.getByText('The pool fell to 20.').waitFor();
  await until(async () => Number(await count.textContent()) > 90);
  await a.page.locator('.frame', { hasText: 'prekeys.low' }).first().waitFor();

  await a.button('Lose a reply').click();
  await a.write('Its reply is lost');
  await a.page.locator('.flag.lost').waitFor();
  await a.page.locator('.flag.duplicate').waitFor();
  await a.page.getByText('it was delivered once').waitFor();
  await a.reached('Its reply is lost', 'read');
  assert.equal(await b.message('Its reply is lost').count(), 1);

  await a.button('Cut the connection').click();
  await a.page.locator('.state', { hasText: 'Connection cut' }).waitFor();
  await a.write('One, cut off');
  await a.write('Two, cut off');
  await b.write('Meanwhile');
  await b.reached('Meanwhile', 'stored');
  await a.reached('Two, cut off', 'queued');
  assert.equal(await b.message('cut off').count(), 0);
  await a.button('Reconnect').click();
  await b.message('Two, cut off').waitFor();
  await a.message('Meanwhile').waitFor();
  assert.deepEqual((await b.texts()).slice(-3), ['Meanwhile', 'One, cut off', 'Two, cut off']);

  // The frames are the real ones: what was written is not in them.
  await a.page.locator('.frame', { hasText: 'messages.send' }).first().locator('summary').click();
  const frame = await a.page.locator('.frame[open] pre').first().textContent();
  const { op, params } = JSON.parse(frame);
  assert.equal(op, 'messages.send');
  assert(params.messages[0].content.length > 100);
  assert.doesNotMatch(frame, /cut off/);
  await close();
});

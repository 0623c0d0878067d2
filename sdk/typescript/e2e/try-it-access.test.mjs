// The try-it page for everybody: with the keyboard alone, for screen readers (axe-core), in four sizes, in light and dark.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { artifacts, check, overflows, skip, Tab, TryIt, until } from './try-it-support.mjs';

const SIZES = { phone: [360, 740], tablet: [834, 1112], desktop: [1280, 800], wide: [1920, 1080] };

let tryIt;
before(async () => {
  if (!skip) tryIt = await TryIt.start();
});
after(() => tryIt?.stop());
afterEach(() => {
  if (tryIt) assert.deepEqual(tryIt.problems.splice(0), []);
});

async function shoot(page, scheme, size, what) {
  await page.screenshot({ path: `${artifacts}${scheme}-${size}-${what}.png` });
}

for (const scheme of ['light', 'dark']) {
  test(`axe finds nothing, nothing overflows, and screenshots are kept: ${scheme}`, { skip }, async () => {
    const other = await tryIt.context();
    const bob = await tryIt.tab(other);
    await bob.signIn(`bob-${scheme}@example.org`);
    for (const [size, [width, height]] of Object.entries(SIZES)) {
      const context = await tryIt.context({ colorScheme: scheme, viewport: { width, height }, ...(size === 'phone' && { isMobile: true, hasTouch: true, deviceScaleFactor: 2 }) });
      const tab = await tryIt.tab(context);
      const { page } = tab;
      const look = async (what) => {
        await check(page, `${scheme} ${size} ${what}`);
        assert.equal(await overflows(page), false, `${scheme} ${size} ${what} overflows`);
        await shoot(page, scheme, size, what);
      };
      const phone = size === 'phone';
      await page.getByRole('heading', { level: 1 }).waitFor();
      await page.locator('.choice').first().waitFor();
      await look('1-start');
      await page.getByLabel('Mail address').fill(`ada.${size}.${scheme}@example.org`);
      await tab.button('Continue').click();
      await page.locator('.mail-code').waitFor();
      await look('2-code');
      await tab.button('Sign in').click();
      await tab.connected();
      await look('3-empty');
      await tab.button('Add a person').first().click();
      await look('4-add');
      await page.getByRole('dialog').getByLabel('Mail address').fill(`bob-${scheme}@example.org`);
      await tab.button('Add').click();
      const back = async () => phone && page.getByRole('button', { name: 'All conversations' }).click();
      await tab.write('Good morning! Did the parcel arrive? 📦');
      await bob.open(`Ada ${size[0].toUpperCase()}${size.slice(1)} ${scheme[0].toUpperCase()}${scheme.slice(1)}`);
      await bob.write('It did, thank you. Everything is in one piece.');
      await bob.write('🎉');
      await tab.message('🎉').waitFor();
      await tab.write('שלום! גם טקסט מימין לשמאל נראה כמו שצריך.');
      await tab.write('And one long word: Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft');
      await bob.write('The details are at https://example.org/docs/protocol.md#messages — have a look.');
      await tab.message('The details').waitFor();
      await tab.reached('And one long word', 'read');
      await look('5-conversation');
      await tab.safetyNumber();
      await look('6-safety-number');
      await tab.button('They match').click();
      await tab.closeDialog();
      await tab.hood();
      await tab.button('Let a stranger take five').click();
      await page.getByText('The pool fell to').waitFor();
      await tab.button('Cut the connection').click();
      await page.getByText('Write something: it is stored').waitFor();
      await look('7-under-the-hood');
      await tab.button('Reconnect').click();
      await until(async () => (await page.getByText('Connected again').count()) > 0, 'connected again');
      await page.locator('.frame', { hasText: 'messages.send' }).first().locator('summary').click();
      await page.locator('.frame[open] pre').first().scrollIntoViewIfNeeded();
      await look('8-frame');
      await page.locator('.hood').getByRole('button', { name: 'Close' }).click();
      await back();
      await page.getByLabel('Search messages and people').fill('the');
      await page.locator('.results .row').first().waitFor();
      await look('9-search');
      await page.getByLabel('Search messages and people').fill('');
      await page.locator('.me').click();
      await page.locator('.devices li').waitFor();
      await page.getByText('Lock the account').waitFor();
      await look('10-account');
      await tab.closeDialog();
      await context.close();
    }
    await other.close();
  });
}

test('everything works with the keyboard alone', { skip }, async () => {
  const other = await tryIt.context();
  const friend = await tryIt.tab(other);
  await friend.signIn('keys@example.org');

  const context = await tryIt.context();
  const tab = await tryIt.tab(context);
  const { page } = tab;
  await page.locator('.choice').first().waitFor();
  const focused = () => page.evaluate(() => {
    const element = document.activeElement;
    return element.getAttribute('aria-label') ?? (element.labels?.[0] ?? element).textContent.trim();
  });
  /** Presses Tab until the focus is on what is called so. Everything on the way must show where the focus is. */
  const goTo = async (name, key = 'Tab') => {
    for (let i = 0; i < 80; i++) {
      if ((await focused()).startsWith(name)) return;
      await page.keyboard.press(key);
      const visible = await page.evaluate(() => {
        const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
        return document.activeElement === document.body || (outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2);
      });
      assert(visible, `the focus cannot be seen on ${await focused()}`);
    }
    throw new Error(`the focus does not get to ${name}: it is on ${await focused()}`);
  };
  await goTo('Mail address');
  await page.keyboard.type('nomouse@example.org');
  await page.keyboard.press('Enter');
  await page.locator('.mail-code').waitFor();
  // The code is filled in, and the focus is on the button.
  await goTo('Sign in');
  await page.keyboard.press('Enter');
  await tab.connected();
  await goTo('Add a person');
  await page.keyboard.press('Enter');
  await page.getByRole('dialog').waitFor();
  assert.equal(await focused(), 'Mail address');
  await page.keyboard.type('keys@example.org');
  await page.keyboard.press('Enter');
  await page.getByRole('heading', { level: 2, name: 'Keys' }).waitFor();
  await goTo('Message');
  await page.keyboard.type('No mouse');
  await page.keyboard.press('Shift+Enter');
  await page.keyboard.type('was used');
  await page.keyboard.press('Enter');
  await friend.open('Nomouse');
  assert.deepEqual(await friend.texts(), ['No mouse\nwas used']);
  await tab.reached('was used', 'read');

  // A dialog keeps the focus inside, and gives it back.
  await goTo('K', 'Shift+Tab');
  await page.keyboard.press('Enter');
  await page.locator('.safety').waitFor();
  await goTo('They match');
  await page.keyboard.press('Enter');
  await page.getByText('You have compared this number').waitFor();
  await page.keyboard.press('Escape');
  assert.equal(await page.evaluate(() => document.activeElement.className), 'who');

  // Search, and from a result to its message.
  await page.keyboard.press('Control+k');
  assert.equal(await focused(), 'Search messages and people');
  await page.keyboard.type('mouse');
  await goTo('You to Keys');
  await page.keyboard.press('Enter');
  await until(() => page.evaluate(() => document.activeElement.matches('.message')));

  // Under the hood: cut the connection, write, connect again.
  await goTo('Under the hood', 'Shift+Tab');
  await page.keyboard.press('Enter');
  await goTo('Cut the connection');
  await page.keyboard.press('Enter');
  await page.locator('.state', { hasText: 'Connection cut' }).waitFor();
  await goTo('Reconnect');
  await page.keyboard.press('Enter');
  await tab.connected();
  await page.keyboard.press('Escape');
  await page.locator('.hood').waitFor({ state: 'hidden' });
  assert.equal(await focused(), 'Under the hood');
  await Promise.all([context.close(), other.close()]);
});

test('nothing moves by itself: no layout shift from the first paint to a conversation', { skip }, async () => {
  const other = await tryIt.context();
  const friend = await tryIt.tab(other);
  await friend.signIn('still@example.org');
  const context = await tryIt.context();
  await context.addInitScript(() => {
    window.shifts = [];
    new PerformanceObserver((list) => {
      for (const { value, hadRecentInput, sources } of list.getEntries()) {
        if (!hadRecentInput) window.shifts.push(`${value}: ${sources.map(({ node }) => node?.className ?? node?.nodeName).join(', ')}`);
      }
    }).observe({ type: 'layout-shift', buffered: true });
  });
  const tab = await tryIt.tab(context);
  await tab.signIn('calm@example.org');
  await tab.add('still@example.org');
  await tab.write('One');
  await friend.open('Calm');
  await friend.write('Two');
  await tab.message('Two').waitFor();
  await tab.reached('One', 'read');
  await tab.page.reload();
  await tab.connected();
  await tab.message('Two').waitFor();
  await friend.page.getByLabel('Message', { exact: true }).pressSequentially('Three');
  await tab.page.getByText('typing…').first().waitFor();
  assert.deepEqual(await tab.page.evaluate(() => window.shifts), []);
  await Promise.all([context.close(), other.close()]);
});

test('the first screen needs four requests and nothing more, and markup in a message stays text', { skip }, async () => {
  const context = await tryIt.context();
  const page = await context.newPage();
  const asked = [];
  page.on('request', (request) => asked.push(new URL(request.url()).pathname));
  await page.goto(tryIt.server.url);
  await page.locator('.choice').first().waitFor();
  await page.waitForLoadState('networkidle');
  assert.deepEqual([...new Set(asked)].sort(), ['/', '/try-it/app.css', '/try-it/app.js', '/try-it/icon.svg']);

  const other = await tryIt.context();
  const [a, b] = [new Tab(page), await tryIt.tab(other)];
  await b.signIn('markup@example.org');
  await a.signIn('evil@example.org');
  await a.add('markup@example.org');
  await a.write('<img src=x onerror=alert(1)><script>alert(2)</script>');
  await b.open('Evil');
  assert.deepEqual(await b.texts(), ['<img src=x onerror=alert(1)><script>alert(2)</script>']);
  assert.equal(await b.page.locator('.words > *').count(), 0);
  await Promise.all([context.close(), other.close()]);
});

// Notifications of the try-it page: of messages that arrive while the page is in the background, and of pushes while it is closed. Chromium
// cannot reach a push service here, so the test has one that the server pushes to, and hands the contents to the service worker by the DevTools protocol.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';
import { PushService } from '../test-support/push-service.mjs';
import { artifacts, check, overflows, skip, TryIt, until } from './try-it-support.mjs';

let tryIt;
let service;
before(async () => {
  if (skip) return;
  service = await PushService.start();
  tryIt = await TryIt.start({ SEALWIRE__PUSH__ALLOW_INSECURE: 'true', SEALWIRE__PUSH__CONTACT: 'mailto:operator@push.example' });
});
after(async () => {
  await tryIt?.stop();
  await service?.stop();
});
afterEach(() => {
  if (tryIt) assert.deepEqual(tryIt.problems.splice(0), []);
});

const SWITCH = 'Notify me of new messages';

/** A browser of one person, in which notifications are allowed, denied, or `prompt`, and subscriptions are those of the test's push service. */
class Browser {
  /** What was pushed, as text. */
  contents = [];
  workers = [];
  /** The ops on push targets that its pages have sent. */
  ops = [];

  static async open(permission, options = {}) {
    const browser = new Browser();
    browser.context = await tryIt.context(options);
    browser.context.on('serviceworker', (worker) => browser.workers.push(worker));
    onRequest(browser.context, ({ op }) => op.startsWith('push.') && browser.ops.push(op));
    await browser.context.exposeFunction('newSubscription', () => {
      const { target, contents } = service.subscribe();
      browser.contents = contents;
      return target;
    });
    await browser.context.addInitScript(subscriptions);
    browser.control = await browser.context.newPage();
    browser.devTools = await browser.context.newCDPSession(browser.control);
    await browser.devTools.send('ServiceWorker.enable');
    browser.registrations = new Map();
    browser.devTools.on('ServiceWorker.workerRegistrationUpdated', ({ registrations }) => {
      for (const registration of registrations) browser.registrations.set(registration.registrationId, registration);
    });
    await browser.permit(permission);
    return browser;
  }

  async permit(setting) {
    const { targetInfo } = await this.devTools.send('Target.getTargetInfo');
    const { browserContextId } = targetInfo;
    // The permission lasts as long as the session.
    this.permissions ??= await tryIt.browser.newBrowserCDPSession();
    await this.permissions.send('Browser.setPermission', { permission: { name: 'notifications' }, setting, origin: tryIt.server.url, browserContextId });
  }

  /** The registrations of the service worker that there are. */
  get registered() {
    return [...this.registrations.values()].filter(({ isDeleted }) => !isDeleted);
  }

  /** Hands the last content that was pushed to the service worker. */
  async deliver() {
    const [{ registrationId }] = this.registered;
    await this.devTools.send('ServiceWorker.deliverPushMessage', { origin: tryIt.server.url, registrationId, data: this.contents.at(-1) });
  }

  /** The service worker, to run scripts in it. */
  get worker() {
    return this.workers.at(-1);
  }

  /** The notifications that are shown. */
  shown() {
    return this.worker.evaluate(async () => (await self.registration.getNotifications()).map(({ title, body }) => `${title}: ${body}`));
  }

  /** Waits until exactly this is shown. */
  async shows(expected) {
    let shown;
    const isShown = async () => (shown = (await this.shown()).join()) === expected;
    await until(isShown, () => `the notification ${expected}; shown was: ${shown}`);
  }

  /** Clicks on the notification with this title. Resolves to what the worker did: `focus`, or the path that it opened. A script may do neither. */
  click(title) {
    return this.worker.evaluate(async (title) => {
      const done = [];
      WindowClient.prototype.focus = async () => void done.push('focus');
      Clients.prototype.openWindow = async (path) => void done.push(path);
      let handled;
      ExtendableEvent.prototype.waitUntil = (promise) => (handled = promise);
      const notification = (await self.registration.getNotifications()).find((one) => one.title === title);
      self.dispatchEvent(new NotificationEvent('notificationclick', { notification }));
      await handled;
      return done;
    }, title);
  }

  async close() {
    await this.context.close();
    await this.permissions.detach();
  }
}

/** In a page: replaces the push manager of each registration. As in browsers, a subscription survives the page and ends with its registration. */
function subscriptions() {
  // Not there on the empty page.
  if (!globalThis.ServiceWorkerRegistration) return;
  const { unregister } = ServiceWorkerRegistration.prototype;
  const name = ({ scope }) => `subscription of ${scope}`;
  const restored = (registration) => {
    const stored = JSON.parse(localStorage.getItem(name(registration)));
    if (!stored) return null;
    const key = atob(stored.key.replaceAll('-', '+').replaceAll('_', '/'));
    return {
      options: { applicationServerKey: Uint8Array.from(key, (char) => char.charCodeAt(0)).buffer },
      toJSON: () => ({ endpoint: stored.endpoint, keys: { p256dh: stored.p256dh, auth: stored.auth } }),
      unsubscribe: async () => (localStorage.removeItem(name(registration)), true),
    };
  };
  Object.defineProperty(ServiceWorkerRegistration.prototype, 'pushManager', {
    get() {
      return {
        getSubscription: async () => restored(this),
        subscribe: async ({ userVisibleOnly, applicationServerKey }) => {
          if (!userVisibleOnly || !this.active) throw new Error('a browser refuses this');
          if (window.slowPushService) await new Promise((resolve) => (window.slowPushService = resolve));
          if (window.noPushService) throw new DOMException('Registration failed - push service error', 'AbortError');
          const target = await window.newSubscription();
          localStorage.setItem(name(this), JSON.stringify({ ...target, key: applicationServerKey }));
          return restored(this);
        },
      };
    },
  });
  ServiceWorkerRegistration.prototype.unregister = function () {
    localStorage.removeItem(name(this));
    return unregister.call(this);
  };
}

/** Calls `handle` with each request that pages of a browser send over the socket. */
function onRequest(context, handle) {
  context.on('page', (page) => page.on('websocket', (socket) => socket.on('framesent', ({ payload }) => handle(JSON.parse(payload)))));
}

/** Puts a tab into the background, or back. */
async function show(tab, visible) {
  await tab.page.evaluate((state) => {
    Object.defineProperty(document, 'visibilityState', { configurable: true, get: () => state });
    document.dispatchEvent(new Event('visibilitychange'));
  }, visible ? 'visible' : 'hidden');
}

async function settings(tab) {
  await tab.page.locator('.me').click();
  await tab.page.locator('.devices li').first().waitFor();
}

/** Somebody in a browser with notifications, and a friend who has written. */
async function twoPeople(name, friend, permission = 'granted', options = {}) {
  const browser = await Browser.open(permission, options);
  const tab = await tryIt.tab(browser.context);
  await tab.signIn(`${name}@example.org`);
  const other = await tryIt.context();
  const sends = [];
  onRequest(other, ({ op, params }) => op === 'messages.send' && !params.ephemeral && sends.push(params));
  const writer = await tryIt.tab(other);
  await writer.signIn(`${friend}@example.org`);
  await writer.add(`${name}@example.org`);
  await writer.write('Good morning');
  await tab.open(friend[0].toUpperCase() + friend.slice(1));
  await tab.message('Good morning').waitFor();
  return { browser, tab, writer, sends, close: () => Promise.all([browser.close(), other.close()]) };
}

/** Turns notifications on, and delivers the push that confirms the registration. */
async function turnOn({ browser, tab }) {
  browser.contents = [];
  await settings(tab);
  await tab.page.getByRole('switch', { name: SWITCH }).click();
  await until(() => browser.contents.length === 1, 'a push with a nonce');
  await browser.deliver();
  await tab.page.getByText('While it is closed, only that a message came').waitFor();
  await tab.closeDialog();
}

test('a message is shown while the page is in the background; while it is closed, a push says only that there is one', { skip }, async () => {
  const people = await twoPeople('alice', 'bob');
  const { browser, tab, writer, sends } = people;
  await turnOn(people);
  // The page was visible.
  assert.deepEqual(await browser.shown(), []);
  await writer.write('You are looking at this');
  await writer.reached('You are looking at this', 'read');
  assert.deepEqual(await browser.shown(), []);

  await show(tab, false);
  await writer.write('Lunch at noon?');
  await browser.shows('Bob: Lunch at noon?');
  await writer.write('Or at one?');
  await browser.shows('Bob (2): Or at one?');

  // A click shows the conversation.
  await tab.page.evaluate(() => history.back());
  await tab.page.getByRole('heading', { name: 'Choose a conversation' }).waitFor();
  await settings(tab);
  assert.deepEqual(await browser.click('Bob (2)'), ['focus']);
  await show(tab, true);
  await tab.page.getByRole('heading', { level: 2, name: 'Bob' }).waitFor();
  await writer.reached('Or at one?', 'read');
  await until(async () => (await browser.shown()).length === 0, 'no notification');

  // The tab is closed. The push says no more than that there is something, and so does the notification.
  await tab.page.close();
  await writer.write('A secret');
  await until(() => browser.contents.length === 2, 'a wake-up');
  assert.equal(browser.contents[1], '{"sealwire":"wake"}');
  await browser.deliver();
  await browser.shows('New message: For alice@example.org. Open it to read.');
  await writer.reached('A secret', 'stored');

  // A click opens the page as Alice, with what has arrived.
  const [path] = await browser.click('New message');
  assert.match(path, /^\/#open=\w+$/);
  const reopened = await tryIt.tab(browser.context, path.slice(1));
  await reopened.connected();
  await reopened.row('Bob').locator('.row-count', { hasText: '1' }).waitFor();
  await reopened.open('Bob');
  await writer.reached('A secret', 'read');
  await until(async () => (await browser.shown()).length === 0, 'no notification');
  // Receipts wake nobody.
  await reopened.write('On my way');
  await reopened.reached('On my way', 'read');
  const urgent = sends.filter(({ urgent }) => urgent !== false);
  assert.deepEqual([urgent.length, sends.length > urgent.length], [5, true]);
  await people.close();
});

test('of several tabs of a person one shows a message, and none if one of them is visible', { skip }, async () => {
  const people = await twoPeople('wanda', 'xaver');
  const { browser, tab, writer } = people;
  await turnOn(people);
  const copy = await tab.page.evaluate(() => ({ ...sessionStorage }));
  await browser.context.addInitScript(() => {
    if (!globalThis.ServiceWorkerRegistration) return;
    const { showNotification } = ServiceWorkerRegistration.prototype;
    window.shows = [];
    window.looks = 0;
    const query = navigator.locks.query.bind(navigator.locks);
    navigator.locks.query = () => (window.looks++, query());
    ServiceWorkerRegistration.prototype.showNotification = function (title, options) {
      window.shows.push(`${title}: ${options.body}`);
      return showNotification.call(this, title, options);
    };
  });
  await tab.page.reload();
  await tab.connected();
  const page = await browser.context.newPage();
  await page.addInitScript((entries) => Object.entries(entries).forEach(([key, value]) => sessionStorage.setItem(key, value)), copy);
  await page.goto(tryIt.server.url);
  const second = new tab.constructor(page);
  await second.connected();
  const shows = async () => (await Promise.all([tab, second].map(({ page }) => page.evaluate(() => window.shows)))).flat();

  // The first tab has the connection, the second is visible, and shows the list.
  await show(tab, false);
  await writer.write('In the list');
  await second.row('Xaver').locator('.row-count', { hasText: '1' }).waitFor();
  await until(() => tab.page.evaluate(() => window.looks === 1), 'whether a tab is visible');
  await show(second, false);
  const texts = ['In nobody’s sight', 'Nor this'];
  const notifications = ['Xaver (2): In nobody’s sight', 'Xaver (3): Nor this'];
  for (const [i, text] of texts.entries()) {
    await writer.write(text);
    await browser.shows(notifications[i]);
  }
  assert.deepEqual(await shows(), notifications);
  await show(second, true);
  await until(async () => (await browser.shown()).length === 0, 'no notification');
  await people.close();
});

test('a notification of a closed conversation opens it, with the list behind', { skip }, async () => {
  const people = await twoPeople('carla', 'dirk');
  const { browser, tab, writer } = people;
  await turnOn(people);
  await show(tab, false);
  await writer.write('Before it is closed');
  await browser.shows('Dirk: Before it is closed');
  await tab.page.close();
  const [path] = await browser.click('Dirk');
  const reopened = await tryIt.tab(browser.context, path.slice(1));
  await reopened.page.getByRole('heading', { level: 2, name: 'Dirk' }).waitFor();
  assert.equal(new URL(reopened.page.url()).hash, '');
  await reopened.page.goBack();
  await reopened.page.getByRole('heading', { name: 'Choose a conversation' }).waitFor();
  await people.close();
});

test('a confirmation that comes while no tab is open counts when the page is opened again', { skip }, async () => {
  const people = await twoPeople('edda', 'finn');
  const { browser, tab } = people;
  await settings(tab);
  await tab.page.getByRole('switch', { name: SWITCH }).click();
  await until(() => browser.contents.length === 1, 'a push with a nonce');
  await tab.page.getByText('the push service of the browser has yet to answer').waitFor();
  const profile = await tab.page.evaluate(() => sessionStorage.getItem('try-it/profile'));
  await tab.page.close();
  await browser.deliver();
  await browser.shows('Notifications are on: New messages for edda@example.org are shown, also while the tab is closed.');
  const reopened = await tryIt.tab(browser.context, `#open=${profile}`);
  await reopened.connected();
  await settings(reopened);
  await reopened.page.getByText('While it is closed, only that a message came').waitFor();
  await people.close();
});

test('two people in one browser have subscriptions of their own, and a visible tab of one hides nothing of the other', { skip }, async () => {
  const people = await twoPeople('gina', 'hugo');
  const { browser, tab, writer } = people;
  await turnOn(people);
  const other = await tryIt.tab(browser.context, '#new');
  await other.signIn('ida@example.org');
  await show(tab, false);
  await writer.write('For Gina only');
  await browser.shows('Hugo: For Gina only');
  await settings(other);
  assert.equal(await other.page.getByRole('switch', { name: SWITCH }).getAttribute('aria-checked'), 'false');
  await other.page.getByRole('switch', { name: SWITCH }).click();
  await until(() => browser.registered.length === 2, 'two registrations');
  await people.close();
});

test('the page offers notifications once, after a message that came in the background', { skip }, async () => {
  const people = await twoPeople('jule', 'kurt');
  const { browser, tab, writer } = people;
  const offer = tab.page.locator('.offer');
  assert.equal(await offer.isVisible(), false);
  await show(tab, false);
  await writer.write('You missed this');
  await offer.waitFor();
  await show(tab, true);
  await check(tab.page, 'the offer');
  await tab.button('Not now').click();
  await tab.page.locator('.notice', { hasText: 'You can turn them on in your account.' }).waitFor();
  await offer.waitFor({ state: 'hidden' });
  await show(tab, false);
  await writer.write('And this');
  await tab.row('Kurt').locator('.row-count', { hasText: '2' }).or(tab.message('And this')).first().waitFor();
  assert.equal(await offer.isVisible(), false);
  assert.equal(browser.registered.length, 0);

  const another = await twoPeople('lars', 'mona');
  await show(another.tab, false);
  await another.writer.write('You missed this');
  await another.tab.page.locator('.offer').waitFor();
  await another.tab.button('Notify me').click();
  await another.tab.page.locator('.notice', { hasText: 'Notifications are on. The switch is in your account.' }).waitFor();
  await until(() => another.browser.contents.length === 1, 'a push with a nonce');
  await Promise.all([people.close(), another.close()]);
});

test('where the browser blocks notifications the page says so, and offers them when that changes', { skip }, async () => {
  const { browser, tab, writer, close } = await twoPeople('nele', 'otto', 'denied');
  await show(tab, false);
  await writer.write('Without a notification');
  await tab.message('Without a notification').waitFor();
  await show(tab, true);
  assert.equal(await tab.page.locator('.offer').isVisible(), false);
  await settings(tab);
  await tab.page.getByText('The browser blocks notifications of this page.').waitFor();
  assert.equal(await tab.page.getByRole('switch').count(), 0);
  await check(tab.page, 'blocked notifications');
  await browser.permit('granted');
  await tab.page.getByRole('switch', { name: SWITCH }).waitFor();
  assert.equal(browser.registered.length, 0);
  await close();
});

test('without a push service, messages are shown while the page is open', { skip }, async () => {
  const { browser, tab, writer, close } = await twoPeople('paul', 'resi');
  await tab.page.evaluate(() => (window.noPushService = true));
  await settings(tab);
  await tab.page.getByRole('switch', { name: SWITCH }).click();
  await tab.page.getByText('it cannot be reached').waitFor();
  await tab.closeDialog();
  await show(tab, false);
  await writer.write('Still here?');
  await browser.shows('Resi: Still here?');
  await close();
});

test('a browser that tries to subscribe for ever can be switched off meanwhile', { skip }, async () => {
  const { browser, tab, close } = await twoPeople('yves', 'zoe');
  await tab.page.clock.install();
  await tab.page.evaluate(() => (window.slowPushService = true));
  await settings(tab);
  const toggle = tab.page.getByRole('switch', { name: SWITCH });
  await toggle.click();
  await tab.page.getByText('the push service of the browser has yet to answer').waitFor();
  await until(() => tab.page.evaluate(() => typeof window.slowPushService === 'function'), 'a subscription that is asked for');
  await tab.page.clock.fastForward(31_000);
  await tab.page.getByText('it cannot be reached').waitFor();
  await toggle.click();
  await until(async () => (await toggle.getAttribute('aria-checked')) === 'false' && browser.registered.length === 0, 'switched off');

  // It subscribes after all: that is undone.
  await tab.page.evaluate(() => window.slowPushService());
  await until(() => browser.ops.length === 2, 'two requests');
  assert.deepEqual(browser.ops, ['push.register', 'push.remove']);
  assert.equal(await toggle.getAttribute('aria-checked'), 'false');
  await close();
});

test('switched off, signed out or removed, the browser is not woken any more; signed in again, it is', { skip }, async () => {
  const people = await twoPeople('stella', 'theo');
  const { browser, tab, writer } = people;
  await turnOn(people);
  await settings(tab);
  const toggle = tab.page.getByRole('switch', { name: SWITCH });
  await toggle.click();
  await until(() => browser.registered.length === 0, 'no registration');
  assert.equal(await toggle.getAttribute('aria-checked'), 'false');
  await tab.closeDialog();
  await show(tab, false);
  await writer.write('Seen by nobody');
  await tab.message('Seen by nobody').waitFor();
  assert.equal(await tab.page.locator('.offer').isVisible(), false);
  await show(tab, true);

  // Signed out: the server has no target, so nothing is pushed.
  const first = browser.contents;
  await turnOn(people);
  await settings(tab);
  await tab.button('Sign out').click();
  await tab.button('Sign out').last().click();
  await tab.page.getByText('You are signed out.').waitFor();
  await until(() => browser.registered.length === 0, 'no registration');
  assert.equal(first.length, 1);
  const second = browser.contents;
  await writer.write('While signed out');
  await writer.reached('While signed out', 'stored');
  await tab.button('Continue').click();
  await tab.enterCode();
  await tab.connected();
  // The choice stays.
  await until(() => browser.contents !== second && browser.contents.length === 1, 'another subscription with its nonce');
  assert.equal(second.length, 1);
  await browser.deliver();

  assert.deepEqual(browser.ops.filter((op) => op !== 'push.confirm'), ['push.register', 'push.remove', 'push.register', 'push.remove', 'push.register']);

  // Removed by another device.
  await settings(tab);
  await tab.page.getByText('While it is closed, only that a message came').waitFor();
  await tab.button('Remove this device').click();
  await tab.button('Remove', true).last().click();
  await tab.page.getByText('This device was removed from the account').waitFor();
  await until(() => browser.registered.length === 0, 'no registration');
  assert.deepEqual(await tab.page.evaluate(() => caches.keys()), []);
  await people.close();
});

for (const scheme of ['light', 'dark']) {
  for (const [size, [width, height]] of Object.entries({ phone: [360, 740], desktop: [1280, 800] })) {
    test(`axe finds nothing, nothing overflows, and screenshots are kept: ${scheme}, ${size}`, { skip }, async () => {
      const options = { colorScheme: scheme, viewport: { width, height }, ...(size === 'phone' && { isMobile: true, hasTouch: true, deviceScaleFactor: 2 }) };
      const people = await twoPeople(`uwe-${scheme}-${size}`, 'vera', 'granted', options);
      const { browser, tab, writer } = people;
      const { page } = tab;
      const look = async (what) => {
        await check(page, `${scheme} ${size} ${what}`);
        assert.equal(await overflows(page), false, `${scheme} ${size} ${what} overflows`);
        await page.screenshot({ path: `${artifacts}${scheme}-${size}-${what}.png` });
      };
      await show(tab, false);
      await writer.write('The parcel is here!');
      await tab.message('The parcel is here!').waitFor();
      await show(tab, true);
      if (size === 'phone') await page.getByRole('button', { name: 'All conversations' }).click();
      await page.locator('.offer').waitFor();
      await look('11-offer');
      await settings(tab);
      await look('12-notifications-off');
      await page.getByRole('switch').click();
      await until(() => browser.contents.length === 1, 'a push with a nonce');
      await browser.deliver();
      await page.getByText('While it is closed, only that a message came').waitFor();
      await look('13-notifications-on');
      await browser.permit('denied');
      await page.getByText('The browser blocks notifications of this page.').waitFor();
      await look('14-notifications-blocked');
      await people.close();
    });
  }
}

// The try-it page of a real server, in headless Chromium.

import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { Server, skip as skipServer } from '../test-support/server.mjs';
import { executablePath, skipBrowser, until } from './support.mjs';

export const skip = skipServer || skipBrowser;
/** Where screenshots are kept. */
export const artifacts = fileURLToPath(new URL('../../../target/artifacts/try-it/', import.meta.url));

const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const ARGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];

/** A server with the page, and a browser. */
export class TryIt {
  /** What pages wrote to the console, threw, or asked of other origins. */
  problems = [];
  /** Whether the server was killed: then Chromium itself reports connections that fail. */
  wasDown = false;

  /** Starts both. `env` has further settings of the server. */
  static async start(env = {}) {
    const tryIt = new TryIt();
    tryIt.server = await Server.start({ SEALWIRE__MAILER__URL: 'log:', ...env });
    tryIt.browser = await chromium.launch({ executablePath, headless: true, args: ARGS });
    await mkdir(artifacts, { recursive: true });
    return tryIt;
  }

  async stop() {
    await this.browser?.close();
    await this.server?.stop();
  }

  async kill() {
    this.wasDown = true;
    await this.server.kill();
  }

  /** Another browser: a context with a storage of its own. */
  async context(options = {}) {
    const context = await this.browser.newContext({ viewport: { width: 1280, height: 800 }, locale: 'en-GB', timezoneId: 'UTC', reducedMotion: 'reduce', ...options });
    context.setDefaultTimeout(20_000);
    context.on('page', (page) => this.#watch(page));
    return context;
  }

  #watch(page) {
    page.on('console', (message) => {
      const text = message.text();
      if (this.wasDown && /ERR_(CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE)|WebSocket connection to/.test(text)) return;
      this.problems.push(`console: ${text}`);
    });
    page.on('pageerror', (error) => this.problems.push(`thrown: ${error.stack}`));
    const check = (url) => {
      if (new URL(url.replace(/^ws/, 'http')).origin !== this.server.url && !url.startsWith('data:')) this.problems.push(`another origin: ${url}`);
    };
    page.on('request', (request) => check(request.url()));
    page.on('websocket', (socket) => check(socket.url()));
  }

  /** A new tab. */
  async tab(context, hash = '') {
    const page = await context.newPage();
    await page.goto(`${this.server.url}/${hash}`);
    return new Tab(page);
  }
}

export const overflows = (page) => page.evaluate(() => document.documentElement.scrollWidth > innerWidth || [...document.querySelectorAll('.side, .talk, .hood, dialog, .card')].some((part) => part.scrollWidth > part.clientWidth + 1));

/** Fails if axe-core finds anything on the page as it is. */
export async function check(page, what) {
  // The policy of the page allows no scripts of others, so axe comes in through the debugger.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  const found = violations.map(({ id, nodes }) => `${what}: ${id}: ${nodes.map(({ html, failureSummary }) => `${html.slice(0, 160)} (${failureSummary})`).join('; ')}`);
  assert.deepEqual(found, []);
}

/** What a person does in a tab. */
export class Tab {
  constructor(page) {
    this.page = page;
  }

  button(name, exact = true) {
    return this.page.getByRole('button', { name, exact });
  }

  async signIn(address, device) {
    await this.page.getByLabel('Mail address').fill(address);
    await this.button('Continue').click();
    await this.enterCode(device);
    await this.connected();
  }

  /** The page fills in the code that it shows. */
  async enterCode(device) {
    await this.page.locator('.mail-code').waitFor();
    if (device) await this.page.getByLabel('Name of this device').fill(device);
    await this.button('Sign in').click();
  }

  connected() {
    return this.page.locator('.state[data-state=good]').waitFor();
  }

  async add(address) {
    await this.button('Add a person').first().click();
    await this.page.getByRole('dialog').getByLabel('Mail address').fill(address);
    await this.button('Add').click();
  }

  row(name) {
    return this.page.locator('.conversations .row', { hasText: name });
  }

  async open(name) {
    await this.row(name).click();
    await this.page.getByRole('heading', { level: 2, name }).waitFor();
  }

  async write(text) {
    await this.page.getByLabel('Message', { exact: true }).fill(text);
    await this.button('Send').click();
  }

  message(text) {
    return this.page.locator('.message', { hasText: text });
  }

  /** Waits until a message of this person got as far as `state`. */
  async reached(text, state) {
    await this.message(text).locator(`.tick-${state}`).waitFor();
  }

  /** The texts of the conversation, in order. */
  texts() {
    return this.page.locator('.message .words').allTextContents();
  }

  async safetyNumber() {
    await this.page.locator('.who').click();
    const groups = this.page.locator('.safety > span');
    await until(async () => /^(\d{5}){12}$/.test((await groups.allTextContents()).join('')), 'a safety number');
    return (await groups.allTextContents()).join(' ');
  }

  async closeDialog() {
    await this.page.keyboard.press('Escape');
    await this.page.locator('dialog').waitFor({ state: 'detached' });
  }

  async hood() {
    if (await this.page.locator('.hood').isVisible()) return;
    await this.button('Under the hood').locator('visible=true').click();
    await this.page.locator('.hood').waitFor();
  }
}

export { until };

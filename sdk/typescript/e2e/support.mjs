// Clients that note what they get, and pages in headless Chromium: a server for them, the SDK bundled, and the browser.

import { build } from 'esbuild';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { x3dhCrypto } from '@sealwire/x3dh';
import { chromium } from 'playwright-core';
import WebSocket from 'ws';

export { until } from '../test-support/until.mjs';

export const executablePath =
  process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/chromium-headless-shell', '/usr/bin/google-chrome'].find((path) => existsSync(path));
export const skipBrowser = executablePath ? false : 'no Chromium: install it, or name it in CHROMIUM';

const opened = [];

/** A client with storage in memory and short waits. `inbox`, `problems` and `states` are what it got and went through. */
export function openClient(url, options = {}) {
  const client = new SealwireClient({ url, storage: memoryStorage(), crypto: x3dhCrypto(), WebSocket, random: () => Math.random() * 0.05, ...options });
  client.inbox = [];
  client.problems = [];
  client.states = [];
  client.on('message', (m) => client.inbox.push(m.text));
  client.on('state', ({ state, reason }) => client.states.push(reason ?? state));
  for (const event of ['error', 'undecryptable', 'untrusted', 'failed']) client.on(event, (data) => client.problems.push([event, data]));
  opened.push(client);
  return client;
}

export const closeClients = () => Promise.all(opened.splice(0).map((client) => client.close()));

async function bundle(entry) {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false,
    sourcemap: 'inline',
  });
  return outputFiles[0].text;
}

/** Serves one page with the script `entry` of this folder, bundled, and `worker` as `/worker.js` if there is one. */
export class Pages {
  static async start(entry, worker) {
    const pages = new Pages();
    const scripts = { '/app.js': await bundle(entry), ...(worker && { '/worker.js': await bundle(worker) }) };
    pages.server = createServer((request, response) => {
      const script = scripts[request.url.split('?')[0]];
      if (script) {
        response.writeHead(200, { 'content-type': 'text/javascript' }).end(script);
      } else {
        response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><title>test</title><script type="module" src="/app.js"></script>');
      }
    });
    await new Promise((resolve) => pages.server.listen(0, '127.0.0.1', resolve));
    pages.origin = `http://127.0.0.1:${pages.server.address().port}`;
    return pages;
  }

  stop() {
    this.server.closeAllConnections();
    return new Promise((resolve) => this.server.close(resolve));
  }
}

/** Chromium with an empty profile, in which IndexedDB is kept on disk. */
export async function openBrowser() {
  const profile = await mkdtemp(join(tmpdir(), 'sealwire-chromium-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  return {
    context,
    async close() {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}

/** The seed of a test: from SEED, or the time. Printed, so that a failure can be repeated. */
export function newSeed() {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  console.log(`SEED=${seed}`);
  return seed;
}

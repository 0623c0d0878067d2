// A client in Node with storage in a file is killed (-9) at random moments while it sends and receives, and so is the server.
//
//     SEED=1 CLIENT_KILLS=60 KILLS=5 node --test e2e/kill.test.mjs

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { memoryStorage, SealwireClient } from '@sealwire/client';
import { fileStorage } from '@sealwire/client/node';
import { x3dhCrypto } from '@sealwire/x3dh';
import WebSocket from 'ws';
import { seeded } from '../test-support/adapter-contract.mjs';
import { Server, skip } from '../test-support/server.mjs';
import { newSeed, until } from './support.mjs';

const CLIENT_KILLS = Number(process.env.CLIENT_KILLS ?? 60);
const KILLS = Number(process.env.KILLS ?? 5);
const MESSAGES = Number(process.env.MESSAGES ?? 200);

let server;
let dir;
before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'sealwire-kill-'));
  if (!skip) server = await Server.start();
});
after(async () => {
  await server?.stop();
  await rm(dir, { recursive: true, force: true });
});

test(`a client that is killed ${CLIENT_KILLS} times, and a server that is killed ${KILLS} times`, { skip }, async () => {
  const random = seeded(newSeed());
  const file = join(dir, 'alice');
  const problems = [];
  const fromAlice = [];
  const bob = new SealwireClient({ url: server.url, storage: memoryStorage(), crypto: x3dhCrypto(), WebSocket, random: () => Math.random() * 0.05 });
  bob.on('message', (m) => fromAlice.push(m.text));
  for (const event of ['error', 'undecryptable', 'untrusted', 'failed']) bob.on(event, (data) => problems.push(`bob: ${event}: ${JSON.stringify(data)}`));
  await server.signIn(bob, 'bob@kill.example');
  const alice = new SealwireClient({ url: server.url, storage: fileStorage(file), crypto: x3dhCrypto(), WebSocket });
  await server.signIn(alice, 'alice@kill.example');
  const to = alice.account.userId;
  await alice.close();

  let last = {};
  const run = () => {
    const args = [server.url, file, bob.account.userId, String(MESSAGES)];
    const child = spawn(process.execPath, [fileURLToPath(new URL('kill-child.mjs', import.meta.url)), ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    const kill = () => child.kill('SIGKILL');
    process.once('exit', kill);
    child.once('exit', () => process.off('exit', kill));
    createInterface(child.stdout).on('line', (line) => {
      const report = JSON.parse(line);
      if (report.problem) problems.push(report.problem);
      last = { ...last, ...report };
    });
    child.stderr.on('data', (chunk) => problems.push(String(chunk)));
    return { child, ended: new Promise((resolve) => child.once('exit', resolve)) };
  };

  const answers = (async () => {
    for (let i = 0; i < MESSAGES; i++) {
      await bob.send(to, `b ${i}`);
      await pause(random() * 50);
    }
  })();
  const kills = (async () => {
    for (let i = 0; i < KILLS; i++) {
      await pause(1000 + random() * 2000);
      await server.kill();
      await pause(random() * 200);
      await server.restart();
    }
  })();
  for (let i = 0; i < CLIENT_KILLS; i++) {
    last = {};
    const { child, ended } = run();
    // Most kills come after it has connected.
    if (i % 5 !== 0) await until(() => last.connected || child.exitCode !== null, 'connected', 20_000).catch(() => {});
    await pause(random() * 120);
    child.kill('SIGKILL');
    await ended;
  }
  await kills;
  await answers;
  last = {};
  const { ended } = run();
  await until(() => last.received, () => `the client has received everything; bob has ${fromAlice.length}; ${problems}`, 60_000);
  await ended;
  await until(() => fromAlice.length >= MESSAGES);
  assert.deepEqual(problems, []);
  assert.deepEqual(last.received, Array.from({ length: MESSAGES }, (_, i) => `b ${i}`));
  assert.deepEqual(fromAlice, Array.from({ length: MESSAGES }, (_, i) => `d ${i}`));
  assert.deepEqual(last.pending, []);
  const left = [last.status.one_time, (await bob.request('keys.status')).one_time];
  assert(left.every((count) => count >= 99), `keys left: ${left}`);
  await bob.close();
});

// One suite for every storage that runs in Node; IndexedDB has the same in a browser.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { appendFileSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { memoryStorage } from '@sealwire/client';
import { fileStorage } from '@sealwire/client/node';
import { Store, Transaction } from '../dist/storage.js';
import { storageContract } from '../../../test-support/storage-contract.mjs';

const dir = mkdtempSync(join(tmpdir(), 'sealwire-storage-'));
after(() => rmSync(dir, { recursive: true }));
let files = 0;
const path = () => join(dir, `file-${files++}`);

for (const [name, make] of [['memory', memoryStorage], ['file', () => fileStorage(path())], ['file without sync', () => fileStorage(path(), { sync: false })]]) {
  for (const [what, check] of Object.entries(storageContract)) {
    test(`${name}: ${what}`, async () => {
      const storage = make();
      await check(storage, assert);
      await storage.close?.();
    });
  }
}

test('file: everything is there after it is opened again', async () => {
  const file = path();
  let storage = fileStorage(file);
  await storage.write(new Map([['a', 1], ['b', new Uint8Array([1, 2])], ['c', { $bytes: 'x', $$y: [null, true] }]]));
  await storage.write(new Map([['a', undefined], ['d', 'ü']]));
  await storage.close();
  storage = fileStorage(file);
  assert.deepEqual(await storage.list(''), [['b', new Uint8Array([1, 2])], ['c', { $bytes: 'x', $$y: [null, true] }], ['d', 'ü']]);
  await storage.close();
});

test('file: a batch that was cut off anywhere is not there, and all before it is', async () => {
  const file = path();
  const storage = fileStorage(file);
  await storage.write(new Map([['a', 1]]));
  const whole = statSync(file).size;
  await storage.write(new Map([['a', 2], ['b', new Uint8Array(40)]]));
  await storage.close();
  const bytes = readFileSync(file);
  for (let length = whole; length < bytes.length; length++) {
    writeFileSync(file, bytes.subarray(0, length));
    const cut = fileStorage(file);
    assert.deepEqual(await cut.list(''), [['a', 1]], `cut at ${length}`);
    await cut.write(new Map([['c', 3]]));
    await cut.close();
    const again = fileStorage(file);
    assert.deepEqual(await again.list(''), [['a', 1], ['c', 3]]);
    await again.close();
  }
});

test('file: damage in the middle is an error, and not a loss without a word', async () => {
  const file = path();
  const storage = fileStorage(file);
  for (let i = 0; i < 5; i++) await storage.write(new Map([[`key-${i}`, i]]));
  await storage.close();
  const bytes = readFileSync(file);
  bytes[30] ^= 1;
  writeFileSync(file, bytes);
  await assert.rejects(fileStorage(file).get('key-4'), /damaged/);
  assert(!existsSync(`${file}.lock`));
});

test('file: it does not grow without end', async () => {
  const file = path();
  const storage = fileStorage(file, { sync: false });
  for (let i = 0; i < 400; i++) await storage.write(new Map([[`key-${i % 10}`, new Uint8Array(10_000)]]));
  assert(statSync(file).size < 2_000_000);
  await storage.close();
  const again = fileStorage(file);
  assert.equal((await again.list('key-')).length, 10);
  await again.close();
});

test('file: one process at a time, but a killed one does not count', async () => {
  const file = path();
  const storage = fileStorage(file);
  await storage.write(new Map([['a', 1]]));
  await assert.rejects(fileStorage(file).get('a'), /in use by process/);
  const other = (code) => spawnSync(process.execPath, ['--input-type=module', '-e', `
    import { fileStorage } from ${JSON.stringify(new URL('../dist/node.js', import.meta.url).href)};
    const storage = fileStorage(${JSON.stringify(file)});
    ${code}`], { encoding: 'utf8' });
  assert.match(other('await storage.get("a")').stderr, /in use by process/);
  await storage.close();
  const killed = other('await storage.write(new Map([["b", 2]])); process.kill(process.pid, "SIGKILL")');
  assert.equal(killed.signal, 'SIGKILL');
  assert(existsSync(`${file}.lock`));
  const again = fileStorage(file);
  assert.deepEqual(await again.list(''), [['a', 1], ['b', 2]]);
  await again.close();
});

test('a file with a line of rubbish at its end', async () => {
  const file = path();
  const storage = fileStorage(file);
  await storage.write(new Map([['a', 1]]));
  await storage.close();
  appendFileSync(file, 'rubbish\n');
  const again = fileStorage(file);
  assert.equal(await again.get('a'), 1);
  await again.close();
  truncateSync(file, 0);
  const empty = fileStorage(file);
  assert.deepEqual(await empty.list(''), []);
  await empty.close();
});

test('transactions run one after the other, and store all or nothing', async () => {
  const writes = [];
  const memory = memoryStorage();
  const store = new Store({ ...memory, write: (batch) => (writes.push([...batch.keys()]), memory.write(batch)) });
  const order = [];
  await Promise.all([
    store.transaction(async (tx) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      order.push(1);
      tx.set('a', 1);
      tx.set('b', 1);
    }),
    store.transaction(async (tx) => {
      order.push(2);
      assert.equal(await tx.get('a'), 1);
      tx.delete('b');
      assert.equal(await tx.get('b'), undefined);
      assert.deepEqual(await tx.list(''), [['a', 1]]);
    }),
    assert.rejects(store.transaction((tx) => { tx.set('c', 1); throw new Error('no'); }), /no/),
  ]);
  assert.deepEqual(order, [1, 2]);
  assert.deepEqual(writes, [['a', 'b'], ['b']]);
  await store.transaction(async (tx) => {
    tx.set('d', 1);
    await assert.rejects(tx.attempt(async (inner) => { inner.set('d', 2); inner.delete('a'); throw new Error('no'); }));
    await tx.attempt(async (inner) => { assert.equal(await inner.get('d'), 1); inner.set('e', 1); });
    assert(tx instanceof Transaction);
  });
  assert.deepEqual(await memory.list(''), [['a', 1], ['d', 1], ['e', 1]]);
});

test('a failure of the storage is a StorageError', async () => {
  const store = new Store({ ...memoryStorage(), write: async () => { throw new Error('disk full'); } });
  await assert.rejects(store.transaction((tx) => tx.set('a', 1)), { name: 'StorageError', code: 'storage', message: /disk full/ });
});

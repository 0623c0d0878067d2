import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { closeCodes, errorCodes, limits, ops } from '@sealwire/client/protocol';
import { generate } from '../../../scripts/generate.mjs';

const doc = (name) => readFile(new URL(`../../../../../docs/${name}`, import.meta.url), 'utf8');

test('the generated types and tables are current', async () => {
  const current = await readFile(new URL('../src/protocol.ts', import.meta.url), 'utf8');
  assert(current === (await generate()), 'packages/core/src/protocol.ts is not current: run npm run generate');
});

test('the tables agree with docs/protocol.md', async () => {
  const protocol = await doc('protocol.md');
  const section = (title) => protocol.split(`\n## ${title}\n`)[1].split('\n## ')[0];
  const rows = (text) => [...text.matchAll(/^\| (.*) \|$/gm)].map(([, row]) => row.split(' | ').map((cell) => cell.trim()));

  const codes = rows(section('Error codes')).filter(([code]) => /^`\w+`$/.test(code));
  assert.deepEqual(
    codes.map(([code, status, retry]) => [code.slice(1, -1), Number(status), retry === 'yes']),
    Object.entries(errorCodes).map(([code, { httpStatus, retryable }]) => [code, httpStatus, retryable]),
  );
  const closes = rows(section('Close codes')).filter(([code]) => /^\d+$/.test(code));
  assert.deepEqual(
    closes.map(([code, reason, reconnect]) => [code, reason, reconnect === 'yes']),
    Object.entries(closeCodes).map(([code, { reason, reconnect }]) => [code, reason, reconnect]),
  );
  const documented = rows(section('Ops').split('\n### ')[0]).map(([op]) => op.match(/^\[`(.*)`\]/)?.[1]).filter(Boolean);
  assert.deepEqual([...ops], documented);
  assert.equal(limits.frame_bytes, 512 * 1024);
});

test('closes that reconnect are those below 4500', () => {
  for (const [code, { reconnect }] of Object.entries(closeCodes)) assert.equal(reconnect, Number(code) < 4500, code);
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { safetyNumber, x3dhCrypto } from '@sealwire/x3dh';
import { adapterContract, Party, randomSchedule, seeded } from '../../../test-support/adapter-contract.mjs';

for (const [what, check] of Object.entries(adapterContract)) test(what, () => check(x3dhCrypto, assert));

test('random schedules', async () => {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  console.log(`SEED=${seed}`);
  for (let i = 0; i < 5; i++) await randomSchedule(x3dhCrypto, assert, seeded(seed + i), 150);
});

test('a safety number is the same on both sides, and another for other keys', async () => {
  const parties = [await Party.create(x3dhCrypto, 1), await Party.create(x3dhCrypto, 1), await Party.create(x3dhCrypto, 1)];
  const [alice, bob, eve] = parties.map(({ address: { userId }, identityKey }) => ({ userId, identityKey }));
  assert.equal(safetyNumber(alice, bob), safetyNumber(bob, alice));
  assert.match(safetyNumber(alice, bob), /^\d{60}$/);
  assert.notEqual(safetyNumber(alice, bob), safetyNumber(alice, { ...bob, identityKey: eve.identityKey }));
});

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { libsignalCrypto, safetyNumber } from '@sealwire/libsignal';
import { adapterContract, Party, randomSchedule, seeded } from '../../../test-support/adapter-contract.mjs';

for (const [what, check] of Object.entries(adapterContract)) test(what, () => check(libsignalCrypto, assert));

test('random schedules', async () => {
  const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
  console.log(`SEED=${seed}`);
  for (let i = 0; i < 5; i++) await randomSchedule(libsignalCrypto, assert, seeded(seed + i), 150);
});

test('a safety number is the same on both sides', async () => {
  const [alice, bob] = [await Party.create(libsignalCrypto, 1), await Party.create(libsignalCrypto, 1)];
  const side = ({ address: { userId }, identityKey }) => ({ userId, identityKey });
  assert.equal(safetyNumber(side(alice), side(bob)), safetyNumber(side(bob), side(alice)));
  assert.match(safetyNumber(side(alice), side(bob)), /^\d{60}$/);
});

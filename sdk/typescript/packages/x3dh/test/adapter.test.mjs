import assert from 'node:assert/strict';
import { test } from 'node:test';
import { knownIdentityKeys, safetyNumber, x3dhCrypto } from '@sealwire/x3dh';
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

test('each side knows the identity key of the other: that of the bundle, and that of the first message', async () => {
  const [alice, bob] = [await Party.create(x3dhCrypto, 1), await Party.create(x3dhCrypto, 1)];
  const known = (party) => party.run((tx) => knownIdentityKeys(tx));
  assert.deepEqual(await known(alice), new Map());
  await alice.open(bob, bob.bundle());
  assert.deepEqual(await known(alice), new Map([[bob.address.deviceId, bob.identityKey]]));
  await bob.decrypt(alice, await alice.encrypt(bob, 'hello'));
  assert.deepEqual(await known(bob), new Map([[alice.address.deviceId, alice.identityKey]]));
});

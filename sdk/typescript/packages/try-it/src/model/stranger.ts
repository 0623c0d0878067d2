// A stranger, who takes one-time keys of this device as anybody may: an account of its own, in memory, deleted afterwards.

import { memoryStorage, SealwireClient } from '@sealwire/client';
import { x3dhCrypto } from '@sealwire/x3dh';
import { codeOf } from './demo.js';

/** The message of the error if the server does not show codes. */
export const NO_CODES = 'the server shows no codes';

/**
 * Takes up to `count` one-time keys of a user's devices. Calls `taken` after each.
 *
 * @returns the number of keys that the server gave out before its limit
 */
export async function takeKeys(userId: string, count: number, taken: () => Promise<void>): Promise<number> {
  const address = `stranger-${crypto.randomUUID().slice(0, 8)}@example.org`;
  const client = new SealwireClient({ url: location.origin, storage: memoryStorage(), crypto: x3dhCrypto() });
  client.on('error', () => {});
  const code = async (challenge: { challenge_id: string }) => {
    const code = await codeOf(challenge.challenge_id);
    if (!code) throw new Error(NO_CODES);
    return code;
  };
  try {
    await client.signIn.verify(await code(await client.signIn.request(address)), { deviceName: 'Stranger' });
    let given = 0;
    for (; given < count; given++) {
      const { bundles } = await client.request('keys.claim', { user_id: userId, claim_id: crypto.randomUUID() });
      if (!bundles.some(({ one_time }) => one_time === 'claimed')) break;
      await taken();
    }
    const challenge = await client.requestCode(address, 'delete');
    await client.request('account.delete', { challenge_id: challenge.challenge_id, code: await code(challenge) });
    return given;
  } finally {
    await client.close();
  }
}

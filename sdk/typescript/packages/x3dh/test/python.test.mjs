// Interoperability with the PyPI packages X3DH 1.3 and DoubleRatchet 1.3, an independent implementation: first messages, replies, out of
// order, skipped, lost and repeated.
//
// Needs a Python with the packages of requirements.txt, named by the environment variable PYTHON_X3DH. scripts/check makes one.

import { after, test } from 'node:test';
import { x3dhCrypto } from '@sealwire/x3dh';
import { Party } from '../../../test-support/adapter-contract.mjs';
import { conversation, endPeers, Peer, skipPython as skip } from './python-peer.mjs';

after(endPeers);

for (const exhausted of [false, true]) {
  const keys = exhausted ? 'without a one-time prekey' : 'with a one-time prekey';

  test(`this adapter opens the session, ${keys}`, { skip }, async () => {
    const alice = await Party.create(x3dhCrypto);
    const bob = await Peer.create('00000000-0000-4000-9000-00000000000a');
    await alice.open(bob, bob.bundle(exhausted));
    await conversation(alice, bob, true);
  });

  test(`Python opens the session, ${keys}`, { skip }, async () => {
    const alice = await Party.create(x3dhCrypto);
    const bob = await Peer.create('00000000-0000-4000-9000-00000000000b');
    await bob.call('open', alice.bundle({ exhausted }));
    await conversation(alice, bob, false);
  });
}

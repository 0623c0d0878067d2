// An app in a browser, as its author would write it: type-checked, and bundled by Vite.

import { SealwireClient } from '@sealwire/client';
import { indexedDbStorage } from '@sealwire/client/browser';
import { safetyNumber, x3dhCrypto } from '@sealwire/x3dh';

const client = new SealwireClient({ url: location.origin, storage: indexedDbStorage('chat'), crypto: x3dhCrypto() });
client.on('message', (m) => {
  m.write(`messages/${m.seq}`, m.text);
  document.body.append(m.text);
});
client.on('state', ({ state }) => (document.title = state));
await client.connect().catch((error: Error) => console.log(error.message));
document.body.append(safetyNumber({ userId: 'a', identityKey: await client.identityKey() }, { userId: 'b', identityKey: '' }));

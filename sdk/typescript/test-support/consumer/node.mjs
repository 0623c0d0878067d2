// Every entry point can be imported and used in Node.

import { memoryStorage, SealwireClient } from '@sealwire/client';
import { indexedDbStorage } from '@sealwire/client/browser';
import { msgpack } from '@sealwire/client/msgpack';
import { fileStorage } from '@sealwire/client/node';
import { ops } from '@sealwire/client/protocol';
import { libsignalCrypto } from '@sealwire/libsignal';
import { x3dhCrypto } from '@sealwire/x3dh';
import { rmSync } from 'node:fs';
import WebSocket from 'ws';

indexedDbStorage();
for (const crypto of [x3dhCrypto(), libsignalCrypto()]) {
  for (const storage of [memoryStorage(), fileStorage('test.db')]) {
    const client = new SealwireClient({ url: 'http://127.0.0.1:9', storage, crypto, WebSocket, codec: msgpack });
    const error = await client.connect().catch((error) => error);
    if (error.code !== 'signed_out') throw error;
    if ((await client.identityKey()).length < 44) throw new Error('no identity key');
    await client.close();
  }
  rmSync('test.db');
}
console.log(`Node ${process.version} runs it; it knows ${ops.length} ops`);

// An app in Node, as its author would write it. It is only type-checked.

import { CryptoError, SealwireClient, SealwireError, ServerError, type ClientEvents, type Message, type Sent, type Storage } from '@sealwire/client';
import { msgpack } from '@sealwire/client/msgpack';
import { fileStorage } from '@sealwire/client/node';
import { closeCodes, errorCodes, type Ops, type PublishKeysRequest } from '@sealwire/client/protocol';
import { libsignalCrypto, safetyNumber } from '@sealwire/libsignal';
import WebSocket from 'ws';

const storage: Storage = fileStorage('bot.db', { sync: true });
const client = new SealwireClient({ url: 'https://chat.example', storage, crypto: libsignalCrypto(), WebSocket, codec: msgpack });

client.on('message', async (m: Message) => {
  const text: string = m.text;
  m.write(`messages/${m.seq}`, { text, from: m.from.userId });
  await client.send(m.from.userId, `echo: ${text}`);
});
client.on('sessions.changed', ({ device_id, opened }) => console.log(device_id, opened.length));
client.on('state', ({ state, reason, retryAt }) => {
  if (state === 'waiting') console.log(`again at ${new Date(retryAt!)}`);
  if (state === 'signed-out') console.log(reason);
});
const off: () => void = client.on('devices.changed', (data: ClientEvents['devices.changed']) => console.log(data.added));
off();

await client.connect({ signal: AbortSignal.timeout(5000) });
const { devices } = await client.request('devices.list');
const first: string | undefined = devices[0]?.device_id;
await client.request('devices.revoke', { device_id: first! });
const renamed: Ops['devices.rename']['result'] = await client.request('devices.rename', { name: 'bot' });
const anything: unknown = await client.request('moon.phase', { when: 'now' });
// @ts-expect-error: `device_id` is required
await client.request('devices.revoke', {});
// @ts-expect-error: no such event
client.on('mesage', () => {});
const sent: Sent = await client.send('0190a6f8-5555-4666-8777-ba9876543210', 'hello', { ttlS: 3600 });
try {
  await client.signIn.verify('1234 5678', { deviceName: 'bot' });
} catch (error) {
  if (error instanceof ServerError && error.code === 'device_limit') console.log(error.details?.devices?.map(({ name }) => name));
  else if (error instanceof CryptoError || !(error instanceof SealwireError) || !error.retryable) throw error;
}
const keys: PublishKeysRequest = { suite: 'signal-pqxdh' };
console.log(errorCodes.rate_limited.retryable, closeCodes[4000]?.reason, sent.stored, keys, renamed, anything);
console.log(safetyNumber({ userId: client.account!.userId, identityKey: await client.identityKey() }, { userId: '', identityKey: '' }));

// The client of kill.test.mjs: sends numbered messages and keeps what it receives, until it is killed.
//
//     node kill-child.mjs URL FILE TO COUNT

import { SealwireClient } from '@sealwire/client';
import { fileStorage } from '@sealwire/client/node';
import { x3dhCrypto } from '@sealwire/x3dh';
import WebSocket from 'ws';

const [url, file, to, count] = process.argv.slice(2);
const client = new SealwireClient({ url, storage: fileStorage(file), crypto: x3dhCrypto(), WebSocket, random: () => Math.random() * 0.05 });
const report = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
for (const event of ['error', 'undecryptable', 'untrusted', 'failed']) client.on(event, (data) => report({ problem: `${event}: ${JSON.stringify(data)} ${data.error?.stack ?? ''}` }));
client.on('message', (m) => m.write(`in/${String(m.seq).padStart(9, '0')}`, m.text));

await client.connect();
report({ connected: true });
let next = (await client.data.get('sent')) ?? 0;
const under = [];
for (; next < Number(count); next++) {
  const i = next;
  const messageId = `0000000d-0000-4000-8000-${String(i).padStart(12, '0')}`;
  under.push(client.send(to, `d ${i}`, { messageId }).then(() => client.data.write({ sent: i + 1 })));
  if (under.length >= 5) await under.shift();
}
await Promise.all(under);
report({ sent: Number(count) });
for (;;) {
  const received = await client.data.list('in/');
  if (received.length >= Number(count)) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    report({ received: (await client.data.list('in/')).map(([, text]) => text), status: await client.request('keys.status'), pending: await client.pending() });
    await client.close();
    break;
  }
  await new Promise((resolve) => setTimeout(resolve, 50));
}

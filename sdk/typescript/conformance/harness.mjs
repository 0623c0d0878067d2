// The command that run.mjs starts for the TypeScript client.

import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { SealwireClient } from '@sealwire/client';
import { fileStorage } from '@sealwire/client/node';
import { x3dhCrypto } from '@sealwire/x3dh';
import WebSocket from 'ws';

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
let client;

const steps = {
  open({ url, storage }) {
    const random = () => Math.random() * 0.01;
    client = new SealwireClient({ url, storage: fileStorage(join(storage, 'client')), crypto: x3dhCrypto(), WebSocket, padding: 0, random });
    client.on('state', ({ state, reason }) => say({ event: 'state', state: state.replace('-', '_'), reason }));
    client.on('message', (m) => say({ event: 'message', text: m.text }));
    client.on('undecryptable', ({ code }) => say({ event: 'undecryptable', code }));
    client.on('error', ({ error, during }) => console.error(`${during}: ${error.message}`));
  },
  async sign_in({ email, code }) {
    await client.signIn.request(email);
    await client.signIn.verify(code);
  },
  connect: () => client.connect(),
  send: ({ to, id, text }) => client.send(to, text, { messageId: id }),
  async close() {
    await client.close();
    process.exit();
  },
};

createInterface(process.stdin).on('line', async (line) => {
  const { do: step, ...fields } = JSON.parse(line);
  try {
    await steps[step](fields);
    say({ done: step, id: fields.id });
  } catch (error) {
    say({ failed: step, id: fields.id, code: error.code ?? error.message });
  }
});

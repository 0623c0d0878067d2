// A crypto adapter for tests that encrypts nothing, but is as unforgiving as a real one: a message can be decrypted once, a one-time key
// works once, and a state that was lost or used twice is noticed. Its keys are real, since the server verifies them.

import { createPrivateKey, generateKeyPairSync, sign } from 'node:crypto';
import { CryptoError } from '@sealwire/client';

const raw = (key) => key.export({ format: 'der', type: 'spki' }).subarray(-32).toString('base64');
const text = (bytes) => Buffer.from(bytes).toString();
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

export function toyCrypto({ suite = 'ed25519-x3dh' } = {}) {
  const signer = async (tx) => createPrivateKey({ key: Buffer.from((await tx.get('toy/identity')).private), format: 'der', type: 'pkcs8' });
  const session = (deviceId) => `toy/session/${deviceId}`;

  const adapter = {
    suite,
    pq: false,

    async identity(tx) {
      let identity = await tx.get('toy/identity');
      if (!identity) {
        const { publicKey, privateKey } = generateKeyPairSync('ed25519');
        identity = { key: raw(publicKey), private: new Uint8Array(privateKey.export({ format: 'der', type: 'pkcs8' })) };
        tx.set('toy/identity', identity);
      }
      return { key: identity.key };
    },

    async sign(tx, bytes) {
      return new Uint8Array(sign(null, bytes, await signer(tx)));
    },

    async newKeys(tx, { signed, oneTime = 0, minId = 0, now }) {
      let next = Math.max((await tx.get('toy/next')) ?? 1, minId);
      const keys = {};
      if (signed) {
        const public_key = raw(generateKeyPairSync('x25519').publicKey);
        const signature = Buffer.from(await adapter.sign(tx, Buffer.from(public_key, 'base64'))).toString('base64');
        keys.signed_prekey = { key_id: next++, public_key, signature };
        tx.set('toy/signed', { ...keys.signed_prekey, now });
      }
      if (oneTime > 0) keys.one_time_prekeys = [];
      for (let i = 0; i < oneTime; i++) {
        const key = { key_id: next++, public_key: raw(generateKeyPairSync('x25519').publicKey) };
        tx.set(`toy/one-time/${key.key_id}`, key);
        keys.one_time_prekeys.push(key);
      }
      tx.set('toy/next', next);
      return keys;
    },

    async publicKeys(tx) {
      const { now, ...signed_prekey } = (await tx.get('toy/signed')) ?? {};
      const one_time_prekeys = (await tx.list('toy/one-time/')).map(([, key]) => key);
      return { ...(signed_prekey.key_id && { signed_prekey }), one_time_prekeys };
    },

    async dropKeys(tx, kind, ids) {
      for (const id of ids) tx.delete(`toy/one-time/${id}`);
    },

    async dropReplacedKeys() {},

    async hasSession(tx, { deviceId }) {
      return (await tx.get(session(deviceId))) !== undefined;
    },

    async openSession(tx, self, { deviceId }, bundle) {
      if (bundle.device_id !== deviceId) throw new CryptoError('untrusted', 'the bundle of another device');
      tx.set(session(deviceId), { sent: 0, received: [], opening: bundle.one_time_prekey?.key_id ?? null, peer: bundle.identity_key });
    },

    async encrypt(tx, self, { deviceId }, plaintext) {
      const state = await tx.get(session(deviceId));
      if (!state) throw new CryptoError('undecryptable', 'no session');
      state.sent++;
      tx.set(session(deviceId), state);
      const message = { n: state.sent, from: self.deviceId, oneTime: state.opening, body: Buffer.from(plaintext).toString('base64') };
      return { type: state.opening === undefined ? 2 : 3, content: new Uint8Array(Buffer.from(JSON.stringify(message))) };
    },

    async decrypt(tx, self, { deviceId }, { type, content }) {
      const { n, from, oneTime, body } = JSON.parse(text(content));
      if (from !== deviceId) throw new CryptoError('untrusted', 'another sender');
      let state = await tx.get(session(deviceId));
      if (type === 3 && !(state?.opened !== undefined && same(state.opened, oneTime))) {
        if (oneTime !== null) {
          if (!(await tx.get(`toy/one-time/${oneTime}`))) throw new CryptoError('undecryptable', `no one-time key ${oneTime}`);
          tx.delete(`toy/one-time/${oneTime}`);
        }
        // Both sides may open a session at the same time: what was sent goes on counting.
        state = { sent: state?.sent ?? 0, received: [], opened: oneTime };
      }
      if (!state) throw new CryptoError('undecryptable', 'no session');
      if (state.received.includes(n)) throw new CryptoError('undecryptable', `message ${n} was decrypted before`);
      state.received.push(n);
      delete state.opening;
      tx.set(session(deviceId), state);
      return new Uint8Array(Buffer.from(body, 'base64'));
    },

    async dropSessions(tx, deviceId) {
      for (const [key] of await tx.list(session(deviceId ?? ''))) tx.delete(key);
    },
  };
  return adapter;
}

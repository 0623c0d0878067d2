// Checks a client against docs/client-spec.md: a server that misbehaves, and what the client does then.
//
//     node run.mjs [--only TEXT] -- COMMAND ARGUMENT…
//
// docs/client-spec.md describes what the command has to do. harness.mjs beside this file is the command for the TypeScript client.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, createPublicKey, randomBytes, verify } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { x3dhCrypto } from '@sealwire/x3dh';
import { Party } from '../test-support/adapter-contract.mjs';
import { Fake, refusal, SILENCE } from '../test-support/fake.mjs';
import * as support from '../test-support/until.mjs';

const split = process.argv.indexOf('--');
const command = split < 0 ? [] : process.argv.slice(split + 1);
if (command.length === 0) {
  console.error('usage: node run.mjs [--only TEXT] -- COMMAND ARGUMENT…');
  process.exit(2);
}
const only = process.argv.indexOf('--only') > 0 ? process.argv[process.argv.indexOf('--only') + 1] : '';
const CODE = '12345678';
const until = (condition, what) => support.until(condition, what, 15_000);

/** One process with the client under test. */
class Subject {
  lines = [];

  constructor(url, storage) {
    this.child = spawn(command[0], command.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] });
    this.ended = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.once('error', (error) => {
      console.error(`${command[0]} cannot be started: ${error.message}`);
      process.exit(2);
    });
    createInterface(this.child.stdout).on('line', (line) => {
      try {
        this.lines.push(JSON.parse(line));
      } catch {
        console.error(`        the command wrote a line that is not JSON: ${line}`);
      }
    });
    this.child.stdin.on('error', () => {});
    this.open = this.do('open', { url, storage });
  }

  send(step, fields) {
    this.child.stdin.write(`${JSON.stringify({ do: step, ...fields })}\n`);
  }

  /** Sends a step and waits for its end. */
  async do(step, fields = {}) {
    const from = this.lines.length;
    this.send(step, fields);
    const ended = () => this.child.exitCode !== null || this.lines.slice(from).some((line) => line.done === step || line.failed === step);
    await until(ended, `${step} ended`);
    if (this.child.exitCode !== null) throw new Error(`the command ended with ${this.child.exitCode} during ${step}`);
    const failure = this.lines.slice(from).find((line) => line.failed === step);
    if (failure) throw new Error(`${step} failed: ${failure.code}`);
  }

  done(id) {
    return this.lines.some((line) => line.done === 'send' && line.id === id);
  }

  get state() {
    return this.lines.findLast((line) => line.event === 'state');
  }

  get texts() {
    return this.lines.filter((line) => line.event === 'message').map(({ text }) => text);
  }

  get undecryptable() {
    return this.lines.filter((line) => line.event === 'undecryptable').length;
  }

  async kill() {
    this.child.kill('SIGKILL');
    await this.ended;
  }
}

/** What a test uses: the server, and the client under test. */
class Scene {
  static async create() {
    const scene = new Scene();
    scene.fake = await Fake.start();
    scene.dir = await mkdtemp(join(tmpdir(), 'sealwire-conformance-'));
    scene.peer = await Party.create(x3dhCrypto, 10);
    const { deviceId } = scene.peer.address;
    scene.fake.ops['keys.claim'] = ({ device_ids }) => ({
      bundles: !device_ids || device_ids.includes(deviceId) ? [scene.peer.bundle()] : [],
      unavailable: [],
    });
    return scene;
  }

  start() {
    return (this.subject = new Subject(this.fake.url, this.dir));
  }

  /** Starts a client and signs it in. */
  async signedIn() {
    const subject = this.start();
    await subject.open;
    await subject.do('sign_in', { email: 'alice@example.org', code: CODE });
    return subject;
  }

  /** Kills the client and starts it again with its storage. */
  async restarted() {
    await this.subject.kill();
    const subject = this.start();
    await subject.open;
    return subject;
  }

  get socket() {
    return this.fake.sockets.at(-1);
  }

  get to() {
    return this.peer.address.userId;
  }

  /** Encrypts for the client as the peer does. */
  async encrypt(text) {
    const [first] = this.fake.of('keys.publish');
    const device = { address: { userId: Fake.USER, deviceId: Fake.DEVICE } };
    if (!(await this.peer.has(device))) {
      const bundle = {
        device_id: Fake.DEVICE, registration_id: 1, suite: 'ed25519-x3dh', identity_key: first.identity_key,
        signed_prekey: { ...first.signed_prekey, expires_at: this.fake.time(1e6) }, one_time_prekey: first.one_time_prekeys[0], pq_prekey: null,
      };
      await this.peer.open(device, bundle);
    }
    return this.peer.encrypt(device, text);
  }

  envelope(seq, { type, content }) {
    const { userId: user_id, deviceId: device_id } = this.peer.address;
    const message_id = `00000000-0000-4000-8000-${String(seq).padStart(12, '0')}`;
    return { seq, message_id, from: { user_id, device_id }, type, content: Buffer.from(content).toString('base64'), accepted_at: this.fake.time(), ephemeral: false };
  }

  acked() {
    return this.fake.of('messages.ack').flatMap(({ seqs }) => seqs);
  }

  async stop() {
    await this.subject?.kill();
    await this.fake.stop();
    await rm(this.dir, { recursive: true, force: true });
  }
}

const ID = '6a7b8c9d-8888-4999-aaaa-1234567890ab';
const LAPTOP = '9c1d7e52-7a0f-4b3e-8c61-2f4f5a6b7c8d';
const rejected = { error: refusal('unauthorized', { details: { reason: 'expired' } }), close: 4507 };

const tests = {
  async 'signs in, connects and publishes a complete set'({ fake, ...scene }, { signedIn }) {
    void scene;
    const subject = await signedIn();
    assert.equal(subject.state.state, 'connected');
    const [first] = fake.of('keys.publish');
    assert.equal(first.suite, 'ed25519-x3dh');
    assert.equal(first.one_time_prekeys.length, 100);
    const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: Buffer.from(first.identity_key, 'base64').toString('base64url') }, format: 'jwk' });
    assert(verify(null, Buffer.from(first.signed_prekey.public_key, 'base64'), key, Buffer.from(first.signed_prekey.signature, 'base64')));
  },

  async 'connects again after a restart, without signing in and without new keys'({ fake }, { signedIn, restarted }) {
    await signedIn();
    const subject = await restarted();
    await subject.do('connect');
    assert.equal(fake.of('keys.publish').length, 1);
    assert.equal(fake.calls.filter(({ path }) => path === '/v1/auth/verify').length, 1);
  },
};

for (const code of [4000, 4001, 4002, 4003, 4321, 1001, 1012, 'broken']) {
  tests[`connects again after ${code === 'broken' ? 'a broken connection' : `a close with ${code}`}`] = async (scene, { signedIn }) => {
    const { fake } = scene;
    const subject = await signedIn();
    if (code === 'broken') scene.socket.drop();
    else scene.socket.close(code);
    await until(() => fake.upgrades === 2 && subject.state.state === 'connected', 'it is connected again');
  };
}
for (const [code, state, reason] of [
  [4503, 'ended', 'displaced'], [4504, 'ended', 'protocol_error'], [4505, 'ended', 'frame_too_large'],
  [4500, 'signed_out', 'logged_out'], [4501, 'signed_out', 'expired'], [4502, 'signed_out', 'device_revoked'], [4506, 'signed_out', 'account_deleted'],
]) {
  tests[`does not come back after a close with ${code}`] = async (scene, { signedIn }) => {
    const { fake } = scene;
    const subject = await signedIn();
    fake.onSocket = (socket) => socket.close(code);
    scene.socket.close(code);
    await until(() => subject.state.state === state, `the state is ${state}`);
    assert.equal(subject.state.reason, reason);
    const { upgrades } = fake;
    assert(upgrades <= (code === 4503 ? 6 : 1));
    await pause(1000);
    assert.equal(fake.upgrades, upgrades);
  };
}

Object.assign(tests, {
  async 'makes a proof of work when one is offered'(scene, { signedIn }) {
    const { fake } = scene;
    const salt = randomBytes(24).toString('base64url');
    const proof = { algorithm: 'sha256-leading-zeros', bits: 12, salt };
    for (const path of ['/v1/auth/otp', '/v1/auth/verify']) {
      fake.http[`POST ${path}`] = (body) => {
        if (!body.proof) return [429, refusal('rate_limited', { retryable: true, retry_after_ms: 3_600_000, details: { proof } }), { 'retry-after': '3600' }];
        const hash = createHash('sha256').update(Buffer.from(salt, 'base64url')).update(Buffer.from(body.proof.nonce, 'base64url')).digest();
        if (body.proof.salt !== salt || hash[0] !== 0 || hash[1] > 15) return [400, refusal('bad_request')];
        return path.endsWith('otp') ? [202, { challenge_id: ID, expires_in_s: 600, resend_in_s: 30 }] : [201, fake.session()];
      };
    }
    const subject = await signedIn();
    assert.equal(subject.state.state, 'connected');
  },

  async 'waits as long as a server that drains says'(scene, { signedIn }) {
    const { fake } = scene;
    await signedIn();
    scene.socket.send('server.draining', { reconnect_in_ms: 700 });
    scene.socket.close(4000);
    const from = Date.now();
    await until(() => fake.upgrades === 2, 'it connects');
    assert(Date.now() - from >= 650, `after ${Date.now() - from} ms`);
  },

  async 'waits as long as a refusal on the socket says'(scene, { signedIn }) {
    const { fake } = scene;
    await signedIn();
    fake.upgrade = () => (fake.upgrades === 2 ? { error: refusal('rate_limited', { retryable: true, retry_after_ms: 700 }), close: 4004 } : null);
    scene.socket.drop();
    await until(() => fake.upgrades === 2, 'it connects');
    const from = Date.now();
    await until(() => fake.upgrades === 3, 'it connects again');
    assert(Date.now() - from >= 650, `after ${Date.now() - from} ms`);
  },

  async 'waits as long as a refusal over HTTP says'(scene, { signedIn }) {
    const { fake } = scene;
    await signedIn();
    const body = refusal('unavailable', { retryable: true, retry_after_ms: 1000 });
    fake.upgrade = () => (fake.upgrades === 2 ? { status: 503, headers: { 'Retry-After': '1' }, body } : null);
    fake.http['GET /v1/auth/session'] = () => [503, body, { 'retry-after': '1' }];
    scene.socket.drop();
    await until(() => fake.upgrades === 2, 'it connects');
    const from = Date.now();
    await until(() => fake.upgrades === 3, 'it connects again');
    assert(Date.now() - from >= 950, `after ${Date.now() - from} ms`);
  },

  async 'signs in again as the same device, and proves it'(scene, { signedIn }) {
    const { fake } = scene;
    const subject = await signedIn();
    fake.upgrade = () => rejected;
    fake.http['GET /v1/auth/session'] = () => [401, rejected.error];
    scene.socket.drop();
    await until(() => subject.state.state === 'signed_out', 'it is signed out');
    assert.equal(subject.state.reason, 'expired');
    fake.upgrade = () => null;
    await subject.do('sign_in', { email: 'alice@example.org', code: CODE });
    const { body } = fake.calls.findLast(({ path }) => path === '/v1/auth/verify');
    assert.equal(body.device.id, Fake.DEVICE);
    const [{ identity_key }] = fake.of('keys.publish');
    const key = createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: Buffer.from(identity_key, 'base64').toString('base64url') }, format: 'jwk' });
    const bytes = (id) => Buffer.from(id.replaceAll('-', ''), 'hex');
    const text = Buffer.concat([Buffer.from('sealwire-device-proof-v1'), bytes(body.challenge_id), bytes(Fake.DEVICE)]);
    assert(verify(null, text, key, Buffer.from(body.device.proof, 'base64')), 'the proof verifies');
    assert.equal(fake.of('keys.publish').length, 1);
  },

  async 'deletes its data when the device was revoked'(scene, { signedIn }) {
    const { fake } = scene;
    const subject = await signedIn();
    const [{ identity_key }] = fake.of('keys.publish');
    const error = refusal('unauthorized', { details: { reason: 'device_revoked' } });
    fake.upgrade = () => ({ error, close: 4507 });
    fake.http['GET /v1/auth/session'] = () => [401, error];
    scene.socket.drop();
    await until(() => subject.state.state === 'signed_out', 'it is signed out');
    fake.upgrade = () => null;
    fake.keys = { ...fake.keys, suite: null, identity_key: null, one_time: 0, pool_version: 0 };
    await subject.do('sign_in', { email: 'alice@example.org', code: CODE });
    assert(!fake.calls.findLast(({ path }) => path === '/v1/auth/verify').body.device?.id, 'it signs in as a new device');
    assert.notEqual(fake.of('keys.publish').at(-1).identity_key, identity_key);
  },

  async 'renews a session of which less than half is left, and presents the new token'(scene, { signedIn }) {
    const { fake } = scene;
    fake.sessionMs = 1_000_000;
    await signedIn();
    await pause(200);
    assert.equal(fake.of('session.renew').length, 0);
    fake.sessionMs = 400_000;
    scene.socket.drop();
    await until(() => fake.calls.some(({ path, token }) => path === '/v1/auth/session' && token === 'token-2') || scene.socket?.token === 'token-2', 'the token is presented');
    await pause(200);
    scene.socket.drop();
    await until(() => scene.socket?.token === 'token-2', 'it connects with the new token');
  },

  async 'repeats a publish with the same keys, also after a kill'(scene, { restarted }) {
    const { fake } = scene;
    fake.ops['keys.publish'] = () => SILENCE;
    const subject = scene.start();
    await subject.open;
    subject.send('sign_in', { email: 'alice@example.org', code: CODE });
    await until(() => fake.of('keys.publish').length === 1, 'it publishes');
    scene.socket.drop();
    await until(() => fake.of('keys.publish').length === 2, 'it repeats');
    fake.ops['keys.publish'] = undefined;
    await (await restarted()).do('connect');
    const publishes = fake.of('keys.publish');
    assert.equal(publishes.length, 3);
    assert.deepEqual(publishes[1], publishes[0]);
    assert.deepEqual(publishes[2], publishes[0]);
  },

  async 'fills a pool that runs low'(scene, { signedIn }) {
    const { fake } = scene;
    await signedIn();
    fake.keys = { ...fake.keys, one_time: 5 };
    scene.socket.send('prekeys.low', { kind: 'one_time', remaining: 5, threshold: 20, pool_version: 1 });
    await until(() => fake.of('keys.publish').length === 2, 'it publishes');
    const [first, second] = fake.of('keys.publish');
    assert(second.one_time_prekeys.length >= 50 && second.one_time_prekeys.length <= 100);
    const ids = [...first.one_time_prekeys, ...second.one_time_prekeys].map(({ key_id }) => key_id);
    assert.equal(new Set(ids).size, ids.length, 'no id is used twice');
  },

  async 'sends a message that the recipient can decrypt'(scene, { signedIn }) {
    const { fake, peer, to } = scene;
    const subject = await signedIn();
    await subject.do('send', { to, id: ID, text: 'hello' });
    const [{ message_id, messages }] = fake.of('messages.send');
    assert.equal(message_id, ID);
    const device = { address: { userId: Fake.USER, deviceId: Fake.DEVICE } };
    assert.equal(await peer.decrypt(device, { type: messages[0].type, content: new Uint8Array(Buffer.from(messages[0].content, 'base64')) }), 'hello');
  },

  async 'repeats a claim under its id, also after a kill'(scene, { signedIn, restarted }) {
    const { fake, to } = scene;
    const claim = fake.ops['keys.claim'];
    fake.ops['keys.claim'] = () => SILENCE;
    const subject = await signedIn();
    subject.send('send', { to, id: ID, text: 'hello' });
    await until(() => fake.of('keys.claim').length === 1, 'it claims');
    scene.socket.drop();
    await until(() => fake.of('keys.claim').length === 2, 'it repeats');
    fake.ops['keys.claim'] = claim;
    await (await restarted()).do('connect');
    await until(() => fake.of('messages.send').length === 1, 'it sends');
    assert.equal(new Set(fake.of('keys.claim').map(({ claim_id }) => claim_id)).size, 1);
  },

  async 'repeats a send with the same bytes, also after a kill'(scene, { signedIn, restarted }) {
    const { fake, to } = scene;
    fake.ops['messages.send'] = () => SILENCE;
    const subject = await signedIn();
    subject.send('send', { to, id: ID, text: 'hello' });
    await until(() => fake.of('messages.send').length === 1, 'it sends');
    scene.socket.drop();
    await until(() => fake.of('messages.send').length === 2, 'it repeats');
    fake.ops['messages.send'] = undefined;
    await (await restarted()).do('connect');
    await until(() => fake.of('messages.send').length === 3, 'it repeats after the kill');
    const [first, ...others] = fake.of('messages.send');
    for (const other of others) assert.deepEqual(other, first);
    await pause(300);
    assert.equal(fake.of('messages.send').length, 3);
  },

  async 'keeps messages that were sent while it was offline'(scene, { signedIn, restarted }) {
    const { fake, to } = scene;
    const subject = await signedIn();
    fake.upgrade = () => ({ status: 502 });
    scene.socket.drop();
    await until(() => subject.state.state === 'waiting', 'it waits');
    for (let i = 0; i < 3; i++) subject.send('send', { to, id: `${ID.slice(0, -1)}${i}`, text: `${i}` });
    await pause(500);
    fake.upgrade = () => null;
    await (await restarted()).do('connect');
    await until(() => fake.of('messages.send').length === 3, 'it sends all');
    assert.deepEqual(fake.of('messages.send').map(({ message_id }) => message_id.at(-1)), ['0', '1', '2']);
  },

  async 'corrects the list of devices'(scene, { signedIn }) {
    const { fake, peer, to } = scene;
    const laptop = await Party.create(x3dhCrypto, 5);
    laptop.address = { userId: to, deviceId: LAPTOP };
    const parties = [peer, laptop];
    fake.ops['keys.claim'] = ({ device_ids }) => ({
      bundles: parties.filter(({ address }) => (device_ids ?? [peer.address.deviceId]).includes(address.deviceId)).map((party) => party.bundle()),
      unavailable: [],
    });
    const subject = await signedIn();
    await subject.do('send', { to, id: ID, text: 'one' });
    fake.ops['messages.send'] = ({ messages }) => {
      if (messages.length !== 1 || messages[0].device_id !== LAPTOP) {
        throw refusal('devices_mismatch', { details: { missing: [LAPTOP], extra: [peer.address.deviceId] } });
      }
      return { accepted_at: fake.time(), duplicate: false, stored: 1, undelivered: [] };
    };
    await subject.do('send', { to, id: LAPTOP, text: 'two' });
    const ids = fake.of('messages.send').slice(1).map(({ message_id }) => message_id);
    assert.deepEqual([...new Set(ids)], [LAPTOP], 'one message under one id');
  },

  async 'tries again when the server asks for it'(scene, { signedIn }) {
    const { fake, to } = scene;
    let tries = 0;
    fake.ops['messages.send'] = () => {
      if (++tries < 3) throw refusal('unavailable', { retryable: true, retry_after_ms: 200 });
      return { accepted_at: fake.time(), duplicate: false, stored: 1, undelivered: [] };
    };
    const subject = await signedIn();
    const from = Date.now();
    await subject.do('send', { to, id: ID, text: 'hello' });
    assert(Date.now() - from >= 380);
  },

  async 'gives up a message that is refused for good, and goes on'(scene, { signedIn }) {
    const { fake, to } = scene;
    fake.ops['messages.send'] = () => {
      fake.ops['messages.send'] = undefined;
      throw refusal('no_devices');
    };
    const subject = await signedIn();
    await assert.rejects(subject.do('send', { to, id: ID, text: 'one' }), /no_devices/);
    await subject.do('send', { to, id: LAPTOP, text: 'two' });
  },

  async 'acks what it received, and shows nothing twice'(scene, { signedIn, restarted }) {
    let subject = await signedIn();
    const [one, two] = [await scene.encrypt('one'), await scene.encrypt('two')];
    scene.socket.send('message', scene.envelope(1, one));
    scene.socket.send('message', scene.envelope(2, two));
    scene.socket.send('message', scene.envelope(1, one));
    await until(() => new Set(scene.acked()).size === 2, 'both are acked');
    assert.deepEqual(subject.texts, ['one', 'two']);
    const acks = scene.acked().length;
    scene.socket.send('message', scene.envelope(2, two));
    await until(() => scene.acked().length > acks, 'it is acked again');
    assert.deepEqual([subject.texts, subject.undecryptable], [['one', 'two'], 0]);
    subject = await restarted();
    await subject.do('connect');
    const before = scene.acked().length;
    scene.socket.send('message', scene.envelope(2, two));
    await until(() => scene.acked().length > before, 'it is acked again');
    const three = await scene.encrypt('three');
    scene.socket.send('message', scene.envelope(7, three));
    await until(() => scene.acked().includes(7), 'the next is acked');
    assert.deepEqual(subject.texts, ['three']);
    assert.equal(subject.undecryptable, 0, 'a repeat is not decrypted again');
  },

  async 'acks what it cannot decrypt, and goes on'(scene, { signedIn }) {
    const subject = await signedIn();
    const one = await scene.encrypt('one');
    scene.socket.send('message', scene.envelope(1, { type: 3, content: new Uint8Array(100).fill(7) }));
    scene.socket.send('message', scene.envelope(2, { type: 2, content: new Uint8Array([1]) }));
    scene.socket.send('message', scene.envelope(3, { type: 200, content: new Uint8Array([1]) }));
    scene.socket.send('message', scene.envelope(4, one));
    scene.socket.send('message', scene.envelope(5, one));
    await until(() => new Set(scene.acked()).size === 5, 'all are acked');
    assert.deepEqual(subject.texts, ['one']);
    assert.equal(subject.undecryptable, 4);
  },

  async 'ignores what a newer server sends'(scene, { signedIn }) {
    const { fake, to } = scene;
    const subject = await signedIn();
    scene.socket.send('moon.phase', { phase: 'full' });
    scene.socket.send('devices.changed', { added: [], removed: [], moved: [] });
    await subject.do('send', { to, id: ID, text: 'hello' });
    assert.equal(fake.upgrades, 1);
  },
});

let failures = 0;
let passed = 0;
for (const [name, run] of Object.entries(tests)) {
  if (!name.includes(only)) continue;
  const scene = await Scene.create();
  try {
    await run(scene, { signedIn: () => scene.signedIn(), restarted: () => scene.restarted() });
    console.log(`  ok    ${name}`);
    passed++;
  } catch (error) {
    failures++;
    console.log(`  FAIL  ${name}\n        ${String(error.stack).replaceAll('\n', '\n        ')}`);
  } finally {
    await scene.stop();
  }
}
console.log(`${passed} of ${passed + failures} tests passed`);
process.exit(failures > 0 ? 1 : 0);

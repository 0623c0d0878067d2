// Wake-ups by Web Push, with an independent push service: web-push-testing verifies the server's token (RFC 8292) and decrypts the
// contents (RFC 8291) as a browser does.
//
//     node push_wake_up.mjs URL MAIL_DIR
//
// The server must allow endpoints on this machine (push.allow_insecure).

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { PushApiModel } from 'web-push-testing/src/PushApiModel.js';
import PushServer from 'web-push-testing/src/server.js';
import { Device, JSON_TEXT, MSGPACK, ok } from './client_device.mjs';
import { Connection, SealwireError } from './sealwire.mjs';

const [url, mailDir] = process.argv.slice(2);
const server = { url, mailDir };

/** Returns a port on which nothing listens. */
async function freePort() {
  const probe = createServer().listen(0);
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  return port;
}

/** Waits until `condition` returns something, and returns it. */
async function eventually(what, condition) {
  for (const deadline = Date.now() + 60_000; Date.now() < deadline; await pause(20)) {
    const found = await condition();
    if (found) return found;
  }
  throw new Error(`timed out waiting until ${what}`);
}

const service = new PushApiModel();
const push = new PushServer(service, await freePort());
push.startServer();
await once(push._server, 'listening');

/** The contents that were pushed to a subscription. The service has verified and decrypted them. */
const contents = ({ clientHash }) => service.getNotifications({ clientHash }).messages.map((text) => JSON.parse(text));
const arrived = (subscription, count) =>
  eventually(`${count} pushes have arrived`, () => contents(subscription).length >= count && contents(subscription));

const alice = await Device.signIn(server, 'alice-push', MSGPACK);
const bob = await Device.signIn(server, 'bob-push', JSON_TEXT);
await Promise.all([alice, bob].map((device) => device.publish(5)));
await alice.startSessions(bob.user, await alice.claim(bob.user));

const { vapid_public_key, state, kinds } = bob.socket.welcome.push;
assert.deepEqual({ state, kinds }, { state: 'none', kinds: ['webpush'] });
const subscription = await service.subscribe({ userVisibleOnly: 'true', applicationServerKey: vapid_public_key });
const target = { kind: 'webpush', endpoint: subscription.endpoint, ...subscription.keys };
assert.deepEqual(await bob.socket.request('push.register', target), { state: 'unconfirmed' });
const [{ sealwire, nonce }] = await arrived(subscription, 1);
assert.equal(sealwire, 'confirm');
assert.deepEqual(await bob.socket.request('push.confirm', { nonce }), { state: 'active' });
ok('a target was confirmed with the nonce that web-push-testing verified and decrypted');

await bob.socket.close();
await alice.send(bob.user, 'first', 'second', 'third');
assert.deepEqual((await arrived(subscription, 2)).slice(1), [{ sealwire: 'wake' }]);
ok('a device without a socket was woken once for three messages');

await bob.connect();
assert.deepEqual(await bob.receive(3), ['first', 'second', 'third']);
await bob.socket.close();
await alice.send(bob.user, 'fourth');
assert.deepEqual((await arrived(subscription, 3)).slice(1), [{ sealwire: 'wake' }, { sealwire: 'wake' }]);
ok('after it had read them, the next message woke it again');

service.expireSubscription(subscription.clientHash);
await bob.connect();
assert.deepEqual(await bob.receive(), ['fourth']);
await bob.socket.close();
await alice.send(bob.user, 'fifth');
await eventually('the expired subscription is removed', async () => {
  const socket = await Connection.open(server, bob.session.token, JSON_TEXT);
  const { state } = socket.welcome.push;
  await socket.close();
  return state === 'none';
});
assert.equal(contents(subscription).length, 3);
await bob.connect();
await assert.rejects(bob.socket.request('push.test'), (error) => error instanceof SealwireError && error.code === 'not_found');
ok('an expired subscription (410) was removed');

await Promise.all([alice.socket.close(), bob.socket.close()]);
push._server.closeAllConnections();
push._server.close();

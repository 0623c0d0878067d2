// What the frames are for, in a sentence each.

import type { Frame } from '../model/wire.js';

const MEANINGS: Record<string, string> = {
  welcome: 'The first frame of every connection: who this is, the limits, the keys that the server has, and how much waits.',
  message: 'A message for this device. The server knows from whom and how long, not what. It keeps the message until the ack.',
  'messages.send': 'One ciphertext for each device of the recipient, padded so that its length says little. With the reply the message is on disk; “stored” is the number of devices.',
  'messages.ack': 'This device has stored these messages. Only now does the server delete them.',
  'mailbox.drained': 'All that waited while this device was away has been sent. From here on everything is live.',
  'keys.publish': 'Public keys, for others to open conversations with while this device is offline. The private halves stay here.',
  'keys.claim': 'The keys of a person’s devices, to open an encrypted session with each. A one-time key is taken for good.',
  'keys.fetch': 'Public keys without taking any, such as to compute a safety number.',
  'keys.status': 'What the server has of this device’s keys.',
  'prekeys.low': 'Few one-time keys are left: the device publishes more.',
  'users.find': 'Who has this address? The server answers only for exact addresses.',
  'devices.list': 'The devices of this account.',
  'devices.changed': 'A device of this account came or went.',
  'devices.requested': 'A new device wants to sign in to a locked account.',
  'devices.decide': 'The decision on a new device.',
  'sessions.changed': 'Somebody signed in to this account or out of it. All its devices are notified.',
  'account.status': 'Whether new devices need an approval, and which ones wait for it.',
  'blocks.list': 'Whom this person has blocked.',
  'blocks.add': 'From now on the server drops what this person sends. They get the same answers as before.',
  'devices.rename': 'A name for a device, which the other devices of the account show.',
  'devices.revoke': 'From now on nothing is accepted from this device, and nothing is stored for it.',
  'account.lock': 'New devices need an approval. The server gets only a hash of the recovery key.',
  'account.unlock': 'A mailed code is enough for a new device again.',
  'account.delete': 'Deletes the account with all its devices and keys. It takes a code that was mailed for this purpose.',
  'blocks.remove': 'Messages from this person are accepted again.',
  'push.register': 'Where a push service can wake this browser while the page is closed. The server first sends a nonce there.',
  'push.confirm': 'The nonce came back by the push service, so the server may wake this browser.',
  'push.remove': 'The server does not wake this browser any more.',
  'session.revoked': 'This session has ended, and why. The close follows.',
  refused: 'The server did not take this connection, and says why and when to try again.',
  'POST /v1/auth/approval': 'Was the sign-in approved on another device?',
  'DELETE /v1/auth/session': 'Signs out. The device stays, with its keys and its mailbox.',
  'session.renew': 'A new token before the old one expires.',
  'server.draining': 'The server is being stopped, and says when to come back.',
  'POST /v1/auth/otp': 'Asks for a code by mail. The answer is the same whether the address has an account or not.',
  'POST /v1/auth/verify': 'Exchanges the code for a session. A known device proves itself with its identity key, too.',
  'GET /v1/auth/session': 'After a connection that failed: is the session still valid?',
};

export function meaningOf({ name, body, reply }: Frame): string {
  if (reply?.lost) return 'The reply was dropped by the experiment, and the connection broken. The client never saw it.';
  if (reply?.repeated) return 'The server had this message already, from before the reply was lost. It stored nothing a second time.';
  const { event, data, params } = (body ?? {}) as { event?: string; data?: { ephemeral?: boolean }; params?: { ephemeral?: boolean } };
  if (params?.ephemeral || (event === 'message' && data?.ephemeral)) return 'Ephemeral: “is typing”. It reaches devices that are connected now, and is never stored.';
  return MEANINGS[name] ?? '';
}

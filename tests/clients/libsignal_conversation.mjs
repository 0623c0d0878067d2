// A long conversation with Signal's own library and the TypeScript client, through a running Sealwire server.
//
//     node libsignal_conversation.mjs URL MAIL_DIR
//
// Alice and Bob write a hundred messages each: in turn, at the same time, while the other is offline, and over connections that
// break. Halfway, Bob links a laptop. At the end, what each device has read is compared with what was written, and the frames on the
// wire are counted. libsignal decrypts a message only once, so a repeated message that is not recognized fails the test.

import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { json, memoryStorage, SealwireClient } from '../../sdk/typescript/packages/core/dist/index.js';
import { msgpack } from '../../sdk/typescript/packages/core/dist/msgpack.js';
import { libsignalCrypto } from '../../sdk/typescript/packages/libsignal/dist/index.js';
import { mailedCode, mails } from '../../sdk/typescript/test-support/mail.mjs';
import { until } from '../../sdk/typescript/test-support/until.mjs';
import WebSocket from 'ws';

const [url, mailDir] = process.argv.slice(2);
const ok = (what) => console.log(`  ok  ${what}`);

class Connection extends WebSocket {
  /** Whether what the server sends is lost. */
  loses = false;

  emit(event, ...data) {
    return event === 'message' && this.loses ? true : super.emit(event, ...data);
  }
}

/** A device of a person. */
class Device {
  /** The texts that this device wrote to the other person, in order. */
  written = [];
  /** The messages that it read, in order: `{from, text}`, where `from` is the sending device. */
  inbox = [];
  /** What went over the wire. */
  counts = { accepted: 0, repeated: 0, mismatches: 0, claims: 0, envelopes: 0 };
  /** What the client has reported. */
  problems = [];
  /** Called when a message was read. */
  onMessage = () => {};
  /** Called when a message is sent. */
  onSend = () => {};

  #sockets = [];

  static async signIn(name, codec) {
    const device = new Device();
    const sockets = device.#sockets;
    device.client = new SealwireClient({
      url,
      storage: memoryStorage(),
      crypto: libsignalCrypto(),
      codec: device.#counting(codec),
      WebSocket: class extends Connection {
        constructor(...options) {
          super(...options);
          sockets.push(this);
        }
      },
      random: () => Math.random() * 0.05,
    });
    const { client } = device;
    client.on('message', ({ from, text }) => {
      device.inbox.push({ from: from.deviceId, text });
      device.onMessage();
    });
    client.on('welcome', ({ mailbox }) => (device.waiting = mailbox.waiting));
    for (const event of ['error', 'undecryptable', 'untrusted', 'failed']) {
      client.on(event, (data) => device.problems.push([event, data]));
    }
    const email = `${name}@clients.example`;
    const before = new Set(await mails(mailDir));
    await client.signIn.request(email);
    await client.signIn.verify(await mailedCode(mailDir, email, before), { deviceName: `${name} by ${codec.subprotocol}` });
    device.name = `${name} by ${codec.subprotocol}`;
    return device;
  }

  get id() {
    return this.client.account.deviceId;
  }

  get user() {
    return this.client.account.userId;
  }

  /** The present connection. */
  get socket() {
    return this.#sockets.at(-1);
  }

  /** The next `count` texts to write. */
  lines(count) {
    const fresh = Array.from({ length: count }, (_, i) => `${this.name}, line ${this.written.length + i + 1}`);
    this.written.push(...fresh);
    return fresh;
  }

  /** Writes to a user, and copies to the other devices of its own person if `copy`. */
  write(to, count, { copy = false } = {}) {
    const texts = this.lines(count);
    return Promise.all(texts.flatMap((text) => [this.client.send(to, text), ...(copy ? [this.client.send(this.user, text)] : [])]));
  }

  /** The texts that it has read from `writer`, in order. */
  readFrom(writer) {
    return this.inbox.filter(({ from }) => from === writer.id).map(({ text }) => text);
  }

  /** Waits until it has read everything that `writer` wrote after its first `from` lines. */
  hasRead(writer, from = 0) {
    return until(() => this.readFrom(writer).length >= writer.written.length - from, `${this.name} has read ${writer.name}`);
  }

  /** A codec that counts frames. */
  #counting(codec) {
    const ops = new Map();
    return {
      ...codec,
      encode: (frame) => {
        ops.set(frame.id, frame.op);
        if (frame.op === 'messages.send') this.onSend();
        return codec.encode(frame);
      },
      decode: (data) => {
        const frame = codec.decode(data);
        const op = frame.event ? null : ops.get(frame.id);
        if (frame.event === 'message') this.counts.envelopes++;
        if (op === 'keys.claim') this.counts.claims++;
        if (op === 'messages.send' && frame.error?.code === 'devices_mismatch') this.counts.mismatches++;
        else if (op === 'messages.send' && frame.result) this.counts[frame.result.duplicate ? 'repeated' : 'accepted']++;
        return frame;
      },
    };
  }
}

/** Alice and Bob write in turn, each line read before the next is written. Bob uses his devices in turn. */
async function inTurn(rounds, alice, bobs) {
  for (let round = 0; round < rounds; round++) {
    await alice.write(bobs[0].user, 1);
    for (const bob of bobs) await until(() => bob.readFrom(alice).at(-1) === alice.written.at(-1), 'Bob has read the line');
    const writer = bobs[round % bobs.length];
    await writer.write(alice.user, 1, { copy: bobs.length > 1 });
    for (const reader of [alice, ...bobs].filter((device) => device !== writer)) {
      await until(() => reader.readFrom(writer).at(-1) === writer.written.at(-1), 'the others have read the line');
    }
  }
}

/** All devices write at once. Alice and Bob write `count` messages each. */
function allAtOnce(count, alice, bobs) {
  const copy = bobs.length > 1;
  return Promise.all([alice.write(bobs[0].user, count), ...bobs.map((bob) => bob.write(alice.user, count / bobs.length, { copy }))]);
}

/** Each writes while the other is offline, and so each finds a backlog. */
async function inAbsence(count, alice, phone) {
  await alice.client.close();
  await phone.write(alice.user, count);
  await phone.client.close();
  await alice.client.connect();
  assert(alice.waiting >= count);
  await alice.write(phone.user, count);
  await phone.client.connect();
  assert(phone.waiting >= count);
}

/** Bob reads what Alice writes, but each time her connection breaks before she gets the reply. */
async function lostReplies(count, alice, phone) {
  for (let i = 0; i < count; i++) {
    const { repeated } = alice.counts;
    alice.socket.loses = true;
    const unanswered = alice.write(phone.user, 1);
    await phone.hasRead(alice);
    alice.socket.terminate();
    await unanswered;
    assert.equal(alice.counts.repeated, repeated + 1, 'the server recognizes the repeat');
  }
  alice.counts.accepted += count; // which the lost replies would have reported
}

/** Alice writes to Bob, who is offline, over connections that break as she sends. She cannot know which messages got through. */
async function brokenConnections(count, alice, phone) {
  const { repeated } = alice.counts;
  await phone.client.close();
  for (let i = 0; i < count; i++) {
    const { socket } = alice;
    alice.onSend = () => {
      alice.onSend = () => {};
      setImmediate(() => socket.terminate());
    };
    await alice.write(phone.user, 1);
  }
  const through = alice.counts.repeated - repeated;
  alice.counts.accepted += through;
  await phone.client.connect();
  assert(phone.waiting >= count);
  return through;
}

/** The laptop reads its waiting messages, but its connection breaks before it has acked any. */
async function lostAcks(count, alice, phone, laptop) {
  await laptop.client.close();
  await Promise.all([alice.write(phone.user, count), phone.write(alice.user, count, { copy: true })]);
  const [read, { envelopes }] = [laptop.inbox.length, laptop.counts];
  // The ack of a message follows when its handler has returned.
  laptop.onMessage = () => laptop.inbox.length === read + 1 && laptop.socket.terminate();
  await laptop.client.connect();
  await until(() => laptop.inbox.length === read + 2 * count, 'the laptop has read all');
  await until(() => laptop.counts.envelopes > envelopes + 2 * count, 'at least the first one came again');
}

async function conversation() {
  console.log('Alice and Bob write 100 messages each through the server; halfway, Bob links a laptop');
  const alice = await Device.signIn('alice.talk', msgpack);
  const phone = await Device.signIn('bob.talk', json);

  await inTurn(15, alice, [phone]);
  assert.deepEqual([alice.counts.claims, phone.counts.claims], [1, 0], 'the answers need no claim');
  ok('15 each in turn, MessagePack and JSON');

  await allAtOnce(20, alice, [phone]);
  await alice.hasRead(phone);
  await phone.hasRead(alice);
  ok('20 each at the same time');

  await inAbsence(5, alice, phone);
  await alice.hasRead(phone);
  await phone.hasRead(alice);
  ok('5 each while the other was offline');

  await lostReplies(5, alice, phone);
  const through = await brokenConnections(5, alice, phone);
  await phone.write(alice.user, 10);
  await alice.hasRead(phone);
  await phone.hasRead(alice);
  ok(`10 from Alice over connections that broke before a reply (5 and ${through} had got through): all arrived once`);
  assert.deepEqual([alice.written.length, phone.written.length], [50, 50]);

  const linked = phone.client.once('devices.changed');
  const laptop = await Device.signIn('bob.talk', msgpack);
  assert.deepEqual(await linked, { added: [laptop.id], removed: [] });
  await Promise.all([alice.write(phone.user, 10), phone.write(alice.user, 10, { copy: true })]);
  await laptop.hasRead(alice, 50);
  await laptop.hasRead(phone, 50);
  assert.deepEqual([alice.counts.mismatches, alice.counts.claims], [1, 2], 'how Alice learned about the laptop');
  ok('Bob linked a laptop: Alice’s next message was refused, encrypted for the laptop too, and sent again');

  await inTurn(20, alice, [phone, laptop]);
  ok('20 each in turn, Bob from both devices with a copy to the other');

  await lostAcks(10, alice, phone, laptop);
  ok('10 each while the laptop was offline; it read them, lost its connection before the acks, and recognized them when they came again');

  await allAtOnce(10, alice, [phone, laptop]);
  const byBob = phone.written.length + laptop.written.length;
  assert.deepEqual([alice.written.length, byBob], [100, 100]);
  for (const bob of [phone, laptop]) await alice.hasRead(bob);
  await Promise.all([phone.hasRead(alice), phone.hasRead(laptop), laptop.hasRead(alice, 50), laptop.hasRead(phone, 50)]);
  ok('10 each at the same time, from all three devices');

  const devices = [alice, phone, laptop];
  for (const device of devices) {
    for (;;) {
      await device.client.close();
      await device.client.connect();
      if (device.waiting === 0) break;
      // Acks are sent after a while.
      await pause(200);
    }
  }
  for (const writer of [phone, laptop]) assert.deepEqual(alice.readFrom(writer), writer.written);
  assert.deepEqual(phone.readFrom(alice), alice.written);
  assert.deepEqual(phone.readFrom(laptop), laptop.written);
  assert.deepEqual(laptop.readFrom(alice), alice.written.slice(50));
  assert.deepEqual(laptop.readFrom(phone), phone.written.slice(50));
  ok('every device has read everything written since it was added, once, in the order of each writer; the mailboxes are empty');

  const { one_time, pq_one_time } = await laptop.client.request('keys.status');
  assert.deepEqual([one_time, pq_one_time], [98, 98], 'one claim by Alice and one by Bob’s phone');
  const sum = (name) => devices.reduce((total, { counts }) => total + counts[name], 0);
  // Bob's messages since the laptop was linked also go to himself.
  const copies = phone.written.length - 50 + laptop.written.length;
  assert.equal(sum('accepted'), 100 + byBob + copies);
  assert.equal(sum('repeated'), 5 + through);
  // Alice's to the phone and to the laptop, Bob's to Alice, and the copies.
  assert.equal(devices.reduce((total, { inbox }) => total + inbox.length, 0), 100 + 50 + byBob + copies);
  ok(`${sum('accepted')} sends accepted, ${sum('repeated')} repeated, ${sum('envelopes')} envelopes, ${sum('claims')} claims`);
  for (const { client, problems } of devices) {
    assert.deepEqual(problems, []);
    await client.close();
  }
}

await conversation();

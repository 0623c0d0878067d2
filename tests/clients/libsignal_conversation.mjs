// A long conversation with Signal's own library, through a running Sealwire server.
//
//     node libsignal_conversation.mjs URL MAIL_DIR
//
// Alice and Bob write a hundred messages each: in turn, at the same time, while the other is offline, and over connections that
// break. Halfway, Bob links a laptop. At the end, what each device has read is compared with what was written. libsignal decrypts a
// message only once, so a repeated message that is not recognized fails the test.

import assert from 'node:assert/strict';
import { Device, JSON_TEXT, MSGPACK, ok } from './client_device.mjs';

const [url, mailDir] = process.argv.slice(2);
const server = { url, mailDir };

/** The texts that each device wrote to the other person, in order. */
const written = new Map();

/** Returns the next `count` texts for a device to write. */
function lines(device, count) {
  if (!written.has(device)) written.set(device, []);
  const all = written.get(device);
  const fresh = Array.from({ length: count }, (_, i) => `${device.session.name}, line ${all.length + i + 1}`);
  all.push(...fresh);
  return fresh;
}

async function newDevice(name, transport) {
  const device = await Device.signIn(server, name, transport);
  device.session.name = `${name} by ${transport.format}`;
  assert.deepEqual(device.socket.welcome.mailbox, { waiting: 0, expired_total: 0 });
  assert.deepEqual(await device.catchUp(), []);
  return device;
}

/** Bob writes from one device to Alice, and sends copies to his own other devices. */
async function write(device, alice, count) {
  const texts = lines(device, count);
  const composed = [...(await device.compose(alice.user, texts)), ...(await device.compose(device.user, texts))];
  await device.deliver(composed);
}

/** Alice and Bob write in turn, each line read before the next is written. Bob uses his devices in turn. */
async function inTurn(rounds, alice, bobs) {
  for (let round = 0; round < rounds; round++) {
    const [text] = lines(alice, 1);
    await alice.send(bobs[0].user, text);
    for (const bob of bobs) assert.deepEqual(await bob.receive(), [text]);
    const writer = bobs[round % bobs.length];
    await write(writer, alice, 1);
    for (const reader of [alice, ...bobs].filter((device) => device !== writer)) {
      assert.deepEqual(await reader.receive(), [written.get(writer).at(-1)]);
    }
  }
}

/** All devices write at once without waiting for replies, then read. Alice and Bob write `count` messages each. */
async function allAtOnce(count, alice, bobs) {
  const share = count / bobs.length;
  await Promise.all([
    alice.send(bobs[0].user, ...lines(alice, count)).then(() => alice.receive(count)),
    ...bobs.map((bob) => write(bob, alice, share).then(() => bob.receive(count + (bobs.length - 1) * share))),
  ]);
}

/** Bob reads what Alice wrote, but her connection breaks before she gets any reply. */
async function lostReplies(count, alice, phone) {
  const texts = lines(alice, count);
  const composed = await alice.compose(phone.user, texts);
  alice.socket.stopReading();
  const unanswered = assert.rejects(alice.deliver(composed), /dropped/);
  assert.deepEqual(await phone.receive(count), texts);
  alice.socket.drop();
  await unanswered;
  await alice.connect();
  const replies = await alice.deliver(composed);
  assert(replies.every(({ duplicate }) => duplicate), 'the server recognizes all of them');
  alice.counts.accepted += count; // which the lost replies would have reported
}

/** Alice writes to Bob, who is offline, over a connection that breaks at once. She cannot know how many messages got through. */
async function brokenConnection(count, alice, bob) {
  await bob.socket.close();
  const texts = lines(alice, count);
  const composed = await alice.compose(bob.user, texts);
  const unanswered = assert.rejects(alice.deliver(composed), /dropped/);
  alice.socket.drop();
  await unanswered;
  await alice.connect();
  const replies = await alice.deliver(composed);
  const through = replies.filter(({ duplicate }) => duplicate).length;
  assert(replies.slice(0, through).every(({ duplicate }) => duplicate), 'the first messages got through, the others did not');
  alice.counts.accepted += through;
  await bob.connect();
  assert.equal(bob.socket.welcome.mailbox.waiting, count);
  assert.deepEqual(await bob.catchUp(), texts);
  return through;
}

/** Each writes while the other is offline, and so each finds a backlog. */
async function inAbsence(count, alice, phone) {
  await alice.socket.close();
  await write(phone, alice, count);
  await phone.socket.close();
  await alice.connect();
  assert.equal(alice.socket.welcome.mailbox.waiting, count);
  assert.deepEqual(await alice.catchUp(), written.get(phone).slice(-count));
  const texts = lines(alice, count);
  await alice.send(phone.user, ...texts);
  await phone.connect();
  assert.deepEqual(await phone.catchUp(), texts);
}

/** A device reads its waiting messages, but its connection breaks before it has acked them. */
async function lostAcks(count, alice, phone, laptop) {
  await laptop.socket.close();
  await alice.send(phone.user, ...lines(alice, count));
  await write(phone, alice, count);
  await phone.receive(count);
  await alice.receive(count);
  await laptop.connect();
  assert.equal((await laptop.catchUp({ ack: false })).length, 2 * count);
  laptop.socket.drop();
  await laptop.connect();
  assert.equal(laptop.socket.welcome.mailbox.waiting, 2 * count);
  assert.deepEqual(await laptop.catchUp(), [], 'none of them is new');
  assert.equal(laptop.counts.redelivered, 2 * count);
}

async function linkLaptop(count, alice, phone) {
  const texts = lines(alice, count);
  const early = await alice.compose(phone.user, texts); // encrypted only for the phone
  const laptop = await newDevice('bob.talk', MSGPACK);
  assert.deepEqual(await phone.socket.waitFor('devices.changed'), { added: [laptop.id], removed: [] });
  await laptop.publish(10);

  await alice.deliver(early);
  assert.deepEqual(alice.mismatches.slice(1), Array(count).fill({ missing: [laptop.id], extra: [] }));
  for (const bob of [phone, laptop]) assert.deepEqual(await bob.receive(count), texts);

  await write(phone, alice, count);
  assert.deepEqual(phone.mismatches, Array(count).fill({ missing: [laptop.id], extra: [] }), 'for the copies to himself');
  for (const reader of [alice, laptop]) assert.deepEqual(await reader.receive(count), written.get(phone).slice(-count));
  const { one_time, pq_one_time } = await laptop.socket.request('keys.status');
  assert.deepEqual([one_time, pq_one_time], [8, 8], 'one claim by Alice and one by Bob’s phone');
  return laptop;
}

/** The texts that `reader` has read from `writer`, in order. */
const readFrom = (reader, writer) => reader.inbox.filter(({ from }) => from === writer.id).map(({ text }) => text);

async function conversation() {
  console.log('Alice and Bob write 100 messages each through the server; halfway, Bob links a laptop');
  const alice = await newDevice('alice.talk', MSGPACK);
  const phone = await newDevice('bob.talk', JSON_TEXT);
  await alice.publish(10);
  await phone.publish(10);

  await inTurn(15, alice, [phone]);
  assert.deepEqual(alice.mismatches, [{ missing: [phone.id], extra: [] }], 'how Alice learned about Bob’s phone');
  assert.deepEqual([phone.mismatches, phone.inbox[0].first, alice.inbox[0].first], [[], true, false]);
  ok('15 each in turn, MessagePack and JSON; Alice learned from devices_mismatch which keys to claim');

  await allAtOnce(20, alice, [phone]);
  ok('20 each at the same time, without waiting for replies');

  await inAbsence(5, alice, phone);
  ok('5 each while the other was offline: the backlog arrives in order, then mailbox.drained');

  await lostReplies(5, alice, phone);
  const through = await brokenConnection(5, alice, phone);
  await write(phone, alice, 10);
  await alice.receive(10);
  ok(`10 from Alice over connections that broke before a reply (5 and ${through} had got through), then sent again: all arrived once`);
  assert.deepEqual([written.get(alice).length, written.get(phone).length], [50, 50]);

  const laptop = await linkLaptop(10, alice, phone);
  ok('Bob linked a laptop: 10 messages each, encrypted before, were refused, encrypted for the laptop too, and sent again');

  await inTurn(20, alice, [phone, laptop]);
  ok('20 each in turn, Bob from both devices with a copy to the other');

  await lostAcks(10, alice, phone, laptop);
  ok('10 each while the laptop was offline; it read them, lost its connection before the acks, and recognized them when they came again');

  await allAtOnce(10, alice, [phone, laptop]);
  ok('10 each at the same time, from all three devices');

  const byBob = [...written.get(phone), ...written.get(laptop)];
  assert.deepEqual([written.get(alice).length, byBob.length], [100, 100]);
  for (const writer of [phone, laptop]) assert.deepEqual(readFrom(alice, writer), written.get(writer));
  assert.deepEqual(readFrom(phone, alice), written.get(alice));
  assert.deepEqual(readFrom(phone, laptop), written.get(laptop));
  assert.deepEqual(readFrom(laptop, alice), written.get(alice).slice(50));
  assert.deepEqual(readFrom(laptop, phone), written.get(phone).slice(50));
  ok('every device has read everything written since it was added, once, in the order of each writer');

  await assert.rejects(laptop.readAgain(), /old counter|duplicate/i);
  ok('libsignal refuses to decrypt a message a second time, so a repeat would have been noticed');

  const devices = [alice, phone, laptop];
  for (const device of devices) {
    await device.reconnect();
    assert.deepEqual(device.socket.welcome.mailbox, { waiting: 0, expired_total: 0 });
    assert.deepEqual(await device.catchUp(), []);
    await device.socket.close();
  }
  const sum = (count) => devices.reduce((total, device) => total + count(device), 0);
  const counts = {
    accepted: sum(({ counts }) => counts.accepted),
    repeated: sum(({ counts }) => counts.repeated),
    read: sum(({ inbox }) => inbox.length),
    redelivered: sum(({ counts }) => counts.redelivered),
    mismatches: sum(({ mismatches }) => mismatches.length),
  };
  const texts = 100 + 2 * 100; // Bob sends each of his to Alice and to himself
  const envelopes = 100 + 50 + 100 + (byBob.length - 50); // to the phone, the laptop, Alice, and Bob's copies
  assert.deepEqual(counts, { accepted: texts, repeated: 5 + through, read: envelopes, redelivered: 20, mismatches: 21 });
  ok(`all three mailboxes are empty: ${Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(', ')}`);
}

await conversation();

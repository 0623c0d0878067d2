// The members of a crowd write to each other, ack what they get, and count.
//
// The content of a message identifies the crowd and run, the sender, the number of the message among those from this sender to this
// recipient, and the time of sending.

import { Trend } from 'k6/metrics';

import { counters, eventually, failed, sleep } from './crowd.js';

/** Characters of base64 in a message: 256 bytes. */
const LENGTH = 344;
/** Maximum number of sends in flight for a paced member. */
const MAX_IN_FLIGHT = 16;
/** Maximum number of seqs in one ack. */
const MAX_SEQS_PER_ACK = 1000;

const replyTime = new Trend('reply_ms');
const deliveryTime = new Trend('delivery_ms');
const { accepted, arrived, acked, duplicates, disordered, lost, unacked, redelivered } = counters(
  'accepted', 'arrived', 'acked', 'duplicates', 'disordered', 'lost', 'unacked', 'redelivered');

export const messagesCount = {
  accepted: ['count>0'],
  // Messages that arrived twice, or again after their ack.
  duplicates: ['count==0'],
  // Messages that arrived after a later one from the same member, and gaps in the seqs.
  disordered: ['count==0'],
  // Accepted messages that did not arrive.
  lost: ['count==0'],
  // Messages that arrived and could not be acked.
  unacked: ['count==0'],
};

const digits = (number, width) => String(number).padStart(width, '0');

/** One member as a sender and recipient. */
class Correspondent {
  constructor(exchange, member, number) {
    this.exchange = exchange;
    this.member = member;
    this.number = number;
    /** Number of messages so far to each member, and number of the latest message from each. */
    this.sent = [];
    this.received = [];
    this.skipped = new Set();
    this.inFlight = 0;
    this.unacked = [];
    this.acking = false;
    this.ackedSeq = 0;
    this.lastSeq = undefined;
    this.tags = {};
    member.onEvent((name, data) => {
      if (name === 'message') this.take(data);
    });
  }

  /** Sends one message to another member. */
  async send() {
    const { exchange, member } = this;
    const others = exchange.all.length - 1;
    const to = (this.number + 1 + Math.floor(Math.random() * others)) % exchange.all.length;
    const peer = exchange.all[to].member.seed;
    this.sent[to] = (this.sent[to] || 0) + 1;
    const started = Date.now();
    const stamp = exchange.run + digits(this.number, 4) + digits(this.sent[to], 8) + digits(started, 16);
    const messages = [{ device_id: peer.device_id, type: 1, content: stamp.padEnd(LENGTH, 'A') }];
    this.inFlight += 1;
    try {
      await member.call('messages.send', { message_id: crypto.randomUUID(), to: peer.user_id, messages });
      replyTime.add(Date.now() - started, this.tags);
      accepted.add(1);
      exchange.accepted += 1;
    } catch (problem) {
      failed(problem);
    }
    this.inFlight -= 1;
  }

  /** Keeps `pipeline` messages in flight until the time `until`. */
  async hurry(until, pipeline) {
    const one = async () => {
      while (Date.now() < until && !this.member.device.problem) await this.send();
    };
    await Promise.all(Array.from({ length: pipeline }, one));
  }

  /** Sends one message per interval until the time `until`, however long the replies take. */
  async pace(until, interval) {
    await sleep(Math.random() * interval);
    for (let due = Date.now(); due < until; due += interval) {
      await sleep(Math.max(0, due - Date.now()));
      if (this.inFlight < MAX_IN_FLIGHT && this.member.device) this.send();
    }
    await eventually(() => this.inFlight === 0);
  }

  /** Closes the socket and reconnects, to get what arrived meanwhile. */
  async reconnect() {
    const { member } = this;
    const { device } = member;
    member.device = undefined;
    await eventually(() => this.inFlight === 0 && !this.acking);
    await device.close();
    // What arrived and was not acked is delivered again, and acked then.
    this.unacked = [];
    this.lastSeq = this.ackedSeq || undefined;
    await member.connect();
  }

  take({ seq, from, content }) {
    if (this.lastSeq !== undefined && seq <= this.lastSeq) {
      (seq <= this.ackedSeq ? duplicates : redelivered).add(1);
      return;
    }
    if (this.lastSeq !== undefined && seq !== this.lastSeq + 1) disordered.add(1);
    this.lastSeq = seq;
    this.unacked.push(seq);
    this.ack();
    const { exchange } = this;
    // From an earlier run of the test.
    if (!content.startsWith(exchange.run)) return;
    const sender = Number(content.slice(8, 12));
    const number = Number(content.slice(12, 20));
    if (exchange.all[sender].member.seed.device_id !== from.device_id || content.length !== LENGTH) {
      failed(new Error(`a message arrived changed: ${content}`));
    }
    if (this.isNew(sender, number)) {
      deliveryTime.add(Date.now() - Number(content.slice(20, 36)), this.tags);
      arrived.add(1);
      exchange.arrived += 1;
    }
  }

  isNew(sender, number) {
    const last = this.received[sender] || 0;
    for (let skipped = last + 1; skipped < number; skipped += 1) this.skipped.add(`${sender}/${skipped}`);
    if (number > last) {
      this.received[sender] = number;
      return true;
    }
    const late = this.skipped.delete(`${sender}/${number}`);
    if (late) disordered.add(1);
    return late;
  }

  /** Acks all that has arrived, and then what arrives while an ack is in flight. */
  async ack() {
    if (this.acking) return;
    this.acking = true;
    while (this.unacked.length > 0 && this.member.device) {
      const seqs = this.unacked.splice(0, MAX_SEQS_PER_ACK);
      try {
        const result = await this.member.call('messages.ack', { seqs });
        acked.add(result.acked);
        unacked.add(seqs.length - result.acked);
        this.ackedSeq = seqs[seqs.length - 1];
      } catch (problem) {
        failed(problem);
      }
    }
    this.acking = false;
  }
}

/** The messages among the members of a crowd. */
export class Exchange {
  constructor(members) {
    this.run = digits(Math.floor(Math.random() * 1e8), 8);
    this.accepted = 0;
    this.arrived = 0;
    this.all = members.map((member, n) => new Correspondent(this, member, n));
  }

  /** All members write for this many seconds: with `pipeline` messages in flight each, or at `rate` messages per second. */
  async write({ seconds, pipeline, rate, tags = {} }) {
    const until = Date.now() + seconds * 1000;
    const writing = this.all.map((one) => {
      one.tags = tags;
      return pipeline ? one.hurry(until, pipeline) : one.pace(until, 1000 / rate);
    });
    await Promise.all(writing);
  }

  /** Waits until all accepted messages have arrived and are acked, and counts those that do not. */
  async settle() {
    for (const counter of [duplicates, disordered, unacked, redelivered]) counter.add(0);
    const quiet = () => this.all.every((one) => !one.acking && one.unacked.length === 0);
    await eventually(() => this.arrived >= this.accepted && quiet());
    lost.add(Math.max(0, this.accepted - this.arrived));
    unacked.add(this.all.reduce((sum, one) => sum + one.unacked.length, 0));
  }

  /** Reconnects all members once more. Nothing may wait in their mailboxes. */
  async findNothing() {
    await Promise.all(this.all.map((one) => one.reconnect()));
    const waiting = this.all.map((one) => one.member.device.welcome.mailbox.waiting);
    unacked.add(waiting.reduce((sum, count) => sum + count, 0));
  }
}

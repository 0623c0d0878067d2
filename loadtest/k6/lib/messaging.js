// The members of a crowd write to each other and ack what they get, and count.
//
// The content of a message says which crowd and run it belongs to, who wrote it, which one it is of those from that member
// to this one, and when it was sent.

import { Trend } from 'k6/metrics';

import { counters, eventually, failed, sleep } from './crowd.js';

/** Characters of base64 in a message: 256 bytes. */
const LENGTH = 344;
/** Sends that a paced member has under way at most. */
const MOST_UNDER_WAY = 16;
/** Of as many seqs as one ack may name. */
const MOST_ACKS = 1000;

const replyTime = new Trend('reply_ms');
const deliveryTime = new Trend('delivery_ms');
const { accepted, arrived, acked, duplicates, disordered, lost, unacked, redelivered } = counters(
  'accepted', 'arrived', 'acked', 'duplicates', 'disordered', 'lost', 'unacked', 'redelivered');

export const messagesCount = {
  accepted: ['count>0'],
  // A message that came twice, or again after its ack.
  duplicates: ['count==0'],
  // A message of one member that came after a later one of the same, or a gap in the seqs.
  disordered: ['count==0'],
  // A message that was accepted and did not come.
  lost: ['count==0'],
  // A message that came and could not be acked.
  unacked: ['count==0'],
};

const digits = (number, width) => String(number).padStart(width, '0');

/** What one member writes and gets. */
class Correspondent {
  constructor(exchange, member, number) {
    this.exchange = exchange;
    this.member = member;
    this.number = number;
    /** Messages so far to each, and from each. */
    this.sent = [];
    this.received = [];
    this.skipped = new Set();
    this.underWay = 0;
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
    this.underWay += 1;
    try {
      await member.call('messages.send', { message_id: crypto.randomUUID(), to: peer.user_id, messages });
      replyTime.add(Date.now() - started, this.tags);
      accepted.add(1);
      exchange.accepted += 1;
    } catch (problem) {
      failed(problem);
    }
    this.underWay -= 1;
  }

  /** Keeps so many messages under way until then. */
  async hurry(until, pipeline) {
    const one = async () => {
      while (Date.now() < until && !this.member.device.problem) await this.send();
    };
    await Promise.all(Array.from({ length: pipeline }, one));
  }

  /** Sends one message in each interval until then, however long the answers take. */
  async pace(until, interval) {
    await sleep(Math.random() * interval);
    for (let due = Date.now(); due < until; due += interval) {
      await sleep(Math.max(0, due - Date.now()));
      if (this.underWay < MOST_UNDER_WAY && this.member.device) this.send();
    }
    await eventually(() => this.underWay === 0);
  }

  /** Closes the socket in the middle of things and comes back; what came meanwhile is delivered then. */
  async reconnect() {
    const { member } = this;
    const { device } = member;
    member.device = undefined;
    await eventually(() => this.underWay === 0 && !this.acking);
    await device.close();
    // What came and was not acked comes again, and is acked then.
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
    // One of an earlier run of the test.
    if (!content.startsWith(exchange.run)) return;
    const sender = Number(content.slice(8, 12));
    const number = Number(content.slice(12, 20));
    if (exchange.all[sender].member.seed.device_id !== from.device_id || content.length !== LENGTH) {
      failed(new Error(`a message came changed: ${content}`));
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

  /** Acks all that came while the last ack was under way. */
  async ack() {
    if (this.acking) return;
    this.acking = true;
    while (this.unacked.length > 0 && this.member.device) {
      const seqs = this.unacked.splice(0, MOST_ACKS);
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

/** What a crowd writes to each other, over all iterations of its virtual user. */
export class Exchange {
  constructor(members) {
    this.run = digits(Math.floor(Math.random() * 1e8), 8);
    this.accepted = 0;
    this.arrived = 0;
    this.all = members.map((member, n) => new Correspondent(this, member, n));
  }

  /** Everyone writes for so many seconds: with `pipeline` messages under way, or `rate` messages a second. */
  async write({ seconds, pipeline, rate, tags = {} }) {
    const until = Date.now() + seconds * 1000;
    const writing = this.all.map((one) => {
      one.tags = tags;
      return pipeline ? one.hurry(until, pipeline) : one.pace(until, 1000 / rate);
    });
    await Promise.all(writing);
  }

  /** Waits until all that was accepted has come and is acked; counts what has not. */
  async settle() {
    for (const counter of [duplicates, disordered, unacked, redelivered]) counter.add(0);
    const quiet = () => this.all.every((one) => !one.acking && one.unacked.length === 0);
    await eventually(() => this.arrived >= this.accepted && quiet());
    lost.add(Math.max(0, this.accepted - this.arrived));
    unacked.add(this.all.reduce((sum, one) => sum + one.unacked.length, 0));
  }

  /** All come back once more, and must find nothing that waits for them. */
  async findNothing() {
    await Promise.all(this.all.map((one) => one.reconnect()));
    const waiting = this.all.map((one) => one.member.device.welcome.mailbox.waiting);
    unacked.add(waiting.reduce((sum, count) => sum + count, 0));
  }
}

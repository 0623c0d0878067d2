// A crowd is one virtual user: some dozens of devices that communicate only with each other. So what must happen exactly once can
// be counted within one virtual user, while the server handles all of them at once.

import { SharedArray } from 'k6/data';
import exec from 'k6/execution';
import { Counter, Trend } from 'k6/metrics';
import { setTimeout } from 'k6/timers';

import { Device } from './device.js';

/** The settings from `loadtest/k6/run`. */
export const settings = {
  url: __ENV.LOADTEST_URLS.split(' ')[0],
  crowds: Number(__ENV.LOADTEST_CROWDS),
  sockets: Number(__ENV.LOADTEST_SOCKETS),
  seconds: Number(__ENV.LOADTEST_SECONDS),
};

const urls = __ENV.LOADTEST_URLS.split(' ');
const seeds = new SharedArray('devices', () => {
  const lines = open(__ENV.LOADTEST_TOKENS).trim().split('\n');
  const needed = settings.crowds * settings.sockets;
  if (lines.length < needed) throw new Error(`${needed} devices are needed, the seed file has ${lines.length}`);
  return lines.map((line) => JSON.parse(line));
});

const connectTime = new Trend('connect_ms');
const connected = new Counter('connected');
const errors = new Counter('errors');
const finished = new Counter('crowds_finished');

/** Thresholds of every scenario: nothing failed, and every crowd finished this many times. */
export const allWell = (times = 1) => ({
  errors: ['count==0'],
  crowds_finished: [`count==${settings.crowds * times}`],
});

/** A scenario in which every crowd does its work once. */
export const once = (maxDuration = '10m') => ({
  executor: 'per-vu-iterations',
  vus: settings.crowds,
  iterations: 1,
  maxDuration,
});

export const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

/** Waits until `holds()`, for at most this many seconds. Returns whether it holds. */
export async function eventually(holds, seconds = 30) {
  const until = Date.now() + seconds * 1000;
  while (!holds() && Date.now() < until) await sleep(20);
  return holds();
}

/** Counts a failed request, socket or script. No scenario allows any. The first three are printed. */
let failures = 0;
export function failed(problem) {
  errors.add(1, { code: problem.code || 'script' });
  failures += 1;
  if (failures <= 3) console.error(problem.code ? problem.message : problem.stack || problem);
}

/** Creates counters. Add 0 to one that must be shown and judged even if nothing is counted. */
export function counters(...names) {
  return Object.fromEntries(names.map((name) => [name, new Counter(name)]));
}

/** One member of a crowd: a device that can connect and disconnect. */
export class Member {
  constructor(seed, url) {
    this.seed = seed;
    this.url = url;
    this.handlers = [];
  }

  /** Calls `handler(name, data)` for every event from now on. */
  onEvent(handler) {
    this.handlers.push(handler);
  }

  async connect(tags) {
    const started = Date.now();
    this.device = await Device.connect(this.url, this.seed, (name, data) => {
      if (name === 'failed') failed(data);
      for (const handler of this.handlers) handler(name, data);
    });
    connectTime.add(Date.now() - started, tags);
    connected.add(1, tags);
  }

  async disconnect() {
    const { device } = this;
    this.device = undefined;
    if (device) await device.close();
  }

  call(op, params) {
    return this.device.call(op, params);
  }
}

/** The members of this virtual user's crowd, the same in all of its iterations. */
let members;
function ours() {
  const first = (exec.vu.idInTest - 1) * settings.sockets;
  const member = (n) => new Member(seeds[first + n], urls[(first + n) % urls.length]);
  members = members || Array.from({ length: settings.sockets }, (_, n) => member(n));
  return members;
}

/** Connects the crowd, runs `work(members)`, and closes all sockets. Failures are counted. */
export async function gather(work, tags = {}) {
  const crowd = ours();
  errors.add(0);
  try {
    // Wait for all, even if one fails: otherwise a socket that opens later would never be closed.
    const connecting = await Promise.allSettled(crowd.map((member) => member.connect(tags)));
    if (connecting.every(({ status }) => status === 'fulfilled')) {
      await work(crowd);
      finished.add(1);
    }
  } catch (problem) {
    failed(problem);
  } finally {
    await Promise.all(crowd.map((member) => member.disconnect()));
  }
}

// The members of a crowd claim each other's one-time prekeys until every pool is empty, and count what they get.

import { Trend } from 'k6/metrics';

import { counters, eventually, failed } from './crowd.js';

/** Claims in flight on each socket. */
const PIPELINE = 4;
/** One claim in this many is repeated, as after a lost reply. */
const REPEAT_EVERY = 10;
const PREKEYS = Number(__ENV.LOADTEST_PREKEYS);

const claimTime = new Trend('claim_ms');
const { claimed, duplicates, exhausted, unclaimed, changed_repeats, false_exhausted, untold } = counters(
  'claimed', 'duplicates', 'exhausted', 'unclaimed', 'changed_repeats', 'false_exhausted', 'untold');

export const claimsCount = {
  claimed: ['count>0'],
  // Keys returned by two claims.
  duplicates: ['count==0'],
  // Keys returned by no claim, although all pools were emptied.
  unclaimed: ['count==0'],
  // Repeated claims that did not return the same key.
  changed_repeats: ['count==0'],
  // Keys returned by a claim made after the pool was reported exhausted.
  false_exhausted: ['count==0'],
  // Owners that were not notified exactly once that their pool is empty.
  untold: ['count==0'],
};

/** The pool of one device, from which all other members claim. */
class Pool {
  constructor(owner) {
    this.owner = owner;
    this.keys = new Set();
    this.empty = false;
    this.told = 0;
    owner.onEvent((name, data) => {
      if (name === 'prekeys.low' && data.kind === 'one_time' && data.remaining === 0) this.told += 1;
    });
  }

  /** Makes one claim for `member`. Returns its key, or null, and whether the pool was known to be empty before. */
  async claim(member, claimId) {
    const wasEmpty = this.empty;
    const started = Date.now();
    const { user_id, device_id } = this.owner.seed;
    const { bundles } = await member.call('keys.claim', { user_id, device_ids: [device_id], claim_id: claimId });
    claimTime.add(Date.now() - started);
    const [{ one_time, one_time_prekey }] = bundles;
    if (one_time === 'exhausted') this.empty = true;
    return { wasEmpty, key: one_time === 'claimed' ? one_time_prekey : null };
  }

  async take(member) {
    const claimId = crypto.randomUUID();
    const { wasEmpty, key } = await this.claim(member, claimId);
    if (!key) return exhausted.add(1);
    claimed.add(1);
    if (wasEmpty) false_exhausted.add(1);
    if (this.keys.has(key.key_id)) duplicates.add(1);
    this.keys.add(key.key_id);
    if (this.keys.size % REPEAT_EVERY === 0) {
      const again = (await this.claim(member, claimId)).key;
      if (!again || again.key_id !== key.key_id || again.public_key !== key.public_key) changed_repeats.add(1);
    }
    return undefined;
  }
}

/** Empties all pools of the crowd. They must be full, and their owners connected. */
export async function claimEverything(members) {
  for (const counter of [duplicates, unclaimed, changed_repeats, false_exhausted, untold]) counter.add(0);
  const pools = members.map((member) => new Pool(member));
  const claimer = async (member, n) => {
    // Each starts at a different pool and takes turns, so that all claim from all pools the whole time.
    for (let turn = n; ; turn += 1) {
      const left = pools.filter((pool) => !pool.empty && pool.owner !== member);
      if (left.length === 0) return;
      await left[turn % left.length].take(member).catch((problem) => {
        failed(problem);
        throw problem;
      });
    }
  };
  const claimers = members.flatMap((member, n) => Array.from({ length: PIPELINE }, (_, m) => claimer(member, n + m)));
  await Promise.all(claimers);
  unclaimed.add(pools.reduce((sum, pool) => sum + Math.max(0, PREKEYS - pool.keys.size), 0));
  await eventually(() => pools.every((pool) => pool.told > 0), 10);
  untold.add(pools.filter((pool) => pool.told !== 1).length);
}

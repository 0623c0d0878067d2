// Waiting: timers that can be aborted, time limits, and backoff.

import { ConnectionError } from './errors.js';

/** Longest wait between two tries, and the bound of the first, in milliseconds. */
const MAX_WAIT = 60_000;
const FIRST_WAIT = 1000;

/** A random wait before try number `failures` (from 0): between zero and a bound that doubles from a second up to a minute. */
export const backoff = (failures: number, random: () => number): number =>
  random() * Math.min(MAX_WAIT, FIRST_WAIT * 2 ** failures);

/** Resolves after `ms`; rejects with the signal's reason if it is aborted before. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  let timer: ReturnType<typeof setTimeout>;
  const over = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
  return within(over, signal).finally(() => clearTimeout(timer));
}

/** `promise`, but rejects with the signal's reason as soon as it is aborted. */
export function within<T>(promise: Promise<T>, signal?: AbortSignal | null): Promise<T> {
  if (!signal) return promise;
  return new Promise<T>((resolve, reject) => {
    const abort = () => reject(signal.reason as Error);
    if (signal.aborted) return abort();
    signal.addEventListener('abort', abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort));
  });
}

/** Runs `work` with a signal that is aborted with `signal`, and after `ms` with the code `timeout`. */
export async function withLimit<T>(ms: number, what: string, signal: AbortSignal | undefined, work: (limit: AbortSignal) => Promise<T>): Promise<T> {
  signal?.throwIfAborted();
  const limit = new AbortController();
  const abort = () => limit.abort(signal!.reason);
  signal?.addEventListener('abort', abort);
  const timer = setTimeout(() => limit.abort(new ConnectionError('timeout', `${what}: no answer within ${ms} ms`)), ms);
  try {
    return await work(limit.signal);
  } catch (error) {
    limit.signal.throwIfAborted();
    throw error;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener('abort', abort);
  }
}

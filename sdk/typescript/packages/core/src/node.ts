// For Node: storage in a file.

import { closeSync, fdatasync, fsyncSync, ftruncateSync, openSync, readFileSync, renameSync, rmSync, write, writeFileSync, writeSync } from 'node:fs';
import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import type { Storage, Value } from './storage.js';

const writeAsync = promisify(write);
const syncAsync = promisify(fdatasync);

/** A log that has grown beyond this, and beyond twice of what is in use, is rewritten. */
const COMPACT_BYTES = 1 << 20;

export interface FileStorageOptions {
  /** Whether a write waits until the disk has it: true if absent. Without, a power failure may lose the last writes, but no crash does. */
  sync?: boolean;
}

/**
 * Storage in a file, for Node. One process at a time may use it: a lock file beside it names the process.
 *
 * The file is a log with one line for each batch: a checksum, and the batch in JSON. A line that was not written whole, because the
 * process or the machine stopped, is ignored at the next start; so a batch is there or it is not.
 *
 * @throws Error if another process uses the file, or if it is damaged anywhere but at its end
 */
export function fileStorage(path: string, { sync = true }: FileStorageOptions = {}): Storage {
  let file: number | undefined;
  let entries = new Map<string, string>();
  let size = 0;
  let used = 0;
  let last: Promise<unknown> = Promise.resolve();
  let broken: unknown;

  const apply = (batch: [string, string | null][]) => {
    for (const [key, value] of batch) {
      used -= entries.has(key) ? key.length + entries.get(key)!.length : 0;
      if (value === null) entries.delete(key);
      else {
        entries.set(key, value);
        used += key.length + value.length;
      }
    }
  };

  function open(): void {
    if (file !== undefined) return;
    lock(path);
    entries = new Map();
    size = used = 0;
    const descriptor = openSync(path, 'a+', 0o600);
    const log = readFileSync(descriptor);
    for (let at = 0; at < log.length; ) {
      const end = log.indexOf(10, at);
      const batch = end < 0 ? null : parse(log.toString('utf8', at, end));
      if (!batch) {
        if (end >= 0 && log.indexOf(10, end + 1) >= 0) {
          closeSync(descriptor);
          unlock(path);
          throw new Error(`${path} is damaged at byte ${at}`);
        }
        break;
      }
      apply(batch);
      size = at = end + 1;
    }
    if (size < log.length) ftruncateSync(descriptor, size);
    syncDirectory(path);
    file = descriptor;
  }

  /** Writes what is in use to a new file, which takes the place of the old one. */
  function compact(): void {
    const line = format([...entries]);
    const next = `${path}.next`;
    const descriptor = openSync(next, 'w', 0o600);
    writeSync(descriptor, line);
    fsyncSync(descriptor);
    closeSync(descriptor);
    renameSync(next, path);
    syncDirectory(path);
    closeSync(file!);
    file = openSync(path, 'a', 0o600);
    size = Buffer.byteLength(line);
  }

  async function append(line: string): Promise<void> {
    if (broken) throw broken;
    const bytes = Buffer.from(line);
    try {
      for (let at = 0; at < bytes.length; ) at += (await writeAsync(file!, bytes, at, bytes.length - at)).bytesWritten;
      if (sync) await syncAsync(file!);
    } catch (error) {
      // Part of the line may be in the file. It must not stand before others.
      try {
        ftruncateSync(file!, size);
      } catch {
        broken = error;
      }
      throw error;
    }
    size += bytes.length;
  }

  return {
    async get(key) {
      open();
      const text = entries.get(key);
      return text === undefined ? undefined : decode(text);
    },
    async list(prefix) {
      open();
      const found = [...entries].filter(([key]) => key.startsWith(prefix)).sort(([a], [b]) => (a < b ? -1 : 1));
      return found.map(([key, text]) => [key, decode(text)]);
    },
    write(batch) {
      const changes = [...batch].map(([key, value]): [string, string | null] => [key, value === undefined ? null : encode(value)]);
      const run = last.then(async () => {
        open();
        await append(format(changes));
        apply(changes);
        if (size > COMPACT_BYTES && size > 2 * used) compact();
      });
      last = run.catch(() => {});
      return run;
    },
    async close() {
      await last;
      if (file === undefined) return;
      closeSync(file);
      file = undefined;
      unlock(path);
    },
  };
}

const checksum = (text: string) => createHash('sha256').update(text).digest('hex').slice(0, 16);

function format(batch: [string, string | null][]): string {
  const text = JSON.stringify(batch);
  return `${checksum(text)} ${text}\n`;
}

function parse(line: string): [string, string | null][] | null {
  const text = line.slice(17);
  return line[16] === ' ' && line.slice(0, 16) === checksum(text) ? (JSON.parse(text) as [string, string | null][]) : null;
}

/** JSON, with bytes as `{"$bytes": base64}`. Keys that begin with `$` are escaped by another one. */
const encode = (value: Value): string => JSON.stringify(wrap(value));
const decode = (text: string): Value => unwrap(JSON.parse(text));

function wrap(value: Value | undefined): unknown {
  if (value instanceof Uint8Array) return { $bytes: Buffer.from(value).toString('base64') };
  if (Array.isArray(value)) return value.map(wrap);
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key.startsWith('$') ? `$${key}` : key, wrap(inner)]));
  }
  return value;
}

function unwrap(value: unknown): Value {
  if (Array.isArray(value)) return value.map(unwrap);
  if (typeof value === 'object' && value !== null) {
    const bytes = (value as { $bytes?: unknown }).$bytes;
    if (typeof bytes === 'string') return Uint8Array.from(Buffer.from(bytes, 'base64'));
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key.startsWith('$') ? key.slice(1) : key, unwrap(inner)]));
  }
  return value as Value;
}

function syncDirectory(path: string): void {
  // Windows cannot open directories, and does not need it.
  if (process.platform === 'win32') return;
  const directory = openSync(dirname(path), 'r');
  try {
    fsyncSync(directory);
  } finally {
    closeSync(directory);
  }
}

/** The lock files of this process. */
const held = new Set<string>();

function lock(path: string): void {
  const name = `${path}.lock`;
  for (let tries = 0; ; tries++) {
    try {
      writeFileSync(name, String(process.pid), { flag: 'wx', mode: 0o600 });
      held.add(name);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST' || tries > 1) throw error;
      const pid = Number(readFileSync(name, 'utf8'));
      if (held.has(name) || (pid !== process.pid && alive(pid))) throw new Error(`${path} is in use by process ${pid}`);
      // The process that made it was killed.
      rmSync(name, { force: true });
    }
  }
}

function unlock(path: string): void {
  held.delete(`${path}.lock`);
  rmSync(`${path}.lock`, { force: true });
}

function alive(pid: number): boolean {
  if (!(pid > 0)) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

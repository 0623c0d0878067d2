// A small Sealwire client: signs in over HTTP, then opens one WebSocket per device.
//
// It is strict: a frame of the wrong kind, a first frame that is not `welcome` or a reply without a request fails the connection,
// and with it everything that waits for it.

import { decode, encode } from '@msgpack/msgpack';
import assert from 'node:assert/strict';
import { readFile, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import WebSocket from 'ws';

const TIMEOUT_MS = 60_000;

/** An `error` object from the server, in an HTTP response (with its status) or a reply on the socket. */
export class SealwireError extends Error {
  constructor({ code, message, retryable, retry_after_ms, details }, status) {
    super(`${code}: ${message}`);
    Object.assign(this, { code, retryable, retry_after_ms, details, status });
  }
}

/** Makes one HTTP request in JSON. Returns the parsed body, or null if there is none; throws `SealwireError`. */
export async function http(server, method, path, { body, token } = {}) {
  const response = await fetch(new URL(path, server.url), {
    method,
    headers: {
      ...(body && { 'Content-Type': 'application/json' }),
      ...(token && { Authorization: `Bearer ${token}` }),
    },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const text = await response.text();
  const answer = text === '' ? null : JSON.parse(text);
  if (!response.ok) throw new SealwireError(answer.error, response.status);
  return answer;
}

/**
 * Signs in by mailed code. `server` is `{url, mailDir}`. Sign in one address at a time, because the code is read from a mail to
 * it that did not exist before. Returns `{user_id, device_id, session_id, token, expires_at}`.
 */
export async function signIn(server, email, { device, replaceDeviceId } = {}) {
  return redeem(server, await requestCode(server, email), { device, replace_device_id: replaceDeviceId });
}

/** Asks for a code to sign in, and reads it from the mail. Returns `{challenge_id, email, code}`. */
export async function requestCode(server, email) {
  const before = new Set(await mails(server.mailDir));
  const { challenge_id } = await http(server, 'POST', '/v1/auth/otp', { body: { email } });
  return { challenge_id, email, code: await mailedCode(server.mailDir, email, before) };
}

/** Redeems a code of `requestCode`. */
export function redeem(server, code, more) {
  return http(server, 'POST', '/v1/auth/verify', { body: { ...code, ...more } });
}

const mails = async (dir) => (await readdir(dir)).filter((name) => name.endsWith('.eml'));

/** Waits for a mail to `email` with a code that is not among `before`: the newest if there are several. */
async function mailedCode(dir, email, before) {
  for (const deadline = Date.now() + TIMEOUT_MS; Date.now() < deadline; await pause(20)) {
    const found = [];
    for (const name of (await mails(dir)).filter((name) => !before.has(name))) {
      const { to, text } = parseMail(await readFile(join(dir, name), 'utf8'));
      const codes = new Set(text.match(/(?<!\d)\d{8}(?!\d)/g));
      if (!to.includes(email) || codes.size === 0) continue;
      assert.equal(codes.size, 1, `the code is not the only eight-digit group in:\n${text}`);
      found.push({ code: [...codes][0], at: (await stat(join(dir, name))).mtimeMs });
    }
    if (found.length > 0) return found.sort((a, b) => b.at - a.at)[0].code;
  }
  throw new Error(`no mail with a code for ${email} in ${dir}`);
}

/** The recipient, and the subject with the text, of a single-part mail. */
function parseMail(raw) {
  const [head, ...rest] = raw.split(/\r?\n\r?\n/);
  const header = (name) => head.replace(/\r?\n[ \t]+/g, ' ').match(new RegExp(`^${name}: *(.*)$`, 'im'))?.[1] ?? '';
  let body = rest.join('\n\n');
  const encoding = header('Content-Transfer-Encoding').toLowerCase();
  if (encoding === 'base64') body = Buffer.from(body, 'base64').toString();
  if (encoding === 'quoted-printable') {
    body = body.replace(/=\r?\n/g, '').replace(/=([0-9A-F]{2})/gi, (_, hex) => String.fromCharCode(parseInt(hex, 16)));
  }
  return { to: header('To').toLowerCase(), text: `${header('Subject')}\n${body}` };
}

/** The socket of one device: requests with replies, a queue of events, and the close. */
export class Connection {
  /** Resolves with `{code, reason}` when the socket has closed. */
  closed;
  /** The data of the `welcome` event. */
  welcome;

  #socket;
  #format;
  #nextId = 1;
  #replies = new Map();
  #events = [];
  #waiters = new Set();
  #greeted = false;
  /** Why the socket can no longer be used; null while it can. */
  #over = null;

  /**
   * Connects and waits for `welcome`. `format` is "msgpack" or "json". `tokenIn` says where to put the token: "header", or
   * "subprotocol" as browsers must. A refused upgrade throws `SealwireError` with its `status`.
   */
  static async open(server, token, { format = 'msgpack', tokenIn = 'header' } = {}) {
    const connection = new Connection(server, token, format, tokenIn);
    connection.welcome = await connection.waitFor('welcome');
    assert.equal(connection.#socket.protocol, `sealwire.v1.${format}`, 'the subprotocol that the server chose');
    return connection;
  }

  constructor(server, token, format, tokenIn) {
    this.#format = format;
    const protocols = [`sealwire.v1.${format}`];
    if (tokenIn === 'subprotocol') protocols.push(`sealwire.token.${token}`);
    const headers = tokenIn === 'header' ? { Authorization: `Bearer ${token}` } : {};
    const url = new URL('/v1/socket', server.url.replace(/^http/, 'ws'));
    this.#socket = new WebSocket(url, protocols, { headers, perMessageDeflate: false, handshakeTimeout: TIMEOUT_MS });
    this.closed = new Promise((resolve) => {
      this.#socket.on('close', (code, reason) => {
        this.#end(new Error(`the socket closed with ${code}`));
        resolve({ code, reason: reason.toString() });
      });
    });
    this.#socket.on('error', (error) => this.#end(error));
    this.#socket.on('unexpected-response', async (_, response) => {
      const body = Buffer.concat(await response.toArray()).toString();
      try {
        this.#end(new SealwireError(JSON.parse(body).error, response.statusCode));
      } catch {
        this.#end(new Error(`the upgrade was refused with ${response.statusCode} and this body: ${body}`));
      }
      this.#socket.terminate();
    });
    this.#socket.on('message', (bytes, isBinary) => {
      try {
        this.#receive(bytes, isBinary);
      } catch (error) {
        this.#end(error);
        this.#socket.terminate();
      }
    });
  }

  /** Sends a request. Resolves with its `result`, or rejects with its error as `SealwireError`. */
  request(op, params) {
    if (this.#over) return Promise.reject(this.#over);
    const id = this.#nextId++;
    const frame = { id, op, ...(params && { params }) };
    this.#socket.send(this.#format === 'json' ? JSON.stringify(frame) : encode(frame, { ignoreUndefined: true }));
    return this.#withTimeout(`the reply to ${op}`, (resolve, reject) => {
      this.#replies.set(id, { resolve, reject });
      return () => this.#replies.delete(id);
    });
  }

  /** Takes the first queued event with this name whose data fits, or waits for one. Returns its data. */
  async waitFor(event, fits = () => true) {
    return (await this.#take(`the event ${event}`, (frame) => frame.event === event && fits(frame.data))).data;
  }

  /** Takes the first event with any of these names. Returns the frame. */
  waitForFirst(events) {
    return this.#take(`one of the events ${events}`, ({ event }) => events.includes(event));
  }

  /** Stops reading: everything that the server sends from now on is lost. */
  stopReading() {
    this.#socket.pause();
  }

  /** Drops the connection without a close, like a network failure. */
  drop() {
    this.#socket.terminate();
    this.#end(new Error('the connection was dropped'));
  }

  /** Closes the socket and waits until it is closed. */
  close() {
    this.#socket.close(1000);
    return this.closed;
  }

  #receive(bytes, isBinary) {
    assert.equal(isBinary, this.#format === 'msgpack', 'frames have the type of the subprotocol');
    const frame = isBinary ? decode(bytes) : JSON.parse(bytes.toString());
    if (!this.#greeted) assert.equal(frame.event, 'welcome', 'the first frame is welcome');
    this.#greeted = true;
    if (frame.event !== undefined) {
      const waiter = [...this.#waiters].find(({ matches }) => matches(frame));
      if (waiter) waiter.resolve(frame);
      else this.#events.push(frame);
      return;
    }
    const asked = this.#replies.get(frame.id);
    assert(asked, `a reply without a request: ${JSON.stringify(frame)}`);
    if (frame.error) asked.reject(new SealwireError(frame.error));
    else asked.resolve(frame.result);
  }

  /** A promise that unregisters itself when it is settled, and is rejected after `TIMEOUT_MS`. */
  #withTimeout(what, register) {
    const { promise, resolve, reject } = withResolvers();
    const forget = register((value) => settle(resolve, value), (error) => settle(reject, error));
    const timer = setTimeout(() => settle(reject, new Error(`${what} did not arrive`)), TIMEOUT_MS);
    function settle(how, value) {
      clearTimeout(timer);
      forget();
      how(value);
    }
    return promise;
  }

  #take(what, matches) {
    const index = this.#events.findIndex(matches);
    if (index >= 0) return Promise.resolve(this.#events.splice(index, 1)[0]);
    if (this.#over) return Promise.reject(this.#over);
    return this.#withTimeout(what, (resolve, reject) => {
      const waiter = { matches, resolve, reject };
      this.#waiters.add(waiter);
      return () => this.#waiters.delete(waiter);
    });
  }

  #end(error) {
    this.#over ??= error;
    for (const { reject } of [...this.#replies.values(), ...this.#waiters]) reject(this.#over);
  }
}

function withResolvers() {
  const parts = {};
  parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
  return parts;
}

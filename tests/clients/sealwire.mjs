// A small Sealwire client: sign in over HTTP, then one WebSocket per device.
//
// It is strict about what the server may do: a frame of the wrong kind, a first frame that is not `welcome` or a reply
// that nobody asked for fails the connection, and with it whatever the caller awaits.

import { decode, encode } from '@msgpack/msgpack';
import assert from 'node:assert/strict';
import { readFile, readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import WebSocket from 'ws';

const PATIENCE_MS = 60_000;

/** An `error` object of the server, from HTTP (with its status) or from a socket reply. */
export class SealwireError extends Error {
  constructor({ code, message, retryable, retry_after_ms, details }, status) {
    super(`${code}: ${message}`);
    Object.assign(this, { code, retryable, retry_after_ms, details, status });
  }
}

/** One HTTP exchange in JSON. Answers the parsed body (null when there is none); throws `SealwireError`. */
export async function http(server, method, path, { body, token } = {}) {
  const response = await fetch(new URL(path, server.url), {
    method,
    headers: {
      ...(body && { 'Content-Type': 'application/json' }),
      ...(token && { Authorization: `Bearer ${token}` }),
    },
    body: body && JSON.stringify(body),
    signal: AbortSignal.timeout(PATIENCE_MS),
  });
  const text = await response.text();
  const answer = text === '' ? null : JSON.parse(text);
  if (!response.ok) throw new SealwireError(answer.error, response.status);
  return answer;
}

/**
 * Signs in by mailed code. `server` is `{url, mailDir}`; sign in one address at a time, since the code is read from the
 * first mail to it that was not there before. Answers `{user_id, device_id, session_id, token, expires_at}`.
 */
export async function signIn(server, email, { device, replaceDeviceId } = {}) {
  const before = new Set(await mails(server.mailDir));
  const { challenge_id } = await http(server, 'POST', '/v1/auth/otp', { body: { email } });
  const code = await mailedCode(server.mailDir, email, before);
  return http(server, 'POST', '/v1/auth/verify', {
    body: { challenge_id, email, code, device, replace_device_id: replaceDeviceId },
  });
}

const mails = async (dir) => (await readdir(dir)).filter((name) => name.endsWith('.eml'));

/** Waits for a mail to `email` that is not among `before` and carries a code: the newest, should there be several. */
async function mailedCode(dir, email, before) {
  for (const deadline = Date.now() + PATIENCE_MS; Date.now() < deadline; await pause(20)) {
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

/** Recipient, and subject with text, of a single-part mail. */
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

/** One device's socket: requests with replies, a queue of events, and how it was closed. */
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
  /** Why the socket is of no use any more; null while it is. */
  #over = null;

  /**
   * Connects and waits for `welcome`. `format` is "msgpack" or "json"; `tokenIn` says where the token travels: "header",
   * or "subprotocol" as browsers must. A refused upgrade throws `SealwireError` with its `status`.
   */
  static async open(server, token, { format = 'msgpack', tokenIn = 'header' } = {}) {
    const connection = new Connection(server, token, format, tokenIn);
    connection.welcome = await connection.waitFor('welcome');
    assert.equal(connection.#socket.protocol, `sealwire.v1.${format}`, 'the subprotocol that the server picked');
    return connection;
  }

  constructor(server, token, format, tokenIn) {
    this.#format = format;
    const protocols = [`sealwire.v1.${format}`];
    if (tokenIn === 'subprotocol') protocols.push(`sealwire.token.${token}`);
    const headers = tokenIn === 'header' ? { Authorization: `Bearer ${token}` } : {};
    const url = new URL('/v1/socket', server.url.replace(/^http/, 'ws'));
    this.#socket = new WebSocket(url, protocols, { headers, perMessageDeflate: false, handshakeTimeout: PATIENCE_MS });
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

  /** Sends a request; resolves with its `result` or throws its error as `SealwireError`. */
  request(op, params) {
    if (this.#over) return Promise.reject(this.#over);
    const id = this.#nextId++;
    const frame = { id, op, ...(params && { params }) };
    this.#socket.send(this.#format === 'json' ? JSON.stringify(frame) : encode(frame, { ignoreUndefined: true }));
    return this.#patiently(`the reply to ${op}`, (resolve, reject) => {
      this.#replies.set(id, { resolve, reject });
      return () => this.#replies.delete(id);
    });
  }

  /** Takes the first queued event of that name whose data fits, or waits for one. Answers its data. */
  async waitFor(event, fits = () => true) {
    return (await this.#take(`the event ${event}`, (frame) => frame.event === event && fits(frame.data))).data;
  }

  /** Takes whichever event of these names comes first. Answers the frame. */
  waitForFirst(events) {
    return this.#take(`one of the events ${events}`, ({ event }) => events.includes(event));
  }

  /** Reads nothing any more: what the server answers from now on is lost. */
  deafen() {
    this.#socket.pause();
  }

  /** Drops the connection without a close, as a network does. */
  tear() {
    this.#socket.terminate();
    this.#end(new Error('the connection was torn'));
  }

  /** Closes the socket and waits until it is closed. */
  close() {
    this.#socket.close(1000);
    return this.closed;
  }

  #receive(bytes, isBinary) {
    assert.equal(isBinary, this.#format === 'msgpack', 'frames are of the subprotocol’s kind');
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
    assert(asked, `a reply that nobody waits for: ${JSON.stringify(frame)}`);
    if (frame.error) asked.reject(new SealwireError(frame.error));
    else asked.resolve(frame.result);
  }

  /** A promise that forgets itself when it is settled, and fails when `PATIENCE_MS` have passed. */
  #patiently(what, register) {
    const { promise, resolve, reject } = withResolvers();
    const forget = register((value) => settle(resolve, value), (error) => settle(reject, error));
    const timer = setTimeout(() => settle(reject, new Error(`${what} did not come`)), PATIENCE_MS);
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
    return this.#patiently(what, (resolve, reject) => {
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

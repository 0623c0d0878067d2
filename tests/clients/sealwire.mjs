// A small Sealwire client: signs in over HTTP, then opens one WebSocket per device.
//
// It is strict: a frame of the wrong kind, a first frame that is not `welcome` or a reply without a request fails the connection,
// and with it everything that waits for it.

import { decode, encode } from '@msgpack/msgpack';
import assert from 'node:assert/strict';
import WebSocket from 'ws';
import { mailedCode, mails } from '../../sdk/typescript/test-support/mail.mjs';

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

// A server for tests that does what a test says: it refuses, closes, delays and answers as told. Without instructions it behaves like a
// server with one signed-in device.

import { createServer } from 'node:http';
import { WebSocketServer } from 'ws';

/** The answer to a request that is never answered. */
export const SILENCE = Symbol('silence');

export const refusal = (code, fields = {}) => ({ code, message: code, retryable: false, ...fields });

export class Fake {
  static USER = '0190a6f8-1111-4222-8333-0123456789ab';
  static DEVICE = '5f2b8a34-5b0e-4d1c-9a51-4e3e1f1d2c3b';

  /** The frames of all requests, in order. */
  requests = [];
  /** HTTP requests: `{method, path, body, token}`. */
  calls = [];
  /** Open sockets: `{send(event, data), close(code, reason), drop(), token}`. */
  sockets = [];
  /** How many upgrades there were. */
  upgrades = 0;
  keys = { suite: null, identity_key: null, signed_prekey: null, pq_last_resort: null, one_time: 0, pq_one_time: 0, threshold: 20, pool_version: 0 };
  features = ['replace', 'skip', 'suites'];
  /** The field `push` of the welcome; absent before servers had push. */
  push = undefined;
  sessionMs = 30 * 86_400_000;
  /** Added to the time of this server. */
  clockMs = 0;
  /** Answers to ops: `(params, socket) => result`; throws an error object to refuse. */
  ops = {};
  /** Answers over HTTP, by "METHOD path": `(body, token) => [status, body, headers]`. */
  http = {};
  /** `(token) => null` to accept an upgrade, `{error, close}` to refuse it as in a browser, or `{status, headers, body}` to refuse it over HTTP. */
  upgrade = () => null;

  static async start() {
    const fake = new Fake();
    fake.server = createServer((request, response) => fake.#respond(request, response));
    const wss = new WebSocketServer({ noServer: true, handleProtocols: (offered) => [...offered].find((name) => name.startsWith('sealwire.v1')) });
    fake.server.on('upgrade', (request, socket, head) => {
      fake.upgrades++;
      const offered = (request.headers['sec-websocket-protocol'] ?? '').split(/, */);
      const token = request.headers.authorization?.slice(7) ?? offered.find((name) => name.startsWith('sealwire.token.'))?.slice(15);
      const refused = fake.upgrade(token);
      if (refused?.status) {
        const headers = Object.entries({ 'Content-Type': 'application/json', Connection: 'close', ...refused.headers });
        const body = refused.body ? JSON.stringify({ error: refused.body }) : '';
        const head = [`HTTP/1.1 ${refused.status} Refused`, `Content-Length: ${body.length}`, ...headers.map((header) => header.join(': '))];
        return socket.end(`${head.join('\r\n')}\r\n\r\n${body}`);
      }
      wss.handleUpgrade(request, socket, head, (ws) => fake.#accept(ws, token, refused));
    });
    await new Promise((resolve) => fake.server.listen(0, '127.0.0.1', resolve));
    fake.url = `http://127.0.0.1:${fake.server.address().port}`;
    return fake;
  }

  get now() {
    return Date.now() + this.clockMs;
  }

  time(ms = 0) {
    return new Date(this.now + ms).toISOString().replace('Z', '000Z');
  }

  session(token = 'token-1') {
    return { user_id: Fake.USER, device_id: Fake.DEVICE, session_id: Fake.USER, token, expires_at: this.time(this.sessionMs) };
  }

  stop() {
    for (const { ws } of this.sockets) ws.terminate();
    this.server.closeAllConnections();
    return new Promise((resolve) => this.server.close(resolve));
  }

  /** The requests with this op. */
  of(op) {
    return this.requests.filter((request) => request.op === op).map(({ params }) => params);
  }

  #accept(ws, token, refused) {
    const socket = {
      ws,
      token,
      send: (event, data) => ws.send(JSON.stringify({ event, data })),
      close: (code, reason) => ws.close(code, reason),
      drop: () => ws.terminate(),
    };
    if (refused) {
      socket.send('refused', refused.error);
      return ws.close(refused.close, refused.error.code);
    }
    this.sockets.push(socket);
    ws.on('close', () => this.sockets.splice(this.sockets.indexOf(socket), 1));
    ws.on('message', (data) => this.#answer(socket, data));
    socket.send('welcome', {
      session_id: Fake.USER,
      user_id: Fake.USER,
      device_id: Fake.DEVICE,
      expires_at: this.time(this.sessionMs),
      server_time: this.time(),
      heartbeat_s: 25,
      limits: { frame_bytes: 524288, content_bytes: 32768, in_flight: 64 },
      keys: this.keys,
      mailbox: { waiting: 0, expired_total: 0 },
      features: this.features,
      push: this.push,
    });
    this.onSocket?.(socket);
  }

  async #answer(socket, data) {
    let id;
    try {
      const frame = JSON.parse(data);
      this.requests.push(frame);
      const { op, params } = frame;
      ({ id } = frame);
      const result = await (this.ops[op] ?? this.#defaults[op])(params, socket);
      if (result !== SILENCE) socket.ws.send(JSON.stringify({ id, result }));
    } catch (error) {
      // Without a code it is a fault of the client: not a request that a server could answer.
      socket.ws.send(JSON.stringify({ id, error: error.code ? error : refusal('bad_request', { message: String(error) }) }));
    }
  }

  report = (ids = []) => ({ accepted: ids, duplicate: [], conflict: [], already_issued: [], over_cap: [], withdrawn: [] });

  #defaults = {
    'messages.ack': ({ seqs }) => ({ acked: seqs.length }),
    'messages.send': () => ({ accepted_at: this.time(), duplicate: false, stored: 1, undelivered: [] }),
    'keys.status': () => this.keys,
    'keys.claim': () => ({ bundles: [], unavailable: [] }),
    'keys.publish': (params) => {
      const { suite, identity_key, signed_prekey, one_time_prekeys = [], pq_one_time = [], pq_last_resort } = params;
      const changed = one_time_prekeys.length + pq_one_time.length > 0;
      this.keys = {
        ...this.keys,
        suite,
        identity_key,
        signed_prekey: signed_prekey ? { key_id: signed_prekey.key_id, expires_at: this.time(86_400_000) } : this.keys.signed_prekey,
        pq_last_resort: pq_last_resort ? { key_id: pq_last_resort.key_id } : this.keys.pq_last_resort,
        one_time: (params.replace ? 0 : this.keys.one_time) + one_time_prekeys.length,
        pool_version: this.keys.pool_version + (changed ? 1 : 0),
      };
      const ids = (keys) => keys.map(({ key_id }) => key_id);
      return { one_time: this.report(ids(one_time_prekeys)), pq_one_time: this.report(ids(pq_one_time)), status: this.keys };
    },
    'session.renew': () => ({ token: 'token-2', session_id: Fake.DEVICE, expires_at: this.time(this.sessionMs) }),
    'devices.list': () => ({ devices: [] }),
    'devices.revoke': () => ({}),
  };

  async #respond(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    let body = null;
    try {
      if (chunks.length > 0) body = JSON.parse(Buffer.concat(chunks));
    } catch {
      return response.writeHead(400).end();
    }
    const { method, url: path } = request;
    const token = request.headers.authorization?.slice(7);
    this.calls.push({ method, path, body, token });
    const defaults = {
      'POST /v1/auth/otp': () => [202, { challenge_id: '67e55044-10b1-426f-9247-bb680e5fe0c8', expires_in_s: 600, resend_in_s: 30 }],
      'POST /v1/auth/verify': () => [201, this.session()],
      'GET /v1/auth/session': () => [200, this.session(token)],
      'DELETE /v1/auth/session': () => [204],
    };
    const answer = this.http[`${method} ${path}`] ?? defaults[`${method} ${path}`] ?? (() => [404, refusal('not_found')]);
    const [status, content, headers] = answer(body, token);
    response.writeHead(status, { 'content-type': 'application/json', ...headers });
    response.end(content === undefined ? undefined : JSON.stringify(status >= 400 && content.code ? { error: content } : content));
  }
}

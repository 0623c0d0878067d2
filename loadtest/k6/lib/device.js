// The socket of one device: requests return promises, events go to a handler.

import { WebSocket } from 'k6/experimental/websockets';

/** An error reply, or the failure of a socket. */
export class Problem extends Error {
  constructor(code, message) {
    super(`${code}: ${message}`);
    this.code = code;
  }
}

export class Device {
  /** Resolves with the device once it gets its welcome. `onEvent(name, data)` gets every event, including the welcome. */
  static connect(url, seed, onEvent) {
    return new Promise((resolve, reject) => {
      const device = new Device(url, seed, onEvent);
      device.welcomed = () => resolve(device);
      device.refused = reject;
    });
  }

  constructor(url, seed, onEvent) {
    this.seed = seed;
    this.onEvent = onEvent;
    this.waiting = new Map();
    this.nextId = 1;
    this.closing = false;
    this.ended = new Promise((resolve) => { this.hasEnded = resolve; });
    const headers = { Authorization: `Bearer ${seed.token}` };
    this.socket = new WebSocket(url, ['sealwire.v1.json'], { headers });
    this.socket.onmessage = ({ data }) => this.take(JSON.parse(data));
    // While the socket closes, k6 may report that it could not answer a ping.
    this.socket.onerror = ({ error }) => { if (!this.closing) this.fail(new Problem('socket', error)); };
    this.socket.onclose = () => {
      if (!this.closing) this.fail(new Problem('closed', 'the server closed the socket'));
      this.hasEnded();
    };
  }

  take(frame) {
    if (frame.event) {
      this.onEvent(frame.event, frame.data);
      if (frame.event === 'welcome') {
        this.welcome = frame.data;
        this.welcomed();
      }
      return;
    }
    const { resolve, reject } = this.waiting.get(frame.id);
    this.waiting.delete(frame.id);
    if (frame.error) reject(new Problem(frame.error.code, frame.error.message));
    else resolve(frame.result);
  }

  /** Rejects everything that waits for this socket with `problem`. */
  fail(problem) {
    this.problem = this.problem || problem;
    this.refused(problem);
    for (const { reject } of this.waiting.values()) reject(problem);
    this.waiting.clear();
    // For a socket on which nothing waits, the handler gets the failure.
    this.onEvent('failed', problem);
  }

  /** Sends a request. Resolves with its result, or rejects with a Problem. */
  call(op, params) {
    if (this.problem) return Promise.reject(this.problem);
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.socket.send(JSON.stringify({ id, op, params }));
    });
  }

  /** Closes the socket. Resolves once it is closed. */
  close() {
    this.closing = true;
    this.socket.close();
    return this.ended;
  }
}

// A TCP proxy that is a bad network: it delays, is slow, cuts connections, or lets them stand half-open. With several ports it is a load
// balancer: each connection goes to the next port, whether anything listens there or not.

import { connect, createServer } from 'node:net';

export class Proxy {
  /**
   * `pass`, `delay` (by `ms`), `slow` (2 KB at a time, every `ms`), `hang` (half-open: nothing arrives, nothing is closed), `refuse`, `hold`
   * (what clients send arrives after `release()`, even if they are gone by then).
   */
  mode = 'pass';
  ms = 0;
  #pairs = new Set();
  #held = [];

  static async start(...ports) {
    const proxy = new Proxy();
    let next = 0;
    proxy.server = createServer((client) => {
      if (proxy.mode === 'refuse') return client.resetAndDestroy();
      const server = connect(ports[next++ % ports.length], '127.0.0.1');
      const pair = { client, server };
      proxy.#pairs.add(pair);
      proxy.#pump(pair, client, server);
      proxy.#pump(pair, server, client);
      const end = () => {
        // In a half-open connection nobody learns that the other is gone.
        if (pair.hangs || pair.held) return;
        client.destroy();
        server.destroy();
        proxy.#pairs.delete(pair);
      };
      for (const socket of [client, server]) socket.on('close', end).on('error', () => {});
    });
    await new Promise((resolve) => proxy.server.listen(0, '127.0.0.1', resolve));
    proxy.url = `http://127.0.0.1:${proxy.server.address().port}`;
    return proxy;
  }

  #pump(pair, from, to) {
    let last = Promise.resolve();
    from.on('data', (chunk) => {
      // What is lost does not come later: the connection stays dead.
      if (this.mode === 'hang') pair.hangs = true;
      if (pair.hangs) return;
      if (this.mode === 'hold' && from === pair.client && !pair.held) this.#hold(pair);
      const { mode, ms } = this;
      last = last.then(async () => {
        if (from === pair.client) await pair.held;
        if (mode === 'delay') await pause(ms);
        if (mode !== 'slow') return to.write(chunk);
        for (let at = 0; at < chunk.length; at += 2048) {
          await pause(ms);
          to.write(chunk.subarray(at, at + 2048));
        }
      });
    });
  }

  #hold(pair) {
    pair.held = new Promise((resolve) => this.#held.push(resolve));
  }

  /** How many connections are held. */
  get held() {
    return this.#held.length;
  }

  /** Delivers what the connection that was held first has sent. */
  release() {
    this.#held.shift()();
  }

  /** Cuts all connections. */
  cut() {
    for (const { client, server } of this.#pairs) {
      client.resetAndDestroy();
      server.destroy();
    }
    this.#pairs.clear();
  }

  stop() {
    this.mode = 'refuse';
    this.cut();
    return new Promise((resolve) => this.server.close(resolve));
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

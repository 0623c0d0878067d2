// A Sealwire server for tests: started on a free port with a database and mails in a temporary folder.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { mailedCode, mails } from './mail.mjs';

/** The binary, from `SEALWIRE`, or the debug build of this checkout. */
export const binary = process.env.SEALWIRE ?? fileURLToPath(new URL('../../../target/debug/sealwire', import.meta.url));
/** For the option `skip` of a test. */
export const skip = existsSync(binary) ? false : `no server at ${binary}: build it, or name it in SEALWIRE`;

const LIMITS_OFF = {
  SEALWIRE__LIMITS__OTP_PER_NETWORK_HOUR: '0',
  SEALWIRE__LIMITS__OTP_PER_EMAIL_HOUR: '0',
  SEALWIRE__LIMITS__OTP_PER_EMAIL_DAY: '0',
  SEALWIRE__LIMITS__OTP_PER_EMAIL_NETWORK_HOUR: '0',
  SEALWIRE__LIMITS__VERIFY_PER_NETWORK_MINUTE: '0',
  SEALWIRE__LIMITS__CLAIM_BURST: '0',
  SEALWIRE__LIMITS__SENDS_PER_DEVICE_SECOND: '0',
  SEALWIRE__LIMITS__SENDS_PER_PAIR_SECOND: '0',
  SEALWIRE__LIMITS__FIND_PER_USER_HOUR: '0',
  SEALWIRE__LIMITS__STRANGER_KEYS_PER_DEVICE_HOUR: '0',
};

/** The servers that run. A test that is killed does not leave them behind. */
const running = new Set();
process.once('exit', () => running.forEach((child) => child.kill('SIGKILL')));

export class Server {
  /** Starts a server. `env` has further settings. Stop it with `stop()`. */
  static async start(env = {}) {
    const server = new Server();
    server.dir = await mkdtemp(join(tmpdir(), 'sealwire-sdk-'));
    server.env = env;
    await server.#run('0');
    return server;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async #run(port) {
    const inherited = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('SEALWIRE')));
    this.process = spawn(binary, [], {
      cwd: this.dir,
      env: {
        ...inherited,
        RUST_LOG: 'info',
        SEALWIRE__SERVER__BIND: `127.0.0.1:${port}`,
        SEALWIRE__ADMIN__BIND: '127.0.0.1:0',
        SEALWIRE__DATABASE__URL: `sqlite://${this.dir}/sealwire.db`,
        SEALWIRE__MAILER__URL: `file:${this.dir}/mail`,
        ...LIMITS_OFF,
        ...this.env,
      },
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    const child = this.process;
    running.add(child);
    child.once('exit', () => running.delete(child));
    let log = '';
    await new Promise((resolve, reject) => {
      child.stderr.on('data', (chunk) => {
        if (log.length < 100_000) log += chunk;
        const found = log.match(/"message":"listening",.*?"port":(\d+)/);
        if (found) resolve((this.port = Number(found[1])));
      });
      child.once('exit', (code) => reject(new Error(`the server stopped with ${code}:\n${log}`)));
    });
  }

  /** Ends the server with `signal`, and waits for its end. */
  async end(signal) {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    const ended = new Promise((resolve) => this.process.once('exit', resolve));
    this.process.kill(signal);
    await ended;
  }

  kill() {
    return this.end('SIGKILL');
  }

  /** Starts it again, on the same port with the same data. */
  restart() {
    return this.#run(String(this.port));
  }

  async stop() {
    await this.end('SIGTERM');
    await rm(this.dir, { recursive: true, force: true });
  }

  /** Names of the mails so far. */
  mails() {
    return mails(join(this.dir, 'mail'));
  }

  /** Calls `request`, and returns the code of the mail to `email` that it caused. */
  async code(email, request) {
    const before = new Set(await this.mails());
    await request();
    return mailedCode(join(this.dir, 'mail'), email, before);
  }

  /** Signs a client in. */
  async signIn(client, email, options) {
    const code = await this.code(email, () => client.signIn.request(email));
    return client.signIn.verify(code, options);
  }
}

// A push service for tests, with the user agents that subscribe to it: it decrypts what it gets as a browser does (RFC 8291, RFC 8188).

import { createDecipheriv, createECDH, hkdfSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';

export class PushService {
  /** The decrypted contents, as text, by subscription. */
  #subscriptions = new Map();

  static async start() {
    const service = new PushService();
    service.server = createServer((request, response) => service.#receive(request, response));
    await new Promise((resolve) => service.server.listen(0, '127.0.0.1', resolve));
    service.url = `http://127.0.0.1:${service.server.address().port}`;
    return service;
  }

  /** A new subscription: the target to register, and `contents`, what was pushed to it so far. */
  subscribe() {
    const ecdh = createECDH('prime256v1');
    const subscription = { publicKey: ecdh.generateKeys(), auth: randomBytes(16), ecdh, contents: [] };
    const path = `/push/${randomBytes(16).toString('hex')}`;
    this.#subscriptions.set(path, subscription);
    const { publicKey, auth, contents } = subscription;
    const target = { kind: 'webpush', endpoint: this.url + path, p256dh: publicKey.toString('base64url'), auth: auth.toString('base64url') };
    return { target, contents };
  }

  async #receive(request, response) {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const subscription = this.#subscriptions.get(request.url);
    if (subscription) subscription.contents.push(decrypt(subscription, Buffer.concat(chunks)));
    response.writeHead(subscription ? 201 : 410).end();
  }

  stop() {
    this.server.closeAllConnections();
    return new Promise((resolve) => this.server.close(resolve));
  }
}

function decrypt({ ecdh, publicKey, auth }, body) {
  const [salt, sender, record] = [body.subarray(0, 16), body.subarray(21, 86), body.subarray(86)];
  const derive = (secret, salt, info, length) => Buffer.from(hkdfSync('sha256', secret, salt, info, length));
  const input = derive(ecdh.computeSecret(sender), auth, Buffer.concat([Buffer.from('WebPush: info\0'), publicKey, sender]), 32);
  const key = derive(input, salt, 'Content-Encoding: aes128gcm\0', 16);
  const nonce = derive(input, salt, 'Content-Encoding: nonce\0', 12);
  const decipher = createDecipheriv('aes-128-gcm', key, nonce).setAuthTag(record.subarray(-16));
  const padded = Buffer.concat([decipher.update(record.subarray(0, -16)), decipher.final()]);
  return padded.subarray(0, padded.lastIndexOf(2)).toString();
}

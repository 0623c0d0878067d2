// The script of the page in the tests of push: an app with a service worker, which has the client too.

import { SealwireClient } from '@sealwire/client';
import { indexedDbStorage } from '@sealwire/client/browser';
import { withPush } from '@sealwire/client/push';
import { x3dhCrypto } from '@sealwire/x3dh';

window.app = {
  start(url) {
    window.app.client = withPush(new SealwireClient({ url, storage: indexedDbStorage(), crypto: x3dhCrypto() }));
    window.app.client.on('message', (m) => m.write(`chat/${m.seq}`, `page: ${m.text}`));
  },
  /** Starts the service worker, and waits until it is active. */
  async startWorker(url) {
    await navigator.serviceWorker.register(`/worker.js?url=${encodeURIComponent(url)}`, { type: 'module' });
    await navigator.serviceWorker.ready;
  },
  async notifications() {
    const registration = await navigator.serviceWorker.ready;
    return (await registration.getNotifications()).map(({ title }) => title);
  },
};

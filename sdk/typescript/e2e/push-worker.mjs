// The service worker in the tests of push: the recipe for push wake-ups of RECIPES.md, after its imports. A test compares the two.

import { SealwireClient } from '@sealwire/client';
import { indexedDbStorage } from '@sealwire/client/browser';
import { withPush } from '@sealwire/client/push';
import { x3dhCrypto } from '@sealwire/x3dh';

const url = new URL(self.location.href).searchParams.get('url');

self.addEventListener('push', (event) => event.waitUntil((async () => {
  const signal = AbortSignal.timeout(20_000);
  const client = withPush(new SealwireClient({ url, storage: indexedDbStorage(), crypto: x3dhCrypto() }));
  const drained = client.once('mailbox.drained', { signal }).catch(() => {});
  let title = 'New messages';
  client.on('message', (m) => m.write(`chat/${m.from.userId}/${m.seq}`, m.text));
  try {
    await client.connect({ signal });
    const meaning = await client.push.receive(event.data?.json(), { signal });
    if (meaning === 'confirmed') title = 'Notifications are on';
    // If a tab leads, it fetches the messages.
    if (meaning === 'wake' && client.leading) await drained;
  } catch (error) {
    console.warn('after a push:', error);
  } finally {
    await client.close();
    // Browsers require that every push shows something while no page is visible.
    const pages = await self.clients.matchAll({ type: 'window', includeUncontrolled: true });
    if (!pages.some((page) => page.visibilityState === 'visible')) {
      await self.registration.showNotification(title, { tag: 'sealwire' });
    }
  }
})()));

self.addEventListener('notificationclick', (event) => {
  event.notification.close();
  event.waitUntil(self.clients.openWindow('/'));
});

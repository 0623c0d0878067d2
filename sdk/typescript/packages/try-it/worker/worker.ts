// The service worker of one person, whose id is in its scope: it takes pushes and clicks on notifications. It handles no requests.
//
// It has neither keys nor a connection. So what it shows of a push while no tab is open is all that the push says: there is a new message.

import { addressIn, type Answer, cacheOf, confirmationIn, ICON, type Post } from './posts.js';

declare const self: ServiceWorkerGlobalScope;

/** A tab answers within this time, in milliseconds, unless the browser has frozen it. */
const ANSWER_MS = 1000;

const person = self.registration.scope.match(/\/people\/([^/]+)\/$/)![1]!;

self.addEventListener('install', (event) => event.waitUntil(self.skipWaiting()));
self.addEventListener('push', (event) => event.waitUntil(receive(contentOf(event.data))));
self.addEventListener('notificationclick', (event) => {
  event.notification.close();
  event.waitUntil(open((event.notification.data as { peer?: string } | null)?.peer ?? null));
});

function contentOf(data: PushMessageData | null): { sealwire?: unknown } | null {
  try {
    return data?.json() as { sealwire?: unknown } | null;
  } catch {
    return null;
  }
}

async function receive(content: { sealwire?: unknown } | null): Promise<void> {
  const isConfirmation = content?.sealwire === 'confirm';
  if (!isConfirmation && content?.sealwire !== 'wake') return;
  const tabs = await tabsOfPerson();
  const cache = await caches.open(cacheOf(person));
  if (tabs[0]) post(tabs[0].client, { kind: 'push', content });
  else if (isConfirmation) await cache.put(confirmationIn(person), new Response(JSON.stringify(content)));
  // A person who is looking at the page sees it there. Otherwise browsers require that every push shows something.
  if (tabs.some(({ visible }) => visible)) return;
  const address = (await (await cache.match(addressIn(person)))?.text()) ?? 'you';
  await self.registration.showNotification(isConfirmation ? 'Notifications are on' : 'New message', {
    body: isConfirmation ? `New messages for ${address} are shown, also while the tab is closed.` : `For ${address}. Open it to read.`,
    tag: 'push',
    icon: ICON,
  });
}

/** Shows the tab of the person, or opens one, at a conversation if there is one. */
async function open(peer: string | null): Promise<void> {
  const [tab] = await tabsOfPerson();
  if (!tab) return void (await self.clients.openWindow(`/#open=${person}${peer ? `/${peer}` : ''}`));
  post(tab.client, { kind: 'open', peer });
  await tab.client.focus();
}

/** The tabs of this person, the one that was used last first. Other people may use the page in other tabs. */
async function tabsOfPerson(): Promise<{ client: WindowClient; visible: boolean }[]> {
  const clients = await self.clients.matchAll({ type: 'window', includeUncontrolled: true });
  const answers = await Promise.all(clients.map(async (client) => ({ client, ...(await ask(client)) })));
  return answers.filter(({ mine }) => mine);
}

function ask(client: WindowClient): Promise<Answer> {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = ({ data }) => resolve(data as Answer);
    setTimeout(() => resolve({ mine: false, visible: false }), ANSWER_MS);
    post(client, { kind: 'who', person }, [port2]);
  });
}

const post = (client: WindowClient, message: Post, transfer: Transferable[] = []): void => client.postMessage(message, transfer);

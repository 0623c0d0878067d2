// The try-it page: decides who this tab is, and shows the first screen or the conversations.

import { answerWorkers } from './model/notifications.js';
import { Person } from './model/person.js';
import * as profiles from './model/profiles.js';
import { Shell } from './view/shell.js';
import { showStart } from './view/start.js';

const page = document.getElementById('page')!;
let shell: Shell | null = null;
/** The profile of the person whose conversations are shown. */
let signedIn: string | null = null;

/**
 * What the address bar asks for: `#as=ADDRESS` and `#device=ADDRESS` sign in with an address, `#new` as somebody new; `#open=PROFILE/USER` is the
 * conversation of a profile with a user.
 */
function wanted(): { fresh: boolean; address?: string } {
  const { hash } = location;
  if (hash) history.replaceState(history.state, '', location.pathname);
  const [, profile, peer] = hash.match(/^#open=(\w+)(?:\/([\w-]+))?$/) ?? [];
  if (profile) {
    if (profiles.all().some(({ id }) => id === profile)) profiles.use(profile);
    // The list is behind the conversation.
    if (peer) history.pushState({ peer }, '');
    return { fresh: false };
  }
  const address = hash.match(/^#(?:as|device)=(.+)$/)?.[1];
  return { fresh: hash !== '', ...(address && { address: decodeURIComponent(address) }) };
}

function start(person: Person | null, address?: string, reason?: string): void {
  closeShell();
  document.title = 'Sealwire';
  document.querySelectorAll('dialog[open]').forEach((dialog) => (dialog as HTMLDialogElement).close());
  showStart({ page, person, ...(address && { address }), ...(reason && { reason }), done: open });
}

function closeShell(): void {
  shell?.close();
  shell = signedIn = null;
}

function open(person: Person): void {
  void person.load().then(() => {
    shell?.close();
    signedIn = person.id;
    shell = new Shell(page, person, (reason) => leave(person, reason));
    person.start();
  });
}

/** The session has ended. A person whose device is gone starts anew. */
function leave(person: Person, reason?: string): void {
  if (person.account) return start(person, undefined, reason);
  closeShell();
  profiles.leave();
  void person.close().then(() => {
    profiles.forget(person.id);
    start(null, undefined, reason);
  });
}

answerWorkers(() => signedIn);
const { fresh, address } = wanted();
const id = fresh ? null : profiles.mine();
if (fresh) profiles.leave();
if (id === null) start(null, address);
else {
  const person = new Person(id);
  person.load().then(
    (hasSession) => (hasSession ? open(person) : start(person.account ? person : null)),
    () => start(null, undefined, 'This browser does not let the page store anything, so it cannot keep keys. Try a window that is not private.'),
  );
}

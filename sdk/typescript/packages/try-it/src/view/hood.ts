// Under the hood: the frames that are really sent, the key pool, and experiments with the connection.

import { h, keyed, setAttribute, setText, show } from '../dom.js';
import { icon } from '../icons.js';
import type { Person } from '../model/person.js';
import { NO_CODES, takeKeys } from '../model/stranger.js';
import type { Frame } from '../model/wire.js';
import { bytes, clockOf } from '../text.js';
import { meaningOf } from './meanings.js';
import { notify } from './announce.js';
import { explain } from './parts.js';

/** Keys that the stranger takes: so many that the pool falls to the level at which the server asks for more. */
const STRANGER_KEYS = 5;

export class Hood {
  readonly element: HTMLElement;
  visible = false;

  readonly #state = h('p', { class: 'hood-state', role: 'status' });
  readonly #cut = h('button', { type: 'button', class: 'plain', onclick: () => this.#toggleCut() });
  readonly #lose = h('button', { type: 'button', class: 'plain', onclick: () => this.person.wire.loseReply(!this.person.wire.losing) });
  readonly #outcome = h('p', { class: 'outcome', role: 'status' });
  readonly #count = h('strong', { class: 'pool-count' });
  readonly #bars = h('div', { class: 'pool-bars', 'aria-hidden': 'true' });
  readonly #poolText = h('p', { class: 'hint', role: 'status' });
  readonly #stranger = h('button', { type: 'button', class: 'plain', onclick: () => void this.#takeKeys() }, icon('key'), 'Let a stranger take five');
  readonly #frames = h('ol', { class: 'frames' });
  readonly #none = h('p', { class: 'hint' }, 'Nothing yet.');
  readonly #second: HTMLAnchorElement;
  readonly #close: HTMLElement;
  /** Since when a cut or a lost reply is to be explained. */
  #cutAt = 0;
  #lostAt = 0;

  constructor(
    private readonly person: Person,
    actions: { close: () => void },
  ) {
    this.#close = h('button', { type: 'button', class: 'round', 'aria-label': 'Close', onclick: actions.close }, icon('close'));
    this.#second = h('a', { class: 'button plain', target: '_blank', rel: 'noopener' }, icon('window'), 'Second device');
    this.element = h(
      'section',
      { class: 'hood', 'aria-label': 'Under the hood' },
      h('div', { class: 'hood-head' }, h('h2', {}, 'Under the hood'), this.#close),
      h(
        'div',
        { class: 'hood-scroll' },
        h(
          'section',
          { class: 'part' },
          h('h3', {}, 'Connection'),
          this.#state,
          h('div', { class: 'experiments' }, this.#cut, this.#lose, this.#second),
          this.#outcome,
        ),
        h(
          'section',
          { class: 'part' },
          h('h3', {}, 'One-time keys'),
          h('div', { class: 'pool' }, h('p', { class: 'pool-now' }, this.#count, h('span', {}, 'on the server')), this.#bars),
          h('p', { class: 'hint' }, 'Each new conversation with this device uses one. No key is given out twice.'),
          this.#poolText,
          this.#stranger,
        ),
        h(
          'details',
          { class: 'part' },
          h('summary', {}, 'What the server knows'),
          h('p', {}, 'Your address, the names of your devices and when they connect; who writes to whom, from which device, when, and the padded size.'),
          h('p', {}, 'It does not know what you write, nor which messages are ticks.'),
        ),
        h(
          'section',
          { class: 'part' },
          h('div', { class: 'part-head' }, h('h3', {}, 'Frames'), h('button', { type: 'button', class: 'quiet', onclick: () => person.wire.clear() }, 'Clear')),
          h('p', { class: 'hint' }, 'Everything that this device sends and receives, as it is. Open one to read it.'),
          this.#none,
          this.#frames,
        ),
      ),
    );
  }

  opened(): void {
    this.#close.focus();
    if (this.person.connected) void this.person.refreshPool().catch(() => {});
    this.render();
  }

  render(): void {
    const { wire, status, client, account, pool } = this.person;
    const leads = client.leading || status.state === 'connecting';
    setText(
      this.#state,
      wire.down
        ? 'The connection is cut. Messages that you write wait in this browser, also over a reload.'
        : status.state === 'connected'
          ? leads
            ? 'One WebSocket carries everything of this device.'
            : 'Another tab of this device holds the connection, and shares it with this one. The frames are shown there.'
          : 'Connecting. The client tries again by itself, after a random and growing wait.',
    );
    setAttribute(this.#state, 'data-state', wire.down ? 'down' : status.state === 'connected' ? 'good' : 'waiting');
    this.#label(this.#cut, wire.down ? 'link' : 'cut', wire.down ? 'Reconnect' : 'Cut the connection');
    setAttribute(this.#cut, 'aria-pressed', String(wire.down));
    this.#label(this.#lose, 'alert', wire.losing ? 'Losing the next' : 'Lose a reply');
    setAttribute(this.#lose, 'aria-pressed', String(wire.losing));
    if (account) setAttribute(this.#second, 'href', `/#device=${encodeURIComponent(account.email)}`);
    this.#renderOutcome();
    if (pool) this.#renderPool(pool.count, pool.threshold, pool.history);
    show(this.#none, wire.frames.length === 0);
    keyed(this.#frames, wire.frames.slice(-120).reverse(), ({ n }) => String(n), (frame) => this.#makeFrame(frame), (element, frame) => this.#updateFrame(element, frame));
  }

  #label(button: HTMLElement, name: 'link' | 'cut' | 'alert', text: string): void {
    if (button.dataset.label === text) return;
    button.dataset.label = text;
    button.replaceChildren(icon(name), text);
  }

  #toggleCut(): void {
    const { wire } = this.person;
    this.#cutAt = Date.now();
    this.#lostAt = 0;
    if (wire.down) this.person.restore();
    else wire.cut();
  }

  /** Explains what the last experiment has shown. */
  #renderOutcome(): void {
    const { wire, status } = this.person;
    const lost = wire.frames.findLast(({ reply }) => reply?.lost);
    const repeated = lost && wire.frames.find(({ n, reply }) => reply?.repeated && n > lost.n);
    if (lost && lost.at > this.#cutAt) this.#lostAt = lost.at;
    const devices = this.person.devices.length;
    let text = 'Try one of these. This box explains what happens.';
    if (wire.losing) text = 'Write a message now. Its reply will be dropped, and the connection with it: the client cannot know whether the server has the message.';
    else if (this.#lostAt && !repeated) text = 'The reply is lost. The client connects again, to repeat the message under the same id.';
    else if (this.#lostAt) text = 'The client repeated the message under the same id. The server answered “duplicate”: it had stored it already, and it was delivered once.';
    else if (wire.down) text = 'Write something: it is stored here first, and sent when the connection is back.';
    else if (this.#cutAt && status.state === 'connected') text = 'Connected again. Waiting messages were sent in the order in which they were written, and messages that had arrived meanwhile were delivered.';
    else if (devices > 1) text = `This account has ${devices} devices, each with its own keys and mailbox. A message to it is encrypted once for each of them. When a device is added, the others are notified.`;
    setText(this.#outcome, text);
  }

  #renderPool(count: number, threshold: number, history: { at: number; count: number; refilled: boolean }[]): void {
    setText(this.#count, String(count));
    const most = Math.max(100, ...history.map(({ count }) => count));
    keyed(
      this.#bars,
      history.slice(-24),
      ({ at, count }) => `${at} ${count}`,
      ({ count, refilled }) => {
        const bar = h('span', { class: refilled ? 'bar refilled' : count <= threshold ? 'bar low' : 'bar' });
        bar.style.height = `${Math.max(4, (count / most) * 100)}%`;
        return bar;
      },
    );
    this.#bars.style.setProperty('--threshold', `${(threshold / most) * 100}%`);
    const at = history.findLastIndex(({ refilled }) => refilled);
    setText(
      this.#poolText,
      at > 0
        ? `The pool fell to ${history[at - 1]!.count}. The server sent “prekeys.low”, and this device published ${history[at]!.count - history[at - 1]!.count} more.`
        : `At ${threshold} the server asks for more. This page begins with 24, so that you can watch it. Usually it is 100.`,
    );
  }

  async #takeKeys(): Promise<void> {
    const { account } = this.person;
    if (!account || this.#stranger.getAttribute('aria-busy')) return;
    this.#stranger.setAttribute('aria-busy', 'true');
    try {
      const given = await takeKeys(account.userId, STRANGER_KEYS, async () => {
        await this.person.refreshPool();
        await new Promise((resolve) => setTimeout(resolve, 250));
      });
      if (given < STRANGER_KEYS) notify(`The server gave the stranger ${given} keys. Strangers together may take twenty an hour of a device, so they cannot empty the pool.`);
    } catch (error) {
      notify(error instanceof Error && error.message === NO_CODES ? 'This works only if the server shows its codes to this page.' : explain(error));
    } finally {
      this.#stranger.removeAttribute('aria-busy');
    }
  }

  #makeFrame(frame: Frame): HTMLElement {
    if (frame.kind === 'note') return h('li', { class: 'frame-note' }, h('span', {}, frame.name), h('time', {}, clockOf(frame.at)));
    const direction = frame.sent ? 'sent' : 'received';
    const body = h('div', { class: 'frame-body' });
    const element = h(
      'details',
      { class: `frame ${direction}` },
      h(
        'summary',
        {},
        h('span', { class: 'frame-arrow', 'aria-hidden': 'true' }, frame.sent ? '↑' : '↓'),
        h('span', { class: 'spoken' }, `${direction} `),
        h('span', { class: 'frame-name' }, frame.name),
        h('span', { class: 'frame-flags' }),
        h('span', { class: 'frame-took' }),
      ),
      body,
    );
    element.addEventListener('toggle', () => this.#readFrame(body, element.open ? frame : null));
    return h('li', {}, element);
  }

  #updateFrame(element: HTMLElement, { kind, size, reply, at }: Frame): void {
    const state = reply ? 'answered' : 'asked';
    if (kind === 'note' || element.dataset.state === state) return;
    element.dataset.state = state;
    const flags = reply ? ([reply.lost && 'lost', reply.repeated && 'duplicate', reply.failed && 'error'].filter(Boolean) as string[]) : [];
    element.querySelector('.frame-flags')!.replaceChildren(...flags.map((flag) => h('span', { class: `flag ${flag}` }, flag)));
    setText(element.querySelector('.frame-took')!, reply ? `${reply.took < 10 ? reply.took.toFixed(1) : Math.round(reply.took)} ms` : kind === 'event' ? bytes(size) : '…');
    setAttribute(element, 'title', clockOf(at));
  }

  /** Shows what is in a frame, and in its reply. */
  #readFrame(place: HTMLElement, frame: Frame | null): void {
    if (!frame) return place.replaceChildren();
    const meaning = meaningOf(frame);
    const written = this.#written(frame);
    const content = this.#content(frame);
    const part = (title: string, at: number, size: number, value: unknown) => [
      h('p', { class: 'frame-part' }, h('strong', {}, title), h('span', {}, `${clockOf(at)} · ${bytes(size)}`)),
      h('pre', { tabindex: 0, 'aria-label': title }, JSON.stringify(value, hide, 2) ?? ''),
    ];
    place.replaceChildren(
      ...(meaning ? [h('p', {}, meaning)] : []),
      ...(written ? [h('p', { class: 'frame-written' }, h('span', {}, frame.sent ? 'You wrote ' : 'It says '), h('q', { dir: 'auto' }, written), h('span', {}, '. The server sees only this:'))] : []),
      ...(content ? [h('p', { class: 'frame-written' }, h('span', {}, 'Inside is '), h('strong', {}, content), h('span', {}, '. The server sees only this:'))] : []),
      ...part(frame.kind === 'event' ? 'Event' : 'Request', frame.at, frame.size, frame.body),
      ...(frame.reply ? part('Reply', frame.reply.at, frame.reply.size, frame.reply.body) : []),
    );
  }

  /** The text of the message that a frame carries, if it is one of this page. */
  #written(frame: Frame): string | null {
    return this.person.records.get<{ text: string }>(`message/${messageIdOf(frame)}`)?.text ?? null;
  }

  /** What else a frame carries that is encrypted. */
  #content(frame: Frame): string | null {
    return this.#written(frame) === null ? (this.person.chats.contents.get(messageIdOf(frame)) ?? null) : null;
  }
}

/** The id of the message that a frame carries; empty if it carries none. */
function messageIdOf({ body, name }: Frame): string {
  const { params, data } = (body ?? {}) as { params?: { message_id?: string }; data?: { message_id?: string } };
  return (name === 'messages.send' ? params?.message_id : name === 'message' ? data?.message_id : '') ?? '';
}

/** Secrets of this device are not shown: somebody may look at the screen. */
const hide = (key: string, value: unknown): unknown => (['token', 'code', 'poll_token', 'recovery_key'].includes(key) && typeof value === 'string' ? '(hidden)' : value);

// Small helpers for building and updating elements. No markup is ever parsed, so nothing that a person writes can become markup.

type Handler = (event: never) => void;
export type Props = Record<string, string | number | boolean | null | undefined | Handler>;
export type Child = Node | string | null | undefined | false;

/** An element. Properties that begin with `on` are event handlers, others attributes; true is an empty attribute, false and null are none. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: Child[]): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value as EventListener);
    else setAttribute(element, name, value);
  }
  for (const child of children) if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}

/** Sets or removes an attribute, only if it changes. */
export function setAttribute(element: Element, name: string, value: string | number | boolean | null | undefined): void {
  if (value === false || value === null || value === undefined) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? '' : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** Sets the text of an element, only if it changes: screen readers announce changes in live regions. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Shows or hides an element. */
export function show(element: HTMLElement, visible: boolean): void {
  if (element.hidden === visible) element.hidden = !visible;
}

const made = new WeakMap<Element, string>();

/** Makes the children of `parent` those of `items`, in their order. Elements of items that stay are kept, with focus and scroll position. */
export function keyed<T>(parent: Element, items: readonly T[], key: (item: T) => string, make: (item: T) => HTMLElement, update?: (element: HTMLElement, item: T) => void): void {
  const present = new Map<string, HTMLElement>();
  for (const child of [...parent.children] as HTMLElement[]) present.set(made.get(child) ?? '', child);
  let next = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    let element = present.get(name);
    present.delete(name);
    if (!element) {
      element = make(item);
      made.set(element, name);
    }
    update?.(element, item);
    if (element === next) next = next.nextElementSibling;
    else parent.insertBefore(element, next);
  }
  for (const element of present.values()) element.remove();
}

/** Calls `work` once after all changes of the present task. Also in tabs that are not visible, where animation frames do not come. */
export function batched(work: () => void): () => void {
  let planned = false;
  return () => {
    if (planned) return;
    planned = true;
    queueMicrotask(() => {
      planned = false;
      work();
    });
  };
}

// Profiles: each person or device that signs in with this browser has a storage of its own. A tab remembers its profile, so two tabs are
// two people, and a reload keeps the person.

export interface Profile {
  id: string;
  /** The address; empty until somebody has signed in. */
  address: string;
  device: string;
  usedAt: number;
}

const LIST = 'try-it/profiles';
const MINE = 'try-it/profile';
const PREFIX = 'sealwire-try-it-';

export const databaseOf = (id: string): string => PREFIX + id;

export function all(): Profile[] {
  try {
    return (JSON.parse(localStorage.getItem(LIST) ?? '[]') as Profile[]).sort((a, b) => b.usedAt - a.usedAt);
  } catch {
    return [];
  }
}

function store(list: Profile[]): void {
  localStorage.setItem(LIST, JSON.stringify(list));
}

/** The id of the profile that this tab uses; null for a new tab. */
export const mine = (): string | null => sessionStorage.getItem(MINE);

export function use(id: string): void {
  sessionStorage.setItem(MINE, id);
}

export function leave(): void {
  sessionStorage.removeItem(MINE);
}

/** A new profile for this tab. It joins the list when somebody signs in. */
export function create(): string {
  const id = crypto.randomUUID().slice(0, 8);
  use(id);
  return id;
}

export function remember(id: string, address: string, device: string): void {
  store([...all().filter((other) => other.id !== id), { id, address, device, usedAt: Date.now() }]);
}

/** Removes a profile and what it stores. */
export function forget(id: string): void {
  store(all().filter((other) => other.id !== id));
  indexedDB.deleteDatabase(databaseOf(id));
}

/** The profiles that no tab has open. */
export async function idle(): Promise<Profile[]> {
  const { held = [] } = (await navigator.locks?.query()) ?? {};
  const open = new Set(held.map(({ name }) => name));
  return all().filter(({ id, address }) => address && !open.has(`sealwire:${databaseOf(id)}`));
}

// The messages between the service worker and the tabs, and the names that both use.

/** From the service worker to a tab. */
export type Post =
  /** Whether this tab is of this person. Comes with a port for the answer. */
  | { kind: 'who'; person: string }
  /** A push arrived for the person of this tab. */
  | { kind: 'push'; content: unknown }
  /** The person clicked a notification: of a conversation, or of no particular one. */
  | { kind: 'open'; peer: string | null };

/** The answer to `who`. */
export interface Answer {
  mine: boolean;
  visible: boolean;
}

/** The script of the service worker. */
export const SCRIPT = '/try-it/worker.js';
/** The picture of notifications. Browsers take no SVG there. */
export const ICON = '/try-it/icon.png';

/** The scope of a person's registration, also the prefix of what is kept for its worker. No page is below it. */
export const scopeOf = (person: string): string => `/try-it/people/${person}/`;

/** The cache of what the tabs and the worker of a person leave for each other. */
export const cacheOf = (person: string): string => `try-it:${person}`;
/** In that cache: the address of the person. */
export const addressIn = (person: string): string => `${scopeOf(person)}address`;
/** In that cache: the content of a push that confirms the registration, if it came while no tab was open. */
export const confirmationIn = (person: string): string => `${scopeOf(person)}confirmation`;

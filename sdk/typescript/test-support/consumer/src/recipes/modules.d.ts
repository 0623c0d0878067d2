// What the recipes use of other packages.

declare module 'react' {
  export function useState<T>(initial: T): [T, (next: T) => void];
  export function useEffect(effect: () => (() => void) | void, deps: unknown[]): void;
  export function useSyncExternalStore<T>(subscribe: (changed: () => void) => () => void, snapshot: () => T): T;
}

declare module 'node:v8' {
  export function serialize(value: unknown): Uint8Array;
  export function deserialize(bytes: Uint8Array): any;
}

declare module 'better-sqlite3' {
  interface Statement {
    pluck(): Statement;
    raw(): Statement;
    get(...values: unknown[]): any;
    all(...values: unknown[]): any[];
    run(...values: unknown[]): unknown;
  }
  export default class Database {
    constructor(path: string);
    pragma(text: string): unknown;
    exec(sql: string): unknown;
    prepare(sql: string): Statement;
    transaction(work: () => void): () => void;
  }
}

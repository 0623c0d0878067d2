// Which tab has the engine. Without a storage that tabs share there is only one.

export interface TabsHandler {
  /** This tab leads from now on. Resolves when calls can be answered. */
  lead(): Promise<void>;
  /** Carries out a call. Only called in the tab that leads. */
  perform(method: string, args: unknown[], signal?: AbortSignal): Promise<unknown>;
  /** What a tab must know that joins. */
  snapshot(): unknown;
  /** The leading tab has sent its snapshot, with an event or without. */
  follow(snapshot: unknown, event?: string, data?: unknown): void;
}

/** What a client uses to reach the engine, in this tab or in another. */
export interface Tabs {
  /** Whether the engine is in this tab. */
  readonly leading: boolean;
  /** Carries out a call, where the engine is. */
  call(method: string, args: unknown[], signal?: AbortSignal): Promise<unknown>;
  /** Sends an event to the other tabs. */
  broadcast(event: string, data: unknown): void;
  /** Leaves. Carries out `stop`; then another tab may lead. */
  close(stop: () => Promise<void>): Promise<void>;
}

/** The tabs of a storage that is not shared: this one. */
export function onlyTab(handler: TabsHandler): Tabs {
  const ready = handler.lead();
  // Whoever calls learns of the failure.
  ready.catch(() => {});
  return {
    leading: true,
    async call(method, args, signal) {
      await ready;
      return handler.perform(method, args, signal);
    },
    broadcast() {},
    close: (stop) => stop(),
  };
}

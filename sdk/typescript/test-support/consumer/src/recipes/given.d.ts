// What the recipes take for granted.

import type { SealwireClient as Client } from '@sealwire/client';
import type { PendingApproval, ReplaceableDevice } from '@sealwire/client/protocol';

declare global {
  const client: Client;
  const SealwireClient: typeof import('@sealwire/client').SealwireClient;
  const ServerError: typeof import('@sealwire/client').ServerError;
  const indexedDbStorage: typeof import('@sealwire/client/browser').indexedDbStorage;
  const x3dhCrypto: typeof import('@sealwire/x3dh').x3dhCrypto;
  const url: string;
  const code: string;
  const deviceName: string;
  const to: string;
  const text: string;
  function show(text: string): void;
  function ask(request: PendingApproval, decide: (number: string) => unknown): void;
  function choose(devices: ReplaceableDevice[]): Promise<ReplaceableDevice>;
  function encode(value: unknown): string;
}

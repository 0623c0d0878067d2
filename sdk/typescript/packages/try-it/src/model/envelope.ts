// What this page puts into encrypted messages: a small JSON object. The server sees none of it. README.md describes the format.

/** How far a message got. */
export type Receipt = 'delivered' | 'read';

export type Envelope =
  /** A message. `by` is the address of its sender, which the recipient checks with the server. */
  | { v: 1; kind: 'text'; by: string; text: string }
  /** Messages of the recipient of this envelope were received or read. */
  | { v: 1; kind: 'receipt'; state: Receipt; ids: string[] }
  /** Ephemeral: its sender is typing, or has stopped. */
  | { v: 1; kind: 'typing'; on: boolean }
  /** To the sender's own devices: what was sent to whom. */
  | { v: 1; kind: 'copy'; to: string; address: string; id: string; at: number; text: string }
  /** To the reader's own devices: the conversation was read up to this time. */
  | { v: 1; kind: 'seen'; peer: string; at: number };

export const encode = (envelope: Envelope): string => JSON.stringify(envelope);

/** The envelope in a message, or null if it is not one that this version knows. */
export function decode(text: string): Envelope | null {
  let value: Record<string, unknown>;
  try {
    value = JSON.parse(text) as Record<string, unknown>;
  } catch {
    return null;
  }
  if (!value || value.v !== 1) return null;
  const are = (type: string, ...names: string[]) => names.every((name) => typeof value[name] === type);
  const fits =
    (value.kind === 'text' && are('string', 'by', 'text')) ||
    (value.kind === 'receipt' && ['delivered', 'read'].includes(value.state as string) && Array.isArray(value.ids) && value.ids.every((id) => typeof id === 'string')) ||
    (value.kind === 'typing' && are('boolean', 'on')) ||
    (value.kind === 'copy' && are('string', 'to', 'address', 'id', 'text') && Number.isFinite(value.at)) ||
    (value.kind === 'seen' && are('string', 'peer') && Number.isFinite(value.at));
  return fits ? (value as Envelope) : null;
}

/** What an envelope is, for people. */
export function describe(envelope: Envelope): string {
  switch (envelope.kind) {
    case 'text':
      return 'a message';
    case 'receipt':
      return `${envelope.state === 'read' ? 'the “read”' : 'the “delivered”'} ${envelope.ids.length === 1 ? 'tick' : 'ticks'}`;
    case 'typing':
      return envelope.on ? '“is typing”' : '“has stopped typing”';
    case 'copy':
      return 'a copy for the other devices of the same person';
    case 'seen':
      return 'what was read, for the other devices of the same person';
  }
}

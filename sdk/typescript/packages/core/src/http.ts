// Requests over HTTP: sign-in and the check of tokens.

import { fromBase64Url, toBase64Url } from './bytes.js';
import { ConnectionError, ServerError } from './errors.js';
import type { ErrorBody } from './protocol.js';
import { solve } from './sha256.js';
import { withLimit } from './time.js';

interface HttpOptions {
  body?: object;
  token?: string;
  signal?: AbortSignal | undefined;
}

export class Http {
  constructor(
    readonly url: string,
    private readonly fetch: typeof globalThis.fetch,
    private readonly timeoutMs: number,
  ) {}

  /** Sends a request. Throws `ServerError` for an answer with an error object, `ConnectionError` if there is no answer or another one. */
  async call<T>(method: string, path: string, { body, token, signal }: HttpOptions = {}): Promise<{ status: number; body: T }> {
    const what = `${method} ${path}`;
    const [response, text] = await withLimit(this.timeoutMs, what, signal, async (limit) => {
      try {
        const response = await this.fetch(new URL(path, this.url), {
          method,
          headers: {
            ...(body && { 'content-type': 'application/json' }),
            ...(token && { authorization: `Bearer ${token}` }),
          },
          ...(body && { body: JSON.stringify(body) }),
          signal: limit,
        });
        return [response, await response.text()] as const;
      } catch (error) {
        throw new ConnectionError('network', `${what}: ${(error as Error).message}`, { cause: error });
      }
    });
    const answer = parse(text);
    if (response.ok) return { status: response.status, body: answer as T };
    const retryAfterMs = Number(response.headers.get('retry-after')) * 1000 || undefined;
    const error = (answer as { error?: ErrorBody } | null)?.error;
    // Without an error object it is not from the server, but from a proxy in front of it.
    if (!error?.code) throw new ConnectionError('network', `${what}: HTTP status ${response.status}`, { retryAfterMs });
    throw ServerError.from({ ...error, retry_after_ms: error.retry_after_ms ?? retryAfterMs }, response.status);
  }

  /** `POST`s a request. If a limit is reached and the server offers to accept a proof of work instead, works and repeats it. */
  async postWithProof<T>(path: string, body: object, signal?: AbortSignal): Promise<{ status: number; body: T }> {
    for (let tries = 0, proof = {}; ; tries++) {
      try {
        return await this.call<T>('POST', path, { body: { ...body, ...proof }, signal });
      } catch (error) {
        const offer = error instanceof ServerError && (error.details as { proof?: ProofOffer } | undefined)?.proof;
        if (!offer || offer.algorithm !== 'sha256-leading-zeros' || tries >= 3) throw error;
        const nonce = await solve(fromBase64Url(offer.salt), offer.bits, signal);
        proof = { proof: { salt: offer.salt, nonce: toBase64Url(nonce) } };
      }
    }
  }
}

/** `details.proof` of `rate_limited`. */
interface ProofOffer {
  algorithm: string;
  bits: number;
  salt: string;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// Signing in: a code by mail, the proof that an existing device is the same, and the approval of a new device under a lock.

import { concat, toBase64, utf8, uuidBytes } from './bytes.js';
import type { Engine } from './engine.js';
import { ServerError, StateError } from './errors.js';
import type { ApprovalRequestedReply, CodePurpose, OtpReply, RequestedApproval, SessionReply } from './protocol.js';
import type { Value } from './storage.js';
import { sleep } from './time.js';
import type { Account } from './types.js';

const STATE = 'signin';
/** Time between two polls of an approval, in milliseconds: it grows from the first to the second. */
const POLL_MS = 2000;
const MAX_POLL_MS = 30_000;

/** What is stored between the steps, so that the app may be closed meanwhile. */
interface SignInState {
  email: string;
  challengeId: string;
  approval?: RequestedApproval;
}

/** A sign-in that another device of the person must approve. */
export interface Approval {
  /** Two digits to show: the person types them on the device that approves. */
  number: string;
  /** When it is approved by itself unless it is refused before (RFC 3339). */
  decidesAt: string;
}

export interface VerifyOptions {
  /** The name of a new device, 1 to 64 characters. */
  deviceName?: string;
  /** After `device_limit`: the device of the person to revoke in favour of this one. */
  replaceDeviceId?: string;
  /** The recovery key of a locked account, in base64. */
  recoveryKey?: string;
  signal?: AbortSignal;
}

/** Either `account`, or `approval` if a device must approve the sign-in: then call `signIn.approval()`. */
export interface SignInOutcome {
  account?: Account;
  approval?: Approval;
}

export class SignIn {
  readonly #engine: Engine;

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  async request(email: string, signal?: AbortSignal): Promise<OtpReply> {
    const body = await this.requestCode(email, undefined, signal);
    await this.#save({ email, challengeId: body.challenge_id });
    return body;
  }

  /** Mails a code, for signing in or something else. */
  async requestCode(email: string, purpose?: CodePurpose, signal?: AbortSignal): Promise<OtpReply> {
    return (await this.#engine.options.http.postWithProof<OtpReply>('/v1/auth/otp', { email, purpose }, signal)).body;
  }

  async verify(code: string, { deviceName, replaceDeviceId, recoveryKey }: VerifyOptions, signal?: AbortSignal): Promise<SignInOutcome> {
    const { store, crypto, account, options } = this.#engine;
    const { email, challengeId } = await this.#saved();
    const body = await store.transaction(async (tx) => {
      const { registrationId } = await crypto.identity(tx);
      const sign = async (deviceId: string) => {
        const text = concat(utf8('sealwire-device-proof-v1'), uuidBytes(challengeId), uuidBytes(deviceId));
        return toBase64(await crypto.sign(tx, text));
      };
      const device = account
        ? { id: account.deviceId, proof: await sign(account.deviceId) }
        : { name: deviceName, registration_id: registrationId };
      return { challenge_id: challengeId, email, code, device, replace_device_id: replaceDeviceId, recovery_key: recoveryKey };
    });
    const answer = await options.http.postWithProof<SessionReply & Partial<ApprovalRequestedReply>>('/v1/auth/verify', body, signal).catch((error) => {
      if (account && error instanceof ServerError && error.code === 'unknown_device') {
        throw new StateError('other_account', 'the storage has the data of another account: call wipe() first');
      }
      throw error;
    });
    const { approval } = answer.body;
    if (answer.status === 202 && approval) {
      await this.#save({ email, challengeId, approval });
      return { approval: shown(approval) };
    }
    return { account: await this.#signedIn(answer.body, email, signal) };
  }

  async #signedIn(session: SessionReply, email: string, signal?: AbortSignal): Promise<Account> {
    await this.#engine.signedIn(session, email);
    await this.#engine.connected(signal);
    return this.#engine.account!;
  }

  /** The approval that is waited for, or null. */
  async pending(): Promise<Approval | null> {
    const { approval } = (await this.#saved().catch(() => null)) ?? {};
    return approval ? shown(approval) : null;
  }

  /** Waits until the sign-in is approved. Rejects with the code `denied` if it is refused. */
  async approval(signal?: AbortSignal): Promise<Account> {
    const { email, challengeId, approval } = await this.#saved();
    if (!approval) throw new StateError('no_challenge', 'no approval is waited for');
    const { request_id, poll_token } = approval;
    const body = { request_id, poll_token };
    for (let wait = POLL_MS; ; wait = Math.min(wait * 1.5, MAX_POLL_MS)) {
      try {
        const answer = await this.#engine.options.http.call<SessionReply>('POST', '/v1/auth/approval', { body, signal });
        if (answer.status === 201) return this.#signedIn(answer.body, email, signal);
        await sleep(wait, signal);
      } catch (error) {
        const { code, retryable, retryAfterMs } = error as ServerError;
        if (code === 'denied' || code === 'not_found') await this.#save({ email, challengeId });
        if (!retryable) throw error;
        await sleep(Math.max(wait, retryAfterMs ?? 0), signal);
      }
    }
  }

  async #saved(): Promise<SignInState> {
    const saved = await this.#engine.store.get<SignInState>(STATE);
    if (!saved) throw new StateError('no_challenge', 'ask for a code first: signIn.request(email)');
    return saved;
  }

  #save(state: SignInState): Promise<void> {
    return this.#engine.store.transaction((tx) => tx.set(STATE, state as unknown as Value));
  }
}

const shown = ({ number, decides_at: decidesAt }: RequestedApproval): Approval => ({ number, decidesAt });

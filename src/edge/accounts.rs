//! Converts requests and replies about sign-in, sessions, devices and users.

use sealwire_protocol::{
    approvals::{
        self as wire, AccountStatusReply, ApprovalPendingReply, ApprovalRequestedReply, DecideRequest,
        LockAccountRequest, UndecidedApproval, UnlockAccountRequest,
    },
    auth::{
        DeviceDescription, ListSessionsReply, ListedSession, OtpReply, OtpRequest, RenewSessionReply, SessionReply,
        VerifyRequest, WorkProof,
    },
    devices::{ListDevicesReply, ListedDevice},
    limits::{DEVICE_NAME_CHARS, LOCK_WAIT_DEFAULT, LOCK_WAIT_SECONDS, REGISTRATION_IDS},
    users::ChangeEmailReply,
    value::{Base64, Lenient, Object, Text},
};

use serde::Serialize;

use super::EdgeError;
use crate::{
    domain::{
        ApprovalId, ChallengeId, DeviceId, Email, PendingApproval, Session,
        approval::{self, Lock, PresentedRecoveryKey},
        otp::{self, CodePurpose, OtpCode},
        token::Token,
        work::PresentedWork,
    },
    service::{
        AccountStatus, Challenge, Confirmation, DeviceRecord, PolledApproval, RequestedApproval, RequestedCode,
        SessionRecord, SignInAnswer, SignInRequest, Verdict,
    },
};

/// Parses an e-mail address.
///
/// # Errors
/// `bad_request` if it is invalid.
pub fn email(text: &Text) -> Result<Email, EdgeError> {
    Email::parse(text.as_str()).ok_or_else(|| EdgeError::invalid("email", "an e-mail address"))
}

/// Checks a device name and returns it. `path` is its path in the request, for the error.
///
/// # Errors
/// `bad_request` if it does not have 1 to 64 characters.
pub fn device_name<'a>(path: &'static str, text: &'a Text) -> Result<&'a str, EdgeError> {
    if DEVICE_NAME_CHARS.contains(&text.as_str().chars().count()) {
        Ok(text.as_str())
    } else {
        Err(EdgeError::invalid(path, "1 to 64 characters"))
    }
}

/// Converts a sign-in request, without comparing its code.
///
/// # Errors
/// `bad_request` if the device name, registration id, e-mail address or form of the code is invalid, or if an existing
/// device is to replace another. Such a request does not count as an attempt to guess the code.
pub fn sign_in(request: VerifyRequest) -> Result<SignInRequest, EdgeError> {
    let VerifyRequest { challenge_id, email: address, code, device, replace_device_id, recovery_key, proof: work } =
        request;
    let Object(DeviceDescription { id, name, registration_id, proof }) =
        device.unwrap_or(Object(DeviceDescription::default()));
    let device_name = name.as_ref().map(|name| device_name("device.name", name)).transpose()?.map(str::to_owned);
    if registration_id.is_some_and(|id| !REGISTRATION_IDS.contains(&id)) {
        return Err(EdgeError::invalid("device.registration_id", "1 to 16380"));
    }
    if id.is_some() && replace_device_id.is_some() {
        return Err(EdgeError::invalid("replace_device_id", "no value if device.id is given"));
    }
    Ok(SignInRequest {
        challenge: challenge_id,
        email: email(&address)?,
        code: otp_code(&code)?,
        existing_device: id,
        device_name,
        registration_id,
        replace: replace_device_id,
        // A malformed proof is a wrong one.
        proof: proof.and_then(|proof| Base64::parse(proof.as_str())).map(|Base64(bytes)| bytes).unwrap_or_default(),
        recovery_key: recovery_key.as_ref().map(presented_recovery_key),
        work: presented_work(work),
    })
}

/// Converts a request for a code. `token` is the bearer token of the request, if it has one.
///
/// # Errors
/// `bad_request` if the address is invalid.
pub fn requested_code(request: OtpRequest, token: Option<Token>) -> Result<RequestedCode, EdgeError> {
    let OtpRequest { email: address, purpose, proof } = request;
    let purpose = purpose.unwrap_or(CodePurpose::SignIn);
    Ok(RequestedCode { email: email(&address)?, purpose, token, work: presented_work(proof) })
}

fn presented_work(proof: Option<Lenient<WorkProof>>) -> PresentedWork {
    proof
        .and_then(|Lenient(proof)| proof)
        .map(|WorkProof { salt, nonce }| PresentedWork::parse(salt.as_str(), nonce.as_str()))
        .unwrap_or_default()
}

/// Converts a recovery key. A malformed one is a wrong one.
fn presented_recovery_key(text: &Text) -> PresentedRecoveryKey {
    PresentedRecoveryKey::new(Base64::parse(text.as_str()).map(|Base64(bytes)| bytes))
}

/// Converts a request to lock an account.
///
/// # Errors
/// `bad_request` if the hash is not base64 of 32 bytes or `wait_s` is out of range.
pub fn lock(request: &LockAccountRequest) -> Result<(Lock, Option<PresentedRecoveryKey>), EdgeError> {
    let LockAccountRequest { recovery_key_hash, wait_s, recovery_key } = request;
    let hash = Base64::parse(recovery_key_hash.as_str()).and_then(|Base64(bytes)| bytes.try_into().ok());
    let recovery_key_hash = hash.ok_or_else(|| EdgeError::invalid("recovery_key_hash", "base64 of 32 bytes"))?;
    let wait_s = wait_s.unwrap_or(LOCK_WAIT_DEFAULT.as_secs());
    if !LOCK_WAIT_SECONDS.contains(&wait_s) {
        return Err(EdgeError::invalid("wait_s", "86400 to 2592000"));
    }
    Ok((Lock { recovery_key_hash, wait_s }, recovery_key.as_ref().map(presented_recovery_key)))
}

/// Converts the recovery key of a request to unlock an account.
#[must_use]
pub fn unlock(request: &UnlockAccountRequest) -> Option<PresentedRecoveryKey> {
    request.recovery_key.as_ref().map(presented_recovery_key)
}

/// Returns the reply with the lock of an account.
#[must_use]
pub fn account_status_reply(status: AccountStatus) -> AccountStatusReply {
    AccountStatusReply {
        locked: status.lock.is_some(),
        wait_s: status.lock.map(|lock| lock.wait_s),
        pending: status.pending.into_iter().map(pending_approval).collect(),
    }
}

/// Returns a pending request as its deciding devices see it.
#[must_use]
pub fn pending_approval(request: PendingApproval) -> wire::PendingApproval {
    let PendingApproval { id, kind, device_name, client_network, created_at, decides_at } = request;
    wire::PendingApproval { request_id: id, kind: kind.into(), device_name, client_network, created_at, decides_at }
}

/// Converts a decision.
///
/// # Errors
/// `bad_request` if it approves without a number of two digits.
pub fn verdict(request: DecideRequest) -> Result<(ApprovalId, Verdict), EdgeError> {
    let DecideRequest { request_id, approve, number, replace_device_id } = request;
    if !approve {
        return Ok((request_id, Verdict::Deny));
    }
    let number = number.filter(|number| approval::is_number(number.as_str()));
    let number = number.ok_or_else(|| EdgeError::invalid("number", "two digits"))?.as_str().to_owned();
    Ok((request_id, Verdict::Approve { number, replace: replace_device_id }))
}

/// The body of a response about a sign-in.
#[derive(Serialize)]
#[serde(untagged)]
pub enum SignInReply {
    /// Status 201.
    SignedIn(SessionReply),
    /// Status 202 of `verify`.
    Requested(ApprovalRequestedReply),
    /// Status 202 of `approval`.
    Pending(ApprovalPendingReply),
}

/// Returns the response to a sign-in.
#[must_use]
pub fn verify_reply(answer: SignInAnswer) -> SignInReply {
    match answer {
        SignInAnswer::SignedIn(session, token) => SignInReply::SignedIn(session_reply(session, Some(&token))),
        SignInAnswer::Waiting(requested) => {
            let poll_token = Some(requested.poll_token.clone());
            let approval = wire::RequestedApproval { poll_token, ..requested_approval(requested) };
            SignInReply::Requested(ApprovalRequestedReply { approval })
        }
    }
}

/// Returns the response to a poll of a request.
#[must_use]
pub fn poll_reply(answer: PolledApproval) -> SignInReply {
    match answer {
        PolledApproval::Approved(session, token) => SignInReply::SignedIn(session_reply(session, Some(&token))),
        PolledApproval::Pending { decides_at } => {
            SignInReply::Pending(ApprovalPendingReply { approval: UndecidedApproval { decides_at } })
        }
    }
}

/// Returns the result of `account.change_email`.
#[must_use]
pub fn change_email_reply(requested: Option<RequestedApproval>) -> ChangeEmailReply {
    ChangeEmailReply { approval: requested.map(requested_approval) }
}

/// The request without its poll token, which only a sign-in gets.
fn requested_approval(requested: RequestedApproval) -> wire::RequestedApproval {
    let RequestedApproval { id, poll_token: _, number, decides_at } = requested;
    wire::RequestedApproval { request_id: id, poll_token: None, number, decides_at }
}

/// Converts the code of an operation that needs one; `None` if the code or its challenge is absent.
///
/// # Errors
/// `bad_request` if the form of the code is invalid. Such a request does not count as an attempt to guess it.
pub fn confirmation(
    challenge: Option<ChallengeId>,
    code: Option<&Text>,
    proof: Option<Lenient<WorkProof>>,
) -> Result<Option<Confirmation>, EdgeError> {
    let code = code.map(otp_code).transpose()?;
    let work = presented_work(proof);
    Ok(challenge.zip(code).map(|(challenge, code)| Confirmation { challenge, code, work }))
}

fn otp_code(text: &Text) -> Result<OtpCode, EdgeError> {
    OtpCode::parse(text.as_str()).ok_or_else(|| EdgeError::invalid("code", "eight digits"))
}

/// Returns the response to a request for a code.
#[must_use]
pub fn otp_reply(challenge: &Challenge) -> OtpReply {
    OtpReply {
        challenge_id: challenge.id,
        expires_in_s: otp::LIFETIME.as_secs(),
        resend_in_s: otp::RESEND_AFTER.as_secs(),
    }
}

/// Returns the response with a session. `token` is `Some` if the session is new.
#[must_use]
pub fn session_reply(session: Session, token: Option<&Token>) -> SessionReply {
    let Session { caller, expires_at } = session;
    SessionReply {
        user_id: caller.user,
        device_id: caller.device,
        session_id: caller.session,
        token: token.map(Token::reveal),
        expires_at,
    }
}

/// Returns the reply to a renewal: the session with its new token.
#[must_use]
pub fn renew_session_reply(session: Session, token: &Token) -> RenewSessionReply {
    let Session { caller, expires_at } = session;
    RenewSessionReply { token: token.reveal(), expires_at, session_id: caller.session }
}

/// Returns the reply with a user's devices. `current` is the device that asked.
#[must_use]
pub fn list_devices_reply(devices: Vec<DeviceRecord>, current: DeviceId) -> ListDevicesReply {
    let listed = devices.into_iter().map(|device| ListedDevice {
        device_id: device.id,
        name: device.name,
        registration_id: device.registration_id,
        created_at: device.created_at,
        last_seen: device.last_seen,
        current: device.id == current,
    });
    ListDevicesReply { devices: listed.collect() }
}

/// Returns the reply with a user's sessions.
#[must_use]
pub fn list_sessions_reply(sessions: Vec<SessionRecord>) -> ListSessionsReply {
    let listed = sessions.into_iter().map(|session| ListedSession {
        session_id: session.id,
        device_id: session.device,
        created_at: session.created_at,
        expires_at: session.expires_at,
        last_seen: session.last_seen,
        current: session.is_current,
    });
    ListSessionsReply { sessions: listed.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the error text of a sign-in with this device and further fields, or "ok".
    fn outcome(device: &str, rest: &str) -> String {
        let id = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let text =
            format!(r#"{{"challenge_id":"{id}","email":"a@example.org","code":"1234 5678","device":{device}{rest}}}"#);
        let request: VerifyRequest = serde_json::from_str(&text).unwrap();
        sign_in(request).map_or_else(|error| error.to_string(), |_| "ok".to_owned())
    }

    #[test]
    fn the_form_of_a_sign_in_is_checked() {
        assert_eq!(outcome("null", ""), "ok");
        assert_eq!(outcome(r#"{"name":"x","registration_id":16380}"#, ""), "ok");
        assert_eq!(outcome(r#"{"name":""}"#, ""), "`device.name`: expected 1 to 64 characters");
        assert_eq!(outcome(&format!(r#"{{"name":"{}"}}"#, "é".repeat(64)), ""), "ok");
        assert_eq!(
            outcome(&format!(r#"{{"name":"{}"}}"#, "é".repeat(65)), ""),
            "`device.name`: expected 1 to 64 characters"
        );
        for id in [0, 16381] {
            assert_eq!(
                outcome(&format!(r#"{{"registration_id":{id}}}"#), ""),
                "`device.registration_id`: expected 1 to 16380"
            );
        }
        let id = r#""67e55044-10b1-426f-9247-bb680e5fe0c8""#;
        let both = outcome(&format!(r#"{{"id":{id}}}"#), &format!(r#","replace_device_id":{id}"#));
        assert_eq!(both, "`replace_device_id`: expected no value if device.id is given");
    }
}

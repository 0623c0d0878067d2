//! The lock of an account and the requests that wait for an approval.
//!
//! Poll token, number and session token of a request are derived from its id with the server's secret. So a node can
//! repeat an answer that another gave before it died, and the database holds none of them.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
pub use sealwire_protocol::approvals::ApprovalKind;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{ApprovalId, Timestamp, otp::ServerSecret, token::Token};

/// Maximum number of requests of a user that are pending at once.
pub const MAX_PENDING: usize = 3;
/// Maximum number of requests of a user in 24 hours.
pub const MAX_PER_DAY: usize = 10;

/// The lock of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// SHA-256 of the recovery key.
    pub recovery_key_hash: [u8; 32],
    /// Seconds after which a request is approved unless a device denies it.
    pub wait_s: u64,
}

/// A recovery key that a client presents, as its SHA-256; `None` if its form is invalid.
#[derive(Clone, Copy)]
pub struct PresentedRecoveryKey(Option<[u8; 32]>);

impl PresentedRecoveryKey {
    /// Takes the key, which is 32 bytes; anything else is a wrong key.
    #[must_use]
    pub fn new(key: Option<Vec<u8>>) -> Self {
        let key = key.map(Zeroizing::new).filter(|key| key.len() == 32);
        Self(key.map(|key| Sha256::digest(&key[..]).into()))
    }

    /// Whether this is the recovery key of the lock. Compared in constant time.
    #[must_use]
    pub fn opens(&self, lock: &Lock) -> bool {
        self.0.is_some_and(|hash| bool::from(hash.ct_eq(&lock.recovery_key_hash)))
    }
}

impl fmt::Debug for PresentedRecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresentedRecoveryKey(..)")
    }
}

/// A request that waits for an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingApproval {
    /// Identifies it.
    pub id: ApprovalId,
    /// What it asks for.
    pub kind: ApprovalKind,
    /// The name of the new device, or of the device that wants to change the address, if it has one.
    pub device_name: Option<String>,
    /// The network that it came from, such as `203.0.113.0/24`, if it is known.
    pub client_network: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is approved unless a device denies it.
    pub decides_at: Timestamp,
}

/// The text that proves who made a request: unpadded base64url, 43 characters.
#[must_use]
pub fn poll_token(secret: &ServerSecret, id: ApprovalId) -> String {
    URL_SAFE_NO_PAD.encode(secret.tag(&[b"approval poll token", id.0.as_bytes()]))
}

/// Whether `text` is the poll token of the request. Compared in constant time.
#[must_use]
pub fn is_poll_token(secret: &ServerSecret, id: ApprovalId, text: &str) -> bool {
    poll_token(secret, id).as_bytes().ct_eq(text.as_bytes()).into()
}

/// The two digits that the new device shows, and that the approving device must repeat.
#[must_use]
pub fn number(secret: &ServerSecret, id: ApprovalId) -> String {
    let [first, second, ..] = secret.tag(&[b"approval number", id.0.as_bytes()]);
    // 65,536 is not a multiple of 100; the bias towards small numbers is below a thousandth.
    format!("{:02}", u16::from_be_bytes([first, second]) % 100)
}

/// Whether `text` has the form of a number: two ASCII digits.
#[must_use]
pub fn is_number(text: &str) -> bool {
    text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The token of the session that an approval opens.
#[must_use]
pub fn session_token(secret: &ServerSecret, id: ApprovalId) -> Token {
    Token::new(secret.tag(&[b"approval session token", id.0.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use uuid::Uuid;

    use super::*;

    fn secret() -> ServerSecret {
        ServerSecret::new([7; 32])
    }

    #[test]
    fn a_recovery_key_opens_only_the_lock_with_its_hash() {
        let lock = |key: &[u8]| Lock { recovery_key_hash: Sha256::digest(key).into(), wait_s: 86_400 };
        let presented = |key: &[u8]| PresentedRecoveryKey::new(Some(key.to_vec()));
        assert!(presented(&[1; 32]).opens(&lock(&[1; 32])));
        assert!(!presented(&[2; 32]).opens(&lock(&[1; 32])));
        assert!(!presented(&[1; 31]).opens(&lock(&[1; 31])), "a key has 32 bytes");
        assert!(!PresentedRecoveryKey::new(None).opens(&lock(&[])));
    }

    #[test]
    fn poll_token_and_session_token_differ_for_each_request_and_secret() {
        let mut tokens = HashSet::new();
        for secret in [secret(), ServerSecret::new([8; 32])] {
            for id in [1, 2].map(|n| ApprovalId(Uuid::from_u128(n))) {
                assert!(is_poll_token(&secret, id, &poll_token(&secret, id)));
                assert!(!is_poll_token(&secret, id, &session_token(&secret, id).reveal()));
                assert!(tokens.insert(poll_token(&secret, id)) && tokens.insert(session_token(&secret, id).reveal()));
            }
        }
        assert!(!is_poll_token(&secret(), ApprovalId(Uuid::from_u128(1)), ""));
    }

    #[test]
    fn numbers_have_two_digits_and_take_every_value() {
        let numbers: HashSet<String> = (0..2000).map(|n| number(&secret(), ApprovalId(Uuid::from_u128(n)))).collect();
        assert_eq!(numbers.len(), 100);
        assert!(numbers.iter().all(|text| is_number(text)));
        for wrong in ["", "7", "007", "0a", "٠٧"] {
            assert!(!is_number(wrong), "{wrong}");
        }
    }
}

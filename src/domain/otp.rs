//! One-time codes: eight digits by mail, kept only as a keyed hash.

use std::{fmt, time::Duration};

use rand::{CryptoRng, RngExt};
use zeroize::Zeroizing;

pub use sealwire_protocol::auth::CodePurpose;

use super::{ChallengeId, Email};

/// How long a code may be used.
pub const LIFETIME: Duration = Duration::from_mins(10);
/// How long a client should wait before it offers to send another code.
pub const RESEND_AFTER: Duration = Duration::from_secs(30);
/// Maximum number of attempts per challenge.
pub const MAX_ATTEMPTS: i32 = 5;
/// Digits in a code.
const DIGITS: usize = 8;

/// The server's secret. It keys the hashes of codes, so that a code cannot be found in a stolen table by hashing every
/// possible one.
#[derive(Clone)]
pub struct ServerSecret(Zeroizing<[u8; 32]>);

impl ServerSecret {
    /// Takes 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// BLAKE3 keyed with the secret. Each part is hashed after its length, so that no two lists of parts are the same
    /// input.
    #[must_use]
    pub fn tag(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        hasher.finalize().into()
    }
}

impl fmt::Debug for ServerSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerSecret(..)")
    }
}

/// A one-time code.
#[derive(Clone, PartialEq, Eq)]
pub struct OtpCode(Zeroizing<String>);

impl OtpCode {
    /// Generates a uniformly random code.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self(Zeroizing::new(format!("{:08}", rng.random_range(0..100_000_000u32))))
    }

    /// Parses user input: eight ASCII digits; spaces and dashes are ignored.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let separator = |c: char| c.is_whitespace() || matches!(c, '-' | '\u{2010}'..='\u{2015}');
        let digits: String = text.chars().filter(|c| !separator(*c)).collect();
        (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_digit())).then(|| Self(Zeroizing::new(digits)))
    }

    /// The eight digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The keyed hash that `email_otps.otp_hash` stores. It contains the purpose, so that nodes of earlier versions, which
    /// know no purposes, do not accept a code that does not sign in.
    #[must_use]
    pub fn hash(&self, secret: &ServerSecret, challenge: ChallengeId, email: &Email, purpose: CodePurpose) -> [u8; 32] {
        let (challenge, email, code) = (challenge.0.as_bytes(), email.as_str().as_bytes(), self.0.as_bytes());
        match purpose {
            CodePurpose::SignIn => secret.tag(&[b"otp", challenge, email, code]),
            other => secret.tag(&[b"otp", other.name().as_bytes(), challenge, email, code]),
        }
    }
}

impl fmt::Debug for OtpCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OtpCode(..)")
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn spaces_and_dashes_are_ignored_and_nothing_else() {
        assert_eq!(OtpCode::parse(" 1234-56 78 ").unwrap().as_str(), "12345678");
        for wrong in ["", "1234567", "123456789", "1234567a", "12345678\0", "１２３４５６７８", "+1234567"] {
            assert!(OtpCode::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn generated_codes_parse() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..1000 {
            let code = OtpCode::generate(&mut rng);
            assert_eq!(OtpCode::parse(code.as_str()), Some(code));
        }
    }

    #[test]
    fn the_hash_binds_challenge_address_purpose_and_secret() {
        let (a, b) = (ServerSecret::new([1; 32]), ServerSecret::new([2; 32]));
        let (one, two) = (ChallengeId(Uuid::from_u128(1)), ChallengeId(Uuid::from_u128(2)));
        let (alice, bob) = (Email::parse("a@x.y").unwrap(), Email::parse("b@x.y").unwrap());
        let code = OtpCode::parse("12345678").unwrap();
        let sign_in = CodePurpose::SignIn;
        let hash = code.hash(&a, one, &alice, sign_in);
        assert_eq!(hash, code.hash(&a, one, &alice, sign_in));
        assert_eq!(hash, a.tag(&[b"otp", one.0.as_bytes(), b"a@x.y", b"12345678"]), "the hash of earlier versions");
        let others = [
            code.hash(&b, one, &alice, sign_in),
            code.hash(&a, two, &alice, sign_in),
            code.hash(&a, one, &bob, sign_in),
            code.hash(&a, one, &alice, CodePurpose::Delete),
            code.hash(&a, one, &alice, CodePurpose::ChangeEmail),
        ];
        for (place, other) in others.iter().enumerate() {
            assert!(hash != *other && !others[..place].contains(other));
        }
    }
}

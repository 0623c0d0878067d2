//! Proofs of work: hashing that lets a client exceed a limit of codes or guesses.
//!
//! The server keeps no record of the proofs that it offers. The salt contains its time and its number of bits, and a tag
//! that also covers the action, the address and the network. A proof works once: the store records the salts that were
//! spent.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{CryptoRng, RngExt};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{ClientNetwork, Email, Timestamp, otp::ServerSecret};

/// How long an offered proof is accepted.
pub const LIFETIME: Duration = Duration::from_mins(5);
/// Bits of a proof for an address to which no code was paid for by a proof in 24 hours.
pub const MIN_BITS: u8 = 18;
/// Maximum number of bits of a proof.
pub const MAX_BITS: u8 = 24;
/// Maximum length of a nonce in bytes.
pub const MAX_NONCE_BYTES: usize = 32;

/// A salt may come from a node whose clock is ahead of this node's by this much.
const CLOCK_TOLERANCE: Duration = Duration::from_mins(1);
const SALT_BYTES: usize = 24;
/// Seconds since 1970 in four bytes, the number of bits, and three random bytes.
const HEAD_BYTES: usize = 8;

/// What a proof pays for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaidAction {
    /// `POST /v1/auth/otp`
    Otp,
    /// `POST /v1/auth/verify`
    Verify,
}

impl PaidAction {
    /// The name of the route, which the tag of a salt covers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Otp => "otp",
            Self::Verify => "verify",
        }
    }
}

/// The salt of a proof: time, bits and random bytes, then a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Salt([u8; SALT_BYTES]);

impl Salt {
    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A proof that a client may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferedWork {
    /// The number of leading zero bits that the hash must have.
    pub bits: u8,
    /// The first part of the text to hash.
    pub salt: Salt,
}

impl OfferedWork {
    /// The salt as unpadded base64url.
    #[must_use]
    pub fn salt_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.salt.0)
    }
}

/// A proof that a client presents, not checked yet. A malformed one is a wrong one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresentedWork(Option<([u8; SALT_BYTES], Vec<u8>)>);

impl PresentedWork {
    /// Takes salt and nonce as unpadded base64url.
    #[must_use]
    pub fn parse(salt: &str, nonce: &str) -> Self {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let salt = decode(salt).and_then(|salt| salt.try_into().ok());
        Self(salt.zip(decode(nonce).filter(|nonce| nonce.len() <= MAX_NONCE_BYTES)))
    }
}

/// A proof that is right and not stale. Whether it was spent before is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProvenWork {
    /// The salt, which must not have been spent before.
    pub salt: Salt,
    /// The number of leading zero bits that was asked for.
    pub bits: u8,
    /// When the proof becomes stale.
    pub expires_at: Timestamp,
}

/// What a proof is for. A proof for anything else is wrong.
#[derive(Clone, Copy, Debug)]
pub struct WorkScope<'a> {
    /// What it pays for.
    pub action: PaidAction,
    /// The address of the code.
    pub email: &'a Email,
    /// The network of the client.
    pub network: ClientNetwork,
}

impl WorkScope<'_> {
    /// Offers a proof.
    #[must_use]
    pub fn offer(&self, secret: &ServerSecret, bits: u8, now: Timestamp, rng: &mut impl CryptoRng) -> OfferedWork {
        let mut salt = [0; SALT_BYTES];
        let seconds = u32::try_from(now.as_micros() / 1_000_000).unwrap_or_default();
        salt[..4].copy_from_slice(&seconds.to_be_bytes());
        salt[4] = bits;
        rng.fill(&mut salt[5..HEAD_BYTES]);
        let tag = self.tag(secret, &salt[..HEAD_BYTES]);
        salt[HEAD_BYTES..].copy_from_slice(&tag);
        OfferedWork { bits, salt: Salt(salt) }
    }

    /// Checks a proof, except whether it was spent before. `None` if it is wrong or stale.
    #[must_use]
    pub fn check(&self, secret: &ServerSecret, presented: &PresentedWork, now: Timestamp) -> Option<ProvenWork> {
        let (salt, nonce) = presented.0.as_ref()?;
        let (head, tag) = salt.split_at(HEAD_BYTES);
        if !bool::from(self.tag(secret, head)[..].ct_eq(tag)) {
            return None;
        }
        let bits = head[4];
        let seconds = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let made_at = Timestamp::from(chrono::DateTime::from_timestamp(seconds.into(), 0)?);
        let expires_at = made_at + LIFETIME;
        if expires_at <= now || made_at > now + CLOCK_TOLERANCE {
            return None;
        }
        let hash: [u8; 32] = Sha256::new().chain_update(salt).chain_update(nonce).finalize().into();
        (leading_zeros(&hash) >= u32::from(bits)).then_some(ProvenWork { salt: Salt(*salt), bits, expires_at })
    }

    fn tag(&self, secret: &ServerSecret, head: &[u8]) -> [u8; SALT_BYTES - HEAD_BYTES] {
        let parts =
            [b"work", self.action.name().as_bytes(), self.email.as_str().as_bytes(), self.network.as_bytes(), head];
        let mut short = [0; SALT_BYTES - HEAD_BYTES];
        short.copy_from_slice(&secret.tag(&parts)[..SALT_BYTES - HEAD_BYTES]);
        short
    }
}

/// The number of zero bits before the first bit that is one.
fn leading_zeros(hash: &[u8; 32]) -> u32 {
    let zeros = hash.iter().position(|byte| *byte != 0).unwrap_or(hash.len());
    let bits = hash.get(zeros).map_or(0, |byte| byte.leading_zeros());
    u32::try_from(zeros).unwrap_or_default() * 8 + bits
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const BITS: u8 = 8;

    fn now() -> Timestamp {
        Timestamp::parse("2026-06-01T12:00:00.7Z").unwrap()
    }

    fn solve(offer: OfferedWork) -> PresentedWork {
        let right = (0..u32::MAX).map(u32::to_be_bytes).find(|nonce| {
            let hash: [u8; 32] = Sha256::new().chain_update(offer.salt.0).chain_update(nonce).finalize().into();
            leading_zeros(&hash) >= u32::from(offer.bits)
        });
        PresentedWork::parse(&offer.salt_text(), &URL_SAFE_NO_PAD.encode(right.unwrap()))
    }

    #[test]
    fn zero_bits_are_counted_from_the_left() {
        let hash = |first: [u8; 3]| {
            let mut hash = [0xff; 32];
            hash[..3].copy_from_slice(&first);
            hash
        };
        for (first, zeros) in [([0x80, 0, 0], 0), ([0x01, 0, 0], 7), ([0, 0x40, 0], 9), ([0, 0, 0x3f], 18)] {
            assert_eq!(leading_zeros(&hash(first)), zeros, "{first:?}");
        }
        assert_eq!(leading_zeros(&[0; 32]), 256);
    }

    #[test]
    fn a_proof_holds_for_five_minutes_and_only_for_what_it_was_offered_for() {
        let (secret, other_secret) = (ServerSecret::new([1; 32]), ServerSecret::new([2; 32]));
        let (alice, bob) = (Email::parse("a@x.y").unwrap(), Email::parse("b@x.y").unwrap());
        let scope = WorkScope { action: PaidAction::Otp, email: &alice, network: ClientNetwork::V4([192, 0, 2]) };
        let mut rng = StdRng::seed_from_u64(1);
        let offer = scope.offer(&secret, BITS, now(), &mut rng);
        assert_ne!(offer, scope.offer(&secret, BITS, now(), &mut rng), "every salt is a different one");
        let proof = solve(offer);
        let proven = scope.check(&secret, &proof, now()).unwrap();
        assert_eq!((proven.bits, proven.salt), (BITS, offer.salt));
        assert_eq!(proven.expires_at, Timestamp::parse("2026-06-01T12:05:00Z").unwrap());
        let last = now() + Duration::from_secs(299);
        assert!(scope.check(&secret, &proof, last).is_some());
        assert_eq!(scope.check(&secret, &proof, now() + LIFETIME), None, "stale");
        assert!(scope.check(&secret, &proof, now().before(CLOCK_TOLERANCE)).is_some());
        assert_eq!(scope.check(&secret, &proof, now().before(CLOCK_TOLERANCE * 2)), None, "from the future");
        assert_eq!(scope.check(&other_secret, &proof, now()), None);
        for other in [
            WorkScope { action: PaidAction::Verify, ..scope },
            WorkScope { email: &bob, ..scope },
            WorkScope { network: ClientNetwork::V4([192, 0, 3]), ..scope },
        ] {
            assert_eq!(other.check(&secret, &proof, now()), None, "{other:?}");
        }
    }

    #[test]
    fn a_changed_or_malformed_proof_is_wrong() {
        let secret = ServerSecret::new([1; 32]);
        let alice = Email::parse("a@x.y").unwrap();
        let scope = WorkScope { action: PaidAction::Otp, email: &alice, network: ClientNetwork::V4([192, 0, 2]) };
        let offer = scope.offer(&secret, BITS, now(), &mut StdRng::seed_from_u64(1));
        let PresentedWork(Some((salt, nonce))) = solve(offer) else { panic!("malformed") };
        for place in 0..SALT_BYTES {
            let mut changed = salt;
            changed[place] ^= 1;
            let easier = OfferedWork { bits: 0, salt: Salt(changed) };
            assert_eq!(scope.check(&secret, &solve(easier), now()), None, "byte {place} is covered by the tag");
        }
        let text = offer.salt_text();
        let nonce_text = URL_SAFE_NO_PAD.encode(&nonce);
        assert!(scope.check(&secret, &PresentedWork::parse(&text, &nonce_text), now()).is_some());
        let long = URL_SAFE_NO_PAD.encode([0; MAX_NONCE_BYTES + 1]);
        for (salt, nonce) in [
            ("", &*nonce_text),
            (&text[1..], &nonce_text),
            (&format!("{text}="), &nonce_text),
            (&text, "*"),
            (&text, &long),
        ] {
            assert_eq!(PresentedWork::parse(salt, nonce), PresentedWork(None), "{salt} {nonce}");
        }
        let wrong = (0..u8::MAX).find(|byte| {
            let hash: [u8; 32] = Sha256::new().chain_update(salt).chain_update([*byte]).finalize().into();
            leading_zeros(&hash) < u32::from(BITS)
        });
        assert_eq!(scope.check(&secret, &PresentedWork(Some((salt, vec![wrong.unwrap()]))), now()), None);
    }
}

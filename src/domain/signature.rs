//! Signatures over prekeys.
//!
//! The signal suites sign with `XEdDSA` (<https://signal.org/docs/specifications/xeddsa/>) the way libsignal does: the
//! identity stays an X25519 key, and the sign of its Edwards form is the top bit of the signature's last byte. Signers
//! that follow the specification make that sign zero, so their signatures have the same form with the bit clear.
//! `ed25519-x3dh` signs with plain Ed25519 (RFC 8032 §5.1).
//!
//! Verification is strict: S < L, so that a signature has one encoding, and R is not of small order. The signatures of
//! correct signers pass; one with S + L, which libsignal accepts, does not.

use curve25519_dalek::{
    edwards::EdwardsPoint,
    montgomery::MontgomeryPoint,
    scalar::{Scalar, clamp_integer},
};
use ed25519_dalek::{Signature, VerifyingKey};
pub use sealwire_protocol::auth::device_proof_message;
use sha2::{Digest, Sha512};

use super::keys::{IdentityKey, KeyError, Suite};

/// An identity key prepared for verifying many signatures: its point is decompressed only once.
#[derive(Debug, Clone)]
pub struct Verifier(Scheme);

#[derive(Debug, Clone)]
enum Scheme {
    /// The identity's Edwards form with sign 0 and with sign 1.
    XEdDsa([VerifyingKey; 2]),
    Ed25519(VerifyingKey),
    /// The key has no point to verify with (X25519 on the twist), so no signature under it can be valid.
    Never,
}

impl Verifier {
    /// Prepares `identity`, parsed under the same `suite`. Cannot fail: a key under which nothing can have been signed
    /// refuses every signature.
    #[must_use]
    pub fn new(suite: Suite, identity: &IdentityKey) -> Self {
        let scheme = match suite {
            Suite::SignalPqxdh | Suite::SignalX3dh => MontgomeryPoint(*identity.point())
                .to_edwards(0)
                .map(|point| Scheme::XEdDsa([point, -point].map(VerifyingKey::from))),
            Suite::Ed25519X3dh => VerifyingKey::from_bytes(identity.point()).ok().map(Scheme::Ed25519),
        };
        Self(scheme.unwrap_or(Scheme::Never))
    }

    /// Verifies `signature` (64 bytes, R ‖ S) over `message`, the serialized key as on the wire.
    ///
    /// # Errors
    /// [`KeyError::InvalidSignature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        self.verified(message, signature).map(drop)
    }

    /// Like [`Self::verify`]; returns the signature as the 64 bytes that it was sent as.
    ///
    /// # Errors
    /// [`KeyError::InvalidSignature`].
    pub fn verified(&self, message: &[u8], signature: &[u8]) -> Result<[u8; 64], KeyError> {
        let sent: [u8; 64] = signature.try_into().map_err(|_| KeyError::InvalidSignature)?;
        let mut signature = sent;
        let key = match &self.0 {
            Scheme::XEdDsa(by_sign) => {
                let sign = signature[63] >> 7;
                signature[63] &= 0x7f;
                &by_sign[usize::from(sign)]
            }
            Scheme::Ed25519(key) => key,
            Scheme::Never => return Err(KeyError::InvalidSignature),
        };
        key.verify_strict(message, &Signature::from_bytes(&signature)).map_err(|_| KeyError::InvalidSignature)?;
        Ok(sent)
    }
}

/// Verifies one signature; for several under one identity make a [`Verifier`].
///
/// # Errors
/// [`KeyError::InvalidSignature`].
pub fn verify(suite: Suite, identity: &IdentityKey, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    Verifier::new(suite, identity).verify(message, signature)
}

/// The public u-coordinate (32 bytes, without type byte) of an X25519 private key, clamped first (RFC 7748 §5).
#[must_use]
pub fn x25519_public(private: &[u8; 32]) -> [u8; 32] {
    MontgomeryPoint::mul_base_clamped(*private).to_bytes()
}

/// Signs `message` with an X25519 private key and 64 fresh random bytes. Returns R ‖ S with the sign of A in the top
/// bit.
///
/// `XEdDSA` §3 with libsignal's convention: where the specification negates the private key to make the sign zero,
/// the key is used as it is and the sign is sent along. Only `sealwire seed` and tests use it, as clients would.
#[must_use]
pub fn xeddsa_sign(private: &[u8; 32], message: &[u8], random: &[u8; 64]) -> [u8; 64] {
    let clamped = clamp_integer(*private);
    let a = Scalar::from_bytes_mod_order(clamped);
    let public = EdwardsPoint::mul_base(&a).compress();

    // hash1 (§2.5): the prefix 2^256 - 1 - 1, which is the encoding of no R or A
    let mut prefix = [0xff; 32];
    prefix[0] = 0xfe;
    let r = hash_to_scalar(&[&prefix, &clamped, message, random]);
    let commitment = EdwardsPoint::mul_base(&r).compress();
    let h = hash_to_scalar(&[commitment.as_bytes(), public.as_bytes(), message]);
    let s = r + h * a;

    let mut signature = [0; 64];
    signature[..32].copy_from_slice(commitment.as_bytes());
    signature[32..].copy_from_slice(s.as_bytes());
    signature[63] |= public.as_bytes()[31] & 0x80;
    signature
}

/// SHA-512 of the parts, one after the other, mod L.
fn hash_to_scalar(parts: &[&[u8]]) -> Scalar {
    let hash = parts.iter().fold(Sha512::new(), Digest::chain_update);
    Scalar::from_bytes_mod_order_wide(&hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::super::keys::{PqPrekey, Prekey};
    use super::*;
    use curve25519_dalek::constants::EIGHT_TORSION;
    use ed25519_dalek::{Signer, SigningKey, Verifier as _};
    use proptest::prelude::*;
    use sealwire_protocol::ids::{ChallengeId, DeviceId};
    use serde_json::Value;
    use uuid::Uuid;

    const SIGNAL: Suite = Suite::SignalPqxdh;
    const REFUSED: Result<(), KeyError> = Err(KeyError::InvalidSignature);
    /// L = 2^252 + 27742317777372353535851937790883648493, little-endian (RFC 8032 §5.1).
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];

    fn hex(text: &str) -> Vec<u8> {
        let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(digits).collect()
    }

    /// One group of the vectors, made with `@signalapp/libsignal-client` 0.103.
    fn vectors(group: &str) -> Vec<Value> {
        let text = include_str!("../../tests/vectors/libsignal.json");
        let mut vectors: Value = serde_json::from_str(text).unwrap();
        serde_json::from_value(vectors[group].take()).unwrap()
    }

    fn field(vector: &Value, name: &str) -> Vec<u8> {
        hex(vector[name].as_str().unwrap())
    }

    fn vector_identity(vector: &Value) -> IdentityKey {
        IdentityKey::parse(SIGNAL, &field(vector, "identity_key")).unwrap()
    }

    fn signal_identity(private: &[u8; 32]) -> IdentityKey {
        let serialized = [&[0x05][..], &x25519_public(private)].concat();
        IdentityKey::parse(SIGNAL, &serialized).unwrap()
    }

    fn ed25519_identity(key: &SigningKey) -> IdentityKey {
        IdentityKey::parse(Suite::Ed25519X3dh, key.verifying_key().as_bytes()).unwrap()
    }

    /// The same signature with S + L for S; fits because S < L < 2^253.
    fn with_s_plus_l(mut signature: [u8; 64]) -> [u8; 64] {
        let mut carry = 0;
        for (byte, l) in signature[32..].iter_mut().zip(L) {
            let sum = u16::from(*byte) + u16::from(l) + carry;
            (*byte, carry) = (sum.to_le_bytes()[0], sum >> 8);
        }
        signature
    }

    /// R of small order and an S that satisfies the equation all the same.
    fn with_small_r(a: &Scalar, message: &[u8]) -> [u8; 64] {
        let r = EIGHT_TORSION[0].compress();
        let public = EdwardsPoint::mul_base(a).compress();
        let s = hash_to_scalar(&[r.as_bytes(), public.as_bytes(), message]) * a;
        let mut signature = [r.0, s.to_bytes()].concat();
        signature[63] |= public.as_bytes()[31] & 0x80;
        signature.try_into().unwrap()
    }

    #[test]
    fn device_proofs_of_client_libraries_verify_for_their_device_and_challenge_only() {
        let text = include_str!("../../tests/vectors/device_proofs.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        let vectors = vectors["device_proofs"].as_array().unwrap();
        let identities: Vec<(Suite, IdentityKey)> = vectors
            .iter()
            .map(|vector| {
                let suite = serde_json::from_value(vector["suite"].clone()).unwrap();
                (suite, IdentityKey::parse(suite, &field(vector, "identity_key")).unwrap())
            })
            .collect();
        for suite in Suite::ALL {
            assert!(identities.iter().any(|(one, _)| *one == suite), "{suite:?}");
        }
        for (vector, (suite, identity)) in vectors.iter().zip(&identities) {
            let id = |name: &str| -> Uuid { serde_json::from_value(vector[name].clone()).unwrap() };
            let (challenge, device) = (id("challenge_id"), id("device_id"));
            let proof = field(vector, "proof");
            let check = |identity: &IdentityKey, challenge: Uuid, device: Uuid, proof: &[u8]| {
                let message = device_proof_message(ChallengeId(challenge), DeviceId(device));
                verify(*suite, identity, &message, proof)
            };
            assert_eq!(check(identity, challenge, device, &proof), Ok(()), "{vector}");
            assert_eq!(check(identity, device, challenge, &proof), REFUSED);
            assert_eq!(check(identity, Uuid::nil(), device, &proof), REFUSED);
            assert_eq!(check(identity, challenge, Uuid::nil(), &proof), REFUSED);
            assert_eq!(check(identity, challenge, device, &[]), REFUSED);
            for (other, key) in &identities {
                if other == suite && key.as_bytes() != identity.as_bytes() {
                    assert_eq!(check(key, challenge, device, &proof), REFUSED, "a foreign key");
                }
            }
            for at in 0..64 {
                let mut flipped = proof.clone();
                flipped[at] ^= 1;
                assert_eq!(check(identity, challenge, device, &flipped), REFUSED);
            }
        }
    }

    #[test]
    fn libsignal_signatures_verify_unless_a_bit_was_flipped() {
        let mut valid = 0;
        for (group, name) in [("signed_prekeys", "signed_prekey"), ("kyber_prekeys", "kyber_prekey")] {
            for vector in vectors(group) {
                let key = field(&vector, name);
                let message = match group {
                    "signed_prekeys" => Prekey::parse(SIGNAL, &key).unwrap().as_bytes().to_vec(),
                    _ => PqPrekey::parse(SIGNAL, &key).unwrap().as_bytes().to_vec(),
                };
                let (identity, signature) = (vector_identity(&vector), field(&vector, "signature"));
                let verdict = verify(SIGNAL, &identity, &message, &signature);
                assert_eq!(verdict.is_ok(), vector["valid"], "{vector}");
                valid += usize::from(verdict.is_ok());
            }
        }
        assert_eq!(valid, 7);
    }

    #[test]
    fn libsignals_edge_cases_are_all_refused() {
        let cases = vectors("edge_cases");
        assert_eq!(cases.len(), 4);
        for case in &cases {
            let (message, signature) = (field(case, "message"), field(case, "signature"));
            let verifier = Verifier::new(SIGNAL, &vector_identity(case));
            assert_eq!(verifier.verify(&message, &signature), REFUSED, "{case}");
            let what = case["what"].as_str().unwrap();
            if what.starts_with("signed over the raw") {
                assert_eq!(verifier.verify(&message[1..], &signature), Ok(()));
            }
            if what.starts_with("63-byte") {
                let whole = [&signature[..], &[0x83]].concat();
                assert_eq!(verifier.verify(&message, &whole), Ok(()));
                let longer = [&whole[..], &[0]].concat();
                assert_eq!(verifier.verify(&message, &longer), REFUSED);
            }
        }
    }

    #[test]
    fn x25519_public_is_rfc_7748() {
        // §6.1, Bob
        let private = hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb");
        let public = hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
        assert_eq!(x25519_public(&private.try_into().unwrap()), *public);
    }

    #[test]
    fn both_signs_of_the_identity_occur_and_verify() {
        let mut seen = [0; 2];
        for n in 0..32 {
            let private = [n; 32];
            let signature = xeddsa_sign(&private, b"prekey", &[n; 64]);
            let identity = signal_identity(&private);
            assert_eq!(verify(SIGNAL, &identity, b"prekey", &signature), Ok(()));
            seen[usize::from(signature[63] >> 7)] += 1;
        }
        assert!(seen.iter().all(|count| *count > 4), "{seen:?}");
    }

    #[test]
    fn an_identity_on_the_twist_verifies_nothing() {
        let mut twist = [0; 33];
        (twist[0], twist[1]) = (0x05, 2);
        let identity = IdentityKey::parse(SIGNAL, &twist).unwrap();
        let signature = xeddsa_sign(&[7; 32], &twist, &[7; 64]);
        assert_eq!(verify(SIGNAL, &identity, &twist, &signature), REFUSED);
    }

    #[test]
    fn ed25519_is_rfc_8032() {
        // §7.1, TEST 3
        let seed = hex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7");
        let key = SigningKey::from_bytes(&seed.try_into().unwrap());
        let signature = hex(concat!(
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac",
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ));
        let identity = ed25519_identity(&key);
        let verdict = |message: &[u8]| verify(Suite::Ed25519X3dh, &identity, message, &signature);
        assert_eq!(verdict(&[0xaf, 0x82]), Ok(()));
        assert_eq!(verdict(&[0xaf, 0x83]), REFUSED);
    }

    #[test]
    fn a_small_r_is_refused_although_the_equation_holds() {
        let (private, message) = ([3; 32], b"prekey");
        let ed25519 = SigningKey::from_bytes(&private);
        for (suite, identity, a) in [
            (SIGNAL, signal_identity(&private), Scalar::from_bytes_mod_order(clamp_integer(private))),
            (Suite::Ed25519X3dh, ed25519_identity(&ed25519), ed25519.to_scalar()),
        ] {
            let signature = with_small_r(&a, message);
            assert_eq!(verify(suite, &identity, message, &signature), REFUSED);
            let mut plain = signature;
            plain[63] &= 0x7f;
            let lenient = VerifyingKey::from(EdwardsPoint::mul_base(&a));
            assert!(lenient.verify(message, &plain.into()).is_ok());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn signed_verifies_and_nothing_near_it_does(
            private: [u8; 32],
            random in proptest::collection::vec(any::<u8>(), 64),
            message in proptest::collection::vec(any::<u8>(), 0..80),
            flipped in 0_usize..512,
        ) {
            let ed25519 = SigningKey::from_bytes(&private);
            for (suite, identity, signature) in [
                (SIGNAL, signal_identity(&private), xeddsa_sign(&private, &message, &random.try_into().unwrap())),
                (Suite::Ed25519X3dh, ed25519_identity(&ed25519), ed25519.sign(&message).to_bytes()),
            ] {
                let verifier = Verifier::new(suite, &identity);
                prop_assert_eq!(verifier.verify(&message, &signature), Ok(()));
                prop_assert_eq!(verifier.verify(&message, &with_s_plus_l(signature)), REFUSED);
                prop_assert_eq!(verifier.verify(&[&message[..], &[0]].concat(), &signature), REFUSED);
                let mut other = signature;
                other[flipped / 8] ^= 1 << (flipped % 8);
                prop_assert_eq!(verifier.verify(&message, &other), REFUSED);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(
            identity in proptest::collection::vec(any::<u8>(), 32),
            message in proptest::collection::vec(any::<u8>(), 0..40),
            signature in prop_oneof![
                proptest::collection::vec(any::<u8>(), 64),
                proptest::collection::vec(any::<u8>(), 0..130),
            ],
        ) {
            let typed = [&[0x05], &identity[..]].concat();
            for (suite, bytes) in [(SIGNAL, typed), (Suite::Ed25519X3dh, identity)] {
                if let Ok(key) = IdentityKey::parse(suite, &bytes) {
                    prop_assert_eq!(verify(suite, &key, &message, &signature), REFUSED);
                }
            }
        }
    }
}

//! Public key material, valid by type.
//!
//! Each type has a `parse` that takes the suite and the serialized key from the wire, and keeps exactly those bytes:
//! clients sign, compare and get back the same bytes.

use curve25519_dalek::{edwards::CompressedEdwardsY, montgomery::MontgomeryPoint};
use ml_kem::EncapsulationKey1024;
pub use sealwire_protocol::keys::Suite;

/// libsignal's type byte of an X25519 key.
const TYPE_X25519: u8 = 0x05;
/// libsignal's type byte of a round-3 Kyber1024 key.
const TYPE_KYBER_1024: u8 = 0x08;
/// libsignal's type byte of an ML-KEM-1024 key (FIPS 203).
const TYPE_ML_KEM_1024: u8 = 0x0A;

/// The u-coordinates of small order on Curve25519 and its twist (RFC 7748 §7), reduced. `MontgomeryPoint` compares mod
/// p and ignores the top bit, so each stands for all its encodings.
const LOW_ORDER: [MontgomeryPoint; 5] = [
    sparse(0x00, 0x00, 0x00),
    sparse(0x01, 0x00, 0x00),
    sparse(0xec, 0xff, 0x7f), // p - 1
    MontgomeryPoint([
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda, 0x09,
        0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ]),
    MontgomeryPoint([
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04, 0x44,
        0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ]),
];

/// The u-coordinate whose little-endian bytes are `first`, thirty times `middle`, `last`.
const fn sparse(first: u8, middle: u8, last: u8) -> MontgomeryPoint {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    MontgomeryPoint(bytes)
}

/// Why a key or a signature was refused; maps to the error code of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Wrong type byte, length or encoding, a point of low order, or a coefficient that is not below the modulus.
    #[error("the key is not valid in this suite")]
    InvalidKey,
    /// Wrong length, S ≥ L, R of small order, or not made by this identity over this message.
    #[error("the signature does not verify under the identity key")]
    InvalidSignature,
}

/// A serialized curve key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CurveKey {
    /// `0x05` and 32 bytes.
    Typed([u8; 33]),
    /// 32 bytes.
    Bare([u8; 32]),
}

impl CurveKey {
    /// Checks length and type byte.
    fn parse(suite: Suite, bytes: &[u8]) -> Result<Self, KeyError> {
        let key = if suite.has_type_byte() {
            bytes.try_into().ok().map(Self::Typed)
        } else {
            bytes.try_into().ok().map(Self::Bare)
        };
        key.filter(|key| !matches!(key, Self::Typed([tag, ..]) if *tag != TYPE_X25519)).ok_or(KeyError::InvalidKey)
    }

    /// [`CurveKey::parse`] for X25519: refuses the points that would make every shared secret zero.
    fn parse_x25519(suite: Suite, bytes: &[u8]) -> Result<Self, KeyError> {
        let key = Self::parse(suite, bytes)?;
        if LOW_ORDER.contains(&MontgomeryPoint(*key.point())) {
            return Err(KeyError::InvalidKey);
        }
        Ok(key)
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Typed(bytes) => bytes,
            Self::Bare(bytes) => bytes,
        }
    }

    /// The encoded point, without the type byte.
    fn point(&self) -> &[u8; 32] {
        match self {
            Self::Typed([_, point @ ..]) | Self::Bare(point) => point,
        }
    }
}

/// A device's identity key: 33 bytes (`0x05` and X25519) in the signal suites, 32 bytes (Ed25519) in `ed25519-x3dh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdentityKey(CurveKey);

impl IdentityKey {
    /// Parses a serialized identity key.
    ///
    /// An X25519 key on the twist is accepted, as by libsignal, although no signature verifies under it. An Ed25519 key
    /// must be the canonical encoding of a point (RFC 8032 §5.1.3).
    ///
    /// # Errors
    /// [`KeyError::InvalidKey`] for a wrong length or type byte, a point of small order, or an Ed25519 key that
    /// encodes no point.
    pub fn parse(suite: Suite, bytes: &[u8]) -> Result<Self, KeyError> {
        if suite.has_type_byte() {
            return CurveKey::parse_x25519(suite, bytes).map(Self);
        }
        let key = CurveKey::parse(suite, bytes)?;
        let encoded = CompressedEdwardsY(*key.point());
        encoded
            .decompress()
            .filter(|point| point.compress() == encoded && !point.is_small_order())
            .map(|_| Self(key))
            .ok_or(KeyError::InvalidKey)
    }

    /// The wire form, as parsed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The encoded point, without the type byte.
    pub(super) fn point(&self) -> &[u8; 32] {
        self.0.point()
    }
}

/// A signed or one-time X25519 prekey: 33 bytes (`0x05` first) in the signal suites, 32 bytes in `ed25519-x3dh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prekey(CurveKey);

impl Prekey {
    /// Parses a serialized prekey.
    ///
    /// # Errors
    /// [`KeyError::InvalidKey`] for a wrong length or type byte or a point of small order, in any encoding (RFC 7748
    /// §6.1).
    pub fn parse(suite: Suite, bytes: &[u8]) -> Result<Self, KeyError> {
        CurveKey::parse_x25519(suite, bytes).map(Self)
    }

    /// The wire form, as parsed; what a signature covers.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A last-resort or one-time PQ prekey: 1569 bytes, `0x08` (Kyber1024) or `0x0A` (ML-KEM-1024) first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PqPrekey(Box<[u8]>);

impl PqPrekey {
    /// Parses a serialized PQ prekey with the encapsulation key check of FIPS 203 §7.2 (length and modulus); Kyber1024
    /// has the same encoding.
    ///
    /// # Errors
    /// [`KeyError::InvalidKey`] for a wrong length or type byte, a coefficient ≥ 3329, or a suite without PQ keys.
    pub fn parse(suite: Suite, bytes: &[u8]) -> Result<Self, KeyError> {
        let [TYPE_KYBER_1024 | TYPE_ML_KEM_1024, encoded @ ..] = bytes else {
            return Err(KeyError::InvalidKey);
        };
        let encoded = encoded.try_into().map_err(|_| KeyError::InvalidKey)?;
        if !suite.has_pq() || EncapsulationKey1024::new(encoded).is_err() {
            return Err(KeyError::InvalidKey);
        }
        Ok(Self(bytes.into()))
    }

    /// The wire form, as parsed; what a signature covers.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A prekey's id, chosen by the client: 0 to 2³¹ − 1, unique per device and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(u32);

impl KeyId {
    /// The largest id.
    pub const MAX: Self = Self(i32::MAX.cast_unsigned());

    /// From a `u32` of a request or an `i64` of the store; `None` below zero and above [`KeyId::MAX`].
    #[must_use]
    pub fn new(id: impl Into<i64>) -> Option<Self> {
        u32::try_from(id.into()).ok().map(Self).filter(|id| *id <= Self::MAX)
    }

    /// The id as a number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl From<KeyId> for i64 {
    fn from(id: KeyId) -> Self {
        id.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::constants::{ED25519_BASEPOINT_COMPRESSED, EIGHT_TORSION};
    use proptest::prelude::*;

    const SIGNAL: [Suite; 2] = [Suite::SignalPqxdh, Suite::SignalX3dh];

    fn tagged(tag: u8, rest: &[u8]) -> Vec<u8> {
        [&[tag], rest].concat()
    }

    /// Both curve parsers give the same verdict on `u` in every suite that takes X25519 there.
    fn x25519_verdicts(u: [u8; 32]) -> Vec<bool> {
        let typed = tagged(TYPE_X25519, &u);
        SIGNAL
            .into_iter()
            .flat_map(|suite| [IdentityKey::parse(suite, &typed).is_ok(), Prekey::parse(suite, &typed).is_ok()])
            .chain([Prekey::parse(Suite::Ed25519X3dh, &u).is_ok()])
            .collect()
    }

    #[test]
    fn suites_are_named_as_in_the_protocol() {
        for suite in Suite::ALL {
            assert_eq!(Suite::parse(suite.as_str()), Some(suite));
        }
        assert_eq!(Suite::ALL.map(|s| s.to_string()), ["signal-pqxdh", "signal-x3dh", "ed25519-x3dh"]);
        assert_eq!(Suite::ALL.map(Suite::has_pq), [true, false, false]);
        assert_eq!(Suite::parse("Signal-PQXDH"), None);
    }

    #[test]
    fn the_low_order_list_is_what_eight_times_makes_zero() {
        let by_eight = [true, false, false, false];
        for point in LOW_ORDER {
            assert_eq!(point.mul_bits_be(by_eight.into_iter()).0, [0; 32]);
        }
        for point in EIGHT_TORSION {
            assert!(LOW_ORDER.contains(&point.to_montgomery()));
        }
    }

    #[test]
    fn low_order_points_are_refused_in_every_encoding() {
        let beyond_p = |n: u8| {
            let mut bytes = LOW_ORDER[2].0; // p - 1
            bytes[0] += 1 + n;
            bytes
        };
        let encodings = LOW_ORDER.map(|p| p.0).into_iter().chain([beyond_p(0), beyond_p(1)]);
        for encoding in encodings {
            for top_bit in [0, 0x80] {
                let mut u = encoding;
                u[31] |= top_bit;
                assert!(!x25519_verdicts(u).contains(&true), "{u:02x?}");
            }
        }
        for n in 2..=18 {
            assert!(!x25519_verdicts(beyond_p(n)).contains(&false), "p + {n}");
        }
    }

    #[test]
    fn curve_keys_have_an_exact_length_and_their_suites_type_byte() {
        let bare = ED25519_BASEPOINT_COMPRESSED.0; // a good point of either kind
        let typed = tagged(TYPE_X25519, &bare);
        for suite in Suite::ALL {
            let good = if suite.has_type_byte() { &typed[..] } else { &bare };
            assert_eq!(Prekey::parse(suite, good).unwrap().as_bytes(), good);
            assert_eq!(IdentityKey::parse(suite, good).unwrap().as_bytes(), good);
            let mut bad = vec![vec![], good[1..].to_vec(), [good, &[0]].concat()];
            bad.extend((0..=255).map(|tag| tagged(tag, &bare)).filter(|key| key != good));
            for bytes in bad {
                assert!(Prekey::parse(suite, &bytes).is_err());
                assert!(IdentityKey::parse(suite, &bytes).is_err());
            }
        }
    }

    #[test]
    fn an_ed25519_identity_is_a_canonical_point_of_large_order() {
        let parse = |bytes: &[u8]| IdentityKey::parse(Suite::Ed25519X3dh, bytes);
        let base = ED25519_BASEPOINT_COMPRESSED.0;
        assert_eq!(parse(&base).unwrap().as_bytes(), base);
        for point in EIGHT_TORSION {
            assert!(parse(&point.compress().0).is_err());
        }
        // y from p to 2^255 - 1, with both signs, and x = 0 with the sign set
        for low in 0xed..=0xff {
            for high in [0x7f, 0xff] {
                let mut y = [0xff; 32];
                (y[0], y[31]) = (low, high);
                assert!(parse(&y).is_err());
            }
        }
        let mut minus_zero = [0; 32];
        (minus_zero[0], minus_zero[31]) = (1, 0x80);
        assert!(parse(&minus_zero).is_err());
        let mut off_curve = [0; 32];
        off_curve[0] = 2;
        assert!(parse(&off_curve).is_err());
    }

    #[test]
    fn pq_keys_pass_the_fips_203_checks_under_the_pq_suite_only() {
        let key = |tag| tagged(tag, &[0; 1568]);
        for tag in 0..=255 {
            let good = matches!(tag, 0x08 | 0x0A);
            assert_eq!(PqPrekey::parse(Suite::SignalPqxdh, &key(tag)).is_ok(), good);
            assert!(PqPrekey::parse(Suite::SignalX3dh, &key(tag)).is_err());
            assert!(PqPrekey::parse(Suite::Ed25519X3dh, &key(tag)).is_err());
        }
        let parse = |bytes: &[u8]| PqPrekey::parse(Suite::SignalPqxdh, bytes);
        assert_eq!(parse(&key(0x0A)).unwrap().as_bytes(), key(0x0A));
        for length in [0, 1, 33, 1185, 1568, 1570] {
            assert!(parse(&vec![0x08; length]).is_err());
        }
        // coefficients are 12 bits, little-endian: the first and the last of 1024, at q - 1 and at q = 3329 = 0xd01
        for (at, coefficient, good) in [
            (1, [0x00, 0x0d], true),
            (1, [0x01, 0x0d], false),
            (1535, [0x00, 0xd0], true),
            (1535, [0x10, 0xd0], false),
            (1537, [0xff, 0xff], true), // rho may be anything
        ] {
            let mut bytes = key(0x08);
            bytes[at..at + 2].copy_from_slice(&coefficient);
            assert_eq!(parse(&bytes).is_ok(), good, "{coefficient:02x?} at {at}");
        }
    }

    #[test]
    fn key_ids_are_the_non_negative_i32() {
        assert_eq!(KeyId::new(0_u32).map(KeyId::get), Some(0));
        assert_eq!(KeyId::new((1_i64 << 31) - 1), Some(KeyId::MAX));
        assert_eq!(i64::from(KeyId::MAX), 2_147_483_647);
        assert_eq!(KeyId::new(1_u32 << 31), None);
        for id in [-1, 1 << 31, 1 << 32, i64::MIN, i64::MAX] {
            assert_eq!(KeyId::new(id), None);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_kept_as_they_are_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..70),
        ) {
            for suite in Suite::ALL {
                if let Ok(key) = IdentityKey::parse(suite, &bytes) {
                    prop_assert_eq!(key.as_bytes(), &bytes);
                }
                if let Ok(key) = Prekey::parse(suite, &bytes) {
                    prop_assert_eq!(key.as_bytes(), &bytes);
                }
                prop_assert!(PqPrekey::parse(suite, &bytes).is_err());
            }
        }
    }
}

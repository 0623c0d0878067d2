//! Private keys as text: PEM, or the base64 of the same DER.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    error::{KeyRejected, Unspecified},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RsaKeyPair},
};
use zeroize::Zeroizing;

/// A private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is neither PEM nor base64.
    #[error("not a private key in PKCS#8, as PEM or base64")]
    Text,
    /// The bytes are not a key of the kind that is needed.
    #[error("not {expected} in PKCS#8: {source}")]
    Key {
        /// The kind of key.
        expected: &'static str,
        /// What is wrong.
        source: KeyRejected,
    },
    /// The account is not the JSON of a Google service account. Does not contain it.
    #[error("not the JSON key of a Google service account: it needs {0}")]
    Account(&'static str),
    /// The operating system cannot provide randomness.
    #[error("the operating system cannot provide randomness")]
    Randomness(#[from] Unspecified),
}

/// Parses a key on P-256 that includes its public key, as those of `openssl genpkey` and of Apple do.
pub(crate) fn ecdsa(text: &str) -> Result<EcdsaKeyPair, KeyError> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der(text)?, &SystemRandom::new())
        .map_err(|source| KeyError::Key { expected: "a private key on P-256 with its public key", source })
}

/// Parses an RSA key of at least 2048 bits.
pub(crate) fn rsa(text: &str) -> Result<RsaKeyPair, KeyError> {
    RsaKeyPair::from_pkcs8(&der(text)?)
        .map_err(|source| KeyError::Key { expected: "an RSA private key of at least 2048 bits", source })
}

/// A new key on P-256: PKCS#8 in base64.
pub(crate) fn generate_ecdsa() -> Result<Zeroizing<String>, KeyError> {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())?;
    Ok(Zeroizing::new(STANDARD.encode(document)))
}

fn der(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut text = text.trim();
    if let Some(body) = text.strip_prefix("-----BEGIN PRIVATE KEY-----") {
        text = body.strip_suffix("-----END PRIVATE KEY-----").ok_or(KeyError::Text)?;
    }
    let base64: Zeroizing<String> = Zeroizing::new(text.split_ascii_whitespace().collect());
    STANDARD.decode(base64.as_str()).map(Zeroizing::new).map_err(|_| KeyError::Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_key_is_read_as_base64_and_as_pem() {
        let text = generate_ecdsa().unwrap();
        assert!(ecdsa(&text).is_ok());
        let (first, second) = text.split_at(64);
        assert!(
            ecdsa(&format!("-----BEGIN PRIVATE KEY-----\r\n{first}\r\n{second}\n-----END PRIVATE KEY-----\n")).is_ok()
        );
        assert!(!text.is_empty() && *text != *generate_ecdsa().unwrap());
    }

    #[test]
    fn other_texts_are_refused_and_not_shown() {
        for text in [
            "",
            "secret",
            "c2VjcmV0",
            "-----BEGIN PRIVATE KEY-----\nc2VjcmV0",
            "-----BEGIN EC PRIVATE KEY-----\nc2VjcmV0",
        ] {
            let error = ecdsa(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("ecret"), "{error:?}");
            assert!(rsa(text).is_err());
        }
        assert!(rsa(&generate_ecdsa().unwrap()).is_err());
    }
}

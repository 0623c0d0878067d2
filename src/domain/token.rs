//! Session tokens: 256 random bits, of which the server stores only the hash.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::CryptoRng;
use zeroize::Zeroizing;

/// A bearer token. Its text form is unpadded base64url, 43 characters.
#[derive(Clone)]
pub struct Token(Zeroizing<[u8; 32]>);

/// BLAKE3 hash of a token, as `sessions.token_hash` stores it. A plain hash suffices, since a token cannot be guessed.
pub type TokenHash = [u8; 32];

impl Token {
    /// Generates a random token.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut());
        Self(bytes)
    }

    /// A token of these 32 bytes, which must be as hard to guess as random ones.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Parses the text form; `None` if it is invalid.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        let length = URL_SAFE_NO_PAD.decode_slice(text, bytes.as_mut()).ok()?;
        (length == bytes.len()).then_some(Self(bytes))
    }

    /// The text form. Used only in the reply that issues the token.
    #[must_use]
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(*self.0)
    }

    /// The hash that the database stores.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        blake3::hash(self.0.as_ref()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_text_form_of_a_token_round_trips() {
        let token = Token::generate(&mut StdRng::seed_from_u64(7));
        let text = token.reveal();
        assert_eq!(text.len(), 43);
        assert_eq!(Token::parse(&text).unwrap().hash(), token.hash());
        for wrong in ["", "x", &text[1..], &format!("{text}A"), &format!("{text}="), &text.replace(&text[..1], "+")] {
            assert!(Token::parse(wrong).is_none(), "{wrong}");
        }
        assert_eq!(format!("{token:?}"), "Token(..)");
    }
}

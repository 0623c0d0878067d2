//! The `content` of a message: a text encrypted with an AEAD. In a first message it comes after what the other side needs
//! for X3DH. To the server, content is only bytes, and `type` a number.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sealwire::clock::Entropy;
use serde_json::Value;

use crate::client::Outcome;

/// The `type` of a message that starts a session, and of later ones; the numbers are libsignal's.
pub const FIRST: u64 = 3;
pub const LATER: u64 = 2;

/// Encrypts a text. The associated data, which both sides know, binds it to its sender and message id, so that it cannot be
/// passed off as another message.
pub fn seal(secret: &[u8; 32], entropy: &Entropy, data: &str, text: &str) -> Outcome<Vec<u8>> {
    let nonce: [u8; NONCE_LEN] = entropy.draw(rand::RngExt::random);
    let mut sealed = text.as_bytes().to_vec();
    key(secret)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(data), &mut sealed)
        .map_err(|_| "cannot encrypt the text")?;
    Ok([&nonce[..], &sealed].concat())
}

/// Decrypts what [`seal`] encrypted with the same secret and associated data.
pub fn open(secret: &[u8; 32], data: &str, sealed: &[u8]) -> Outcome<String> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or("the ciphertext has no nonce")?;
    let mut text = sealed.to_vec();
    let text = key(secret)?
        .open_in_place(
            Nonce::try_assume_unique_for_key(nonce).map_err(|_| "the nonce is invalid")?,
            Aad::from(data),
            &mut text,
        )
        .map_err(|_| "cannot decrypt: the message was encrypted for another device, or was changed")?;
    Ok(String::from_utf8(text.to_vec())?)
}

/// The content of a first message: one line of JSON, then the ciphertext.
pub fn with_hello(hello: &Value, sealed: &[u8]) -> Vec<u8> {
    [hello.to_string().as_bytes(), b"\n", sealed].concat()
}

/// Splits the content of a first message into the two parts of [`with_hello`].
pub fn split_hello(content: &[u8]) -> Outcome<(Value, &[u8])> {
    let end = content.iter().position(|byte| *byte == b'\n').ok_or("a first message has no line of JSON")?;
    Ok((serde_json::from_slice(&content[..end])?, &content[end + 1..]))
}

fn key(secret: &[u8; 32]) -> Outcome<LessSafeKey> {
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, secret).map_err(|_| "a key does not have 32 bytes")?))
}

//! The `content` of a message: a text encrypted with an AEAD. In a first message it comes after what the other side needs
//! for X3DH. To the server, content is only bytes, and `type` a number.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sealwire::clock::Entropy;
use sealwire_client::protocol::value::Base64;
use serde::{Deserialize, Serialize};

use crate::{Outcome, keys::Secret};

/// The `type` of a message that starts a session, and of later ones; the numbers are libsignal's.
const FIRST: u8 = 3;
const LATER: u8 = 2;

/// What the receiver of a first message needs to derive the secret. All of it is public.
#[derive(Serialize, Deserialize)]
pub struct Hello {
    pub identity_key: Base64,
    pub ephemeral_key: Base64,
    pub signed_prekey_id: u32,
    pub one_time_prekey_id: Option<u32>,
}

/// Encrypts a text. Returns the type and content of the message: with `hello`, of a first one. The context, which both
/// sides know, binds the text to its sender and message id, so that it cannot be passed off as another message.
pub fn seal(
    secret: &Secret,
    entropy: &Entropy,
    context: &str,
    text: &str,
    hello: Option<&Hello>,
) -> Outcome<(u8, Vec<u8>)> {
    let nonce: [u8; NONCE_LEN] = entropy.draw(rand::RngExt::random);
    let mut sealed = text.as_bytes().to_vec();
    key(secret)?
        .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context), &mut sealed)
        .map_err(|_| "cannot encrypt the text")?;
    let sealed = [&nonce[..], &sealed].concat();
    Ok(match hello {
        // One line of JSON, then the ciphertext.
        Some(hello) => (FIRST, [serde_json::to_vec(hello)?.as_slice(), b"\n", &sealed].concat()),
        None => (LATER, sealed),
    })
}

/// Splits the content of a message into what a first one has in addition, and the ciphertext.
pub fn split(kind: u8, content: &[u8]) -> Outcome<(Option<Hello>, &[u8])> {
    if kind != FIRST {
        return Ok((None, content));
    }
    let end = content.iter().position(|byte| *byte == b'\n').ok_or("a first message has no line of JSON")?;
    Ok((Some(serde_json::from_slice(&content[..end])?), &content[end + 1..]))
}

/// Decrypts what [`seal`] encrypted with the same secret and context.
pub fn open(secret: &Secret, context: &str, sealed: &[u8]) -> Outcome<String> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN).ok_or("the ciphertext has no nonce")?;
    let mut text = sealed.to_vec();
    let text = key(secret)?
        .open_in_place(
            Nonce::try_assume_unique_for_key(nonce).map_err(|_| "the nonce is invalid")?,
            Aad::from(context),
            &mut text,
        )
        .map_err(|_| "the message was encrypted for another device, or was changed")?;
    Ok(String::from_utf8(text.to_vec())?)
}

fn key(secret: &Secret) -> Outcome<LessSafeKey> {
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, secret).map_err(|_| "a key does not have 32 bytes")?))
}

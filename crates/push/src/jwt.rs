//! Signed JSON Web Tokens (RFC 7519): VAPID and APNs use ES256, Google uses RS256 (RFC 7518 §3).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde::Serialize;

/// The header of a token.
#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
}

/// A token signed with ECDSA on P-256.
pub(crate) fn es256(
    key: &EcdsaKeyPair,
    key_id: Option<&str>,
    claims: &impl Serialize,
    random: &SystemRandom,
) -> Result<String, Unspecified> {
    let mut token = unsigned("ES256", key_id, claims)?;
    let signature = key.sign(random, token.as_bytes())?;
    append_signature(&mut token, signature.as_ref());
    Ok(token)
}

/// A token signed with RSASSA-PKCS1-v1_5.
pub(crate) fn rs256(
    key: &RsaKeyPair,
    key_id: Option<&str>,
    claims: &impl Serialize,
    random: &SystemRandom,
) -> Result<String, Unspecified> {
    let mut token = unsigned("RS256", key_id, claims)?;
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, random, token.as_bytes(), &mut signature)?;
    append_signature(&mut token, &signature);
    Ok(token)
}

fn unsigned(alg: &'static str, kid: Option<&str>, claims: &impl Serialize) -> Result<String, Unspecified> {
    let header = serde_json::to_vec(&Header { alg, typ: "JWT", kid }).map_err(|_| Unspecified)?;
    let claims = serde_json::to_vec(claims).map_err(|_| Unspecified)?;
    Ok(format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims)))
}

fn append_signature(token: &mut String, signature: &[u8]) {
    token.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, token);
}

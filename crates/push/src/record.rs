//! Encryption of Web Push messages: RFC 8291, which derives the key of one `aes128gcm` record (RFC 8188).

use ring::{
    aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral},
    error::Unspecified,
    hkdf::{HKDF_SHA256, KeyType, Salt},
    rand::{SecureRandom, SystemRandom},
};

/// Bytes of an uncompressed point on P-256.
pub(crate) const PUBLIC_KEY: usize = 65;
/// Bytes of the authentication secret (RFC 8291 §3.2).
pub(crate) const AUTH_SECRET: usize = 16;
const SALT: usize = 16;
/// The record size in the header. It must not be smaller than the record (RFC 8188 §2); ours is the only one.
const RECORD_SIZE: u32 = 4096;
/// Ends the plaintext of the last record. Zeros follow as padding (RFC 8188 §2).
const LAST_RECORD: u8 = 2;

/// The keys of a user agent's subscription. Not `Debug`: both are secrets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) public_key: [u8; PUBLIC_KEY],
    pub(crate) auth_secret: [u8; AUTH_SECRET],
}

/// Encrypts `plaintext`, padded to `padded` bytes, for the user agent: the body of a request with
/// `Content-Encoding: aes128gcm`.
///
/// The key pair and the salt are new for each message, from ring's generator; ring accepts no other source of private
/// keys, since one that repeats reveals the plaintexts.
///
/// # Errors
/// If the operating system cannot provide randomness, if the public key is not on the curve, or if `plaintext` is
/// longer than `padded`.
pub(crate) fn encrypt(
    subscription: &Subscription,
    plaintext: &[u8],
    padded: usize,
    random: &SystemRandom,
) -> Result<Vec<u8>, Unspecified> {
    let private_key = EphemeralPrivateKey::generate(&ECDH_P256, random)?;
    let public_key: [u8; PUBLIC_KEY] =
        private_key.compute_public_key()?.as_ref().try_into().map_err(|_| Unspecified)?;
    let mut salt = [0; SALT];
    random.fill(&mut salt)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, subscription.public_key);
    agree_ephemeral(private_key, &peer, |secret| seal(subscription, &public_key, secret, salt, plaintext, padded))?
}

/// Encrypts with the shared `secret` of the subscription's key and `public_key`, which is the sender's.
fn seal(
    subscription: &Subscription,
    public_key: &[u8; PUBLIC_KEY],
    secret: &[u8],
    salt: [u8; SALT],
    plaintext: &[u8],
    padded: usize,
) -> Result<Vec<u8>, Unspecified> {
    if plaintext.len() > padded {
        return Err(Unspecified);
    }
    let (key, nonce) = derive(subscription, public_key, secret, &salt)?;
    let mut record = Vec::with_capacity(padded + 1 + AES_128_GCM.tag_len());
    record.extend_from_slice(plaintext);
    record.push(LAST_RECORD);
    record.resize(padded + 1, 0);
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key)?);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record)?;

    let mut body = Vec::with_capacity(SALT + 4 + 1 + PUBLIC_KEY + record.len());
    body.extend_from_slice(&salt);
    body.extend_from_slice(&RECORD_SIZE.to_be_bytes());
    body.push(u8::try_from(PUBLIC_KEY).map_err(|_| Unspecified)?);
    body.extend_from_slice(public_key);
    body.extend_from_slice(&record);
    Ok(body)
}

/// The content encryption key and the nonce of the first record (RFC 8291 §3.4).
fn derive(
    subscription: &Subscription,
    public_key: &[u8; PUBLIC_KEY],
    secret: &[u8],
    salt: &[u8; SALT],
) -> Result<([u8; 16], [u8; NONCE_LEN]), Unspecified> {
    let mut input_key = [0; 32];
    let info = [b"WebPush: info\0".as_slice(), &subscription.public_key, public_key];
    hkdf(&subscription.auth_secret, secret, &info, &mut input_key)?;
    let mut key = [0; 16];
    hkdf(salt, &input_key, &[b"Content-Encoding: aes128gcm\0"], &mut key)?;
    let mut nonce = [0; NONCE_LEN];
    hkdf(salt, &input_key, &[b"Content-Encoding: nonce\0"], &mut nonce)?;
    Ok((key, nonce))
}

fn hkdf(salt: &[u8], secret: &[u8], info: &[&[u8]], output: &mut [u8]) -> Result<(), Unspecified> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    Salt::new(HKDF_SHA256, salt).extract(secret).expand(info, Length(output.len()))?.fill(output)
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

    fn decode(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    fn array<const N: usize>(text: &str) -> [u8; N] {
        decode(text).try_into().unwrap()
    }

    // RFC 8291 §5 and appendix A.
    const PLAINTEXT: &[u8] = b"When I grow up, I want to be a watermelon";
    const UA_PUBLIC: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AS_PUBLIC: &str = "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const ECDH_SECRET: &str = "kyrL1jIIOHEzg3sM2ZWRHDRB62YACZhhSlknJ672kSs";
    const RFC_SALT: &str = "DGv6ra1nlYgDCS1FRnbzlw";
    const BODY: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";

    fn subscription() -> Subscription {
        Subscription { public_key: array(UA_PUBLIC), auth_secret: array(AUTH) }
    }

    #[test]
    fn the_keys_of_rfc_8291_are_derived() {
        let (key, nonce) = derive(&subscription(), &array(AS_PUBLIC), &decode(ECDH_SECRET), &array(RFC_SALT)).unwrap();
        assert_eq!(key, array("oIhVW04MRdy2XN9CiKLxTg"));
        assert_eq!(nonce, array("4h_95klXJ5E_qnoN"));
    }

    #[test]
    fn the_message_of_rfc_8291_is_sealed() {
        let secret = decode(ECDH_SECRET);
        let body =
            seal(&subscription(), &array(AS_PUBLIC), &secret, array(RFC_SALT), PLAINTEXT, PLAINTEXT.len()).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.encode(body), BODY);
    }

    /// Decrypts as a user agent does.
    fn open(private_key: EphemeralPrivateKey, subscription: &Subscription, body: &[u8]) -> Vec<u8> {
        let (salt, rest) = body.split_at(SALT);
        let (head, rest) = rest.split_at(5);
        assert_eq!(head, [0, 0, 16, 0, 65]);
        let (sender, record) = rest.split_at(PUBLIC_KEY);
        let sender: [u8; PUBLIC_KEY] = sender.try_into().unwrap();
        agree_ephemeral(private_key, &UnparsedPublicKey::new(&ECDH_P256, sender), |secret| {
            let (key, nonce) = derive(subscription, &sender, secret, salt.try_into().unwrap()).unwrap();
            let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).unwrap());
            let mut record = record.to_vec();
            let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record).unwrap();
            let end = opened.iter().rposition(|&byte| byte != 0).unwrap();
            assert_eq!(opened[end], LAST_RECORD);
            opened[..end].to_vec()
        })
        .unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn user_agents_decrypt_what_was_encrypted(plaintext in proptest::collection::vec(any::<u8>(), 0..64)) {
            let random = SystemRandom::new();
            let private_key = EphemeralPrivateKey::generate(&ECDH_P256, &random).unwrap();
            let public_key = private_key.compute_public_key().unwrap().as_ref().try_into().unwrap();
            let subscription = Subscription { public_key, auth_secret: array(AUTH) };
            let body = encrypt(&subscription, &plaintext, 64, &random).unwrap();
            prop_assert_eq!(body.len(), 16 + 4 + 1 + 65 + 64 + 1 + 16);
            prop_assert_eq!(open(private_key, &subscription, &body), plaintext);
        }
    }

    #[test]
    fn each_message_has_its_own_key_and_salt() {
        let body = || encrypt(&subscription(), b"", 0, &SystemRandom::new()).unwrap();
        let (first, second) = (body(), body());
        assert_ne!(first[..16], second[..16]);
        assert_ne!(first[21..86], second[21..86]);
    }

    #[test]
    fn what_is_longer_than_the_padding_is_not_sent() {
        assert!(encrypt(&subscription(), b"123", 2, &SystemRandom::new()).is_err());
    }

    #[test]
    fn a_point_off_the_curve_is_refused() {
        let mut subscription = subscription();
        subscription.public_key[64] ^= 1;
        assert!(encrypt(&subscription, b"", 0, &SystemRandom::new()).is_err());
    }
}

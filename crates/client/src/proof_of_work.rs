//! Proofs of work, with which a server lets a client go on beyond a limit of signing in: a nonce such that
//! SHA-256(salt ‖ nonce) begins with some zero bits.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sealwire_protocol::{
    auth::{OtpRequest, VerifyRequest, WorkProof},
    error::{ErrorBody, ErrorDetails, HttpErrorBody, OfferedProof, PROOF_ALGORITHM},
    users::{ChangeEmailRequest, DeleteAccountRequest},
    value::{Lenient, Text},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::error::HttpError;

/// The hardest proof that is tried: about half a minute on one core. Servers ask for 24 bits at most.
const MAX_BITS: u32 = 28;

/// How often a request is repeated with another proof, such as if one became too old while it was computed.
pub(crate) const MAX_PROOFS: usize = 3;

/// A proof that the server asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Offer(OfferedProof);

impl Offer {
    /// The offer in the body of an error, if it has one that this version understands.
    pub(crate) fn in_body(body: &[u8]) -> Option<Self> {
        Self::of(&serde_json::from_slice::<HttpErrorBody>(body).ok()?.error)
    }

    /// The offer of an error, if it has one that this version understands.
    pub(crate) fn of(error: &ErrorBody) -> Option<Self> {
        match &error.details {
            Some(ErrorDetails::Proof { proof }) if proof.algorithm == PROOF_ALGORITHM => Some(Self(proof.clone())),
            _ => None,
        }
    }

    /// Finds the nonce, on a thread for blocking work. Stops early if the future is dropped.
    ///
    /// # Errors
    /// If the proof is too hard.
    pub(crate) async fn solve(self) -> Result<WorkProof, HttpError> {
        let bits = u32::from(self.0.bits);
        if bits > MAX_BITS {
            return Err(HttpError::ProofTooHard { bits });
        }
        let cancelled = Cancelled::default();
        let flag = cancelled.0.clone();
        let proof = tokio::task::spawn_blocking(move || self.search(&flag)).await;
        proof.map_err(|error| HttpError::Transport(error.into()))?
    }

    fn search(self, cancelled: &AtomicBool) -> Result<WorkProof, HttpError> {
        let Self(OfferedProof { salt: text_of_salt, bits, .. }) = self;
        let salt = URL_SAFE_NO_PAD.decode(&text_of_salt).map_err(|error| HttpError::Transport(error.into()))?;
        let salted = Sha256::new().chain_update(&salt);
        for number in 0_u64.. {
            let nonce = number.to_be_bytes();
            let hash: [u8; 32] = salted.clone().chain_update(nonce).finalize().into();
            if zero_bits(&hash) >= u32::from(bits) {
                let text = |text: &str| Text::parse(text).ok_or(HttpError::InvalidText("the salt"));
                return Ok(WorkProof { salt: text(&text_of_salt)?, nonce: text(&URL_SAFE_NO_PAD.encode(nonce))? });
            }
            if number.is_multiple_of(1024) && cancelled.load(Ordering::Relaxed) {
                break;
            }
        }
        Err(HttpError::TimedOut)
    }
}

/// A request that may exceed a limit with a proof of work.
pub(crate) trait PaidByProof: Serialize + Send + Sync {
    fn proof(&mut self) -> &mut Option<Lenient<WorkProof>>;
}

impl PaidByProof for OtpRequest {
    fn proof(&mut self) -> &mut Option<Lenient<WorkProof>> {
        &mut self.proof
    }
}

impl PaidByProof for VerifyRequest {
    fn proof(&mut self) -> &mut Option<Lenient<WorkProof>> {
        &mut self.proof
    }
}

impl PaidByProof for DeleteAccountRequest {
    fn proof(&mut self) -> &mut Option<Lenient<WorkProof>> {
        &mut self.proof
    }
}

impl PaidByProof for ChangeEmailRequest {
    fn proof(&mut self) -> &mut Option<Lenient<WorkProof>> {
        &mut self.proof
    }
}

/// Set when it is dropped.
#[derive(Default)]
struct Cancelled(Arc<AtomicBool>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The zero bits with which a hash begins.
fn zero_bits(hash: &[u8; 32]) -> u32 {
    let whole = hash.iter().take_while(|byte| **byte == 0).count();
    let rest = hash.get(whole).map_or(0, |byte| byte.leading_zeros());
    u32::try_from(whole * 8).unwrap_or(u32::MAX).saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(bits: u32, algorithm: &str) -> Vec<u8> {
        let proof = format!(r#"{{"algorithm":"{algorithm}","bits":{bits},"salt":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"}}"#);
        format!(r#"{{"error":{{"code":"rate_limited","message":"","retryable":true,"details":{{"proof":{proof}}}}}}}"#)
            .into()
    }

    #[tokio::test]
    async fn a_proof_has_the_zero_bits_that_were_asked_for() {
        let offer = Offer::in_body(&body(12, PROOF_ALGORITHM)).unwrap();
        let proof = offer.solve().await.unwrap();
        let [salt, nonce] = [&proof.salt, &proof.nonce].map(|text| URL_SAFE_NO_PAD.decode(text.as_str()).unwrap());
        assert_eq!((salt.len(), nonce.len() <= 32), (24, true));
        let hash: [u8; 32] = Sha256::digest([salt, nonce].concat()).into();
        assert_eq!((hash[0], hash[1] >> 4), (0, 0));
    }

    #[test]
    fn zero_bits_are_counted_over_bytes() {
        assert_eq!(zero_bits(&[0xff; 32]), 0);
        assert_eq!(zero_bits(&[0; 32]), 256);
        let mut hash = [0; 32];
        hash[2] = 0x10;
        assert_eq!(zero_bits(&hash), 19);
    }

    #[tokio::test]
    async fn offers_that_cannot_be_met_are_not_tried() {
        assert_eq!(Offer::in_body(&body(12, "of a newer server")), None);
        assert_eq!(Offer::in_body(b"<html>"), None);
        assert_eq!(Offer::in_body(br#"{"error":{"code":"rate_limited","message":"","retryable":true}}"#), None);
        let error = Offer::in_body(&body(60, PROOF_ALGORITHM)).unwrap().solve().await.unwrap_err();
        assert!(matches!(error, HttpError::ProofTooHard { bits: 60 }) && !error.retryable());
    }
}

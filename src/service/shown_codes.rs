//! Keeps the latest codes in memory, so that the try-it page can show them on a development machine.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use crate::domain::{
    ChallengeId, Timestamp,
    otp::{LIFETIME, OtpCode},
};

/// Maximum number of codes that are kept. Beyond it the oldest is forgotten.
const MAX_CODES: usize = 1024;

/// The latest codes, oldest first.
#[derive(Default)]
pub struct ShownCodes(Mutex<VecDeque<ShownCode>>);

struct ShownCode {
    challenge: ChallengeId,
    code: OtpCode,
    made_at: Timestamp,
}

impl ShownCodes {
    /// Adds a code, and forgets those that have expired.
    pub fn add(&self, challenge: ChallengeId, code: OtpCode, now: Timestamp) {
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        codes.retain(|known| known.made_at + LIFETIME > now);
        if codes.len() == MAX_CODES {
            codes.pop_front();
        }
        codes.push_back(ShownCode { challenge, code, made_at: now });
    }

    /// Returns the code of a challenge; `None` if it is unknown or has expired.
    pub fn get(&self, challenge: ChallengeId, now: Timestamp) -> Option<OtpCode> {
        let codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = codes.iter().find(|known| known.challenge == challenge && known.made_at + LIFETIME > now);
        known.map(|known| known.code.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;

    #[test]
    fn codes_are_forgotten_when_they_expire_and_when_there_are_too_many() {
        let codes = ShownCodes::default();
        let start = Timestamp::parse("2026-06-01T12:00:00Z").unwrap();
        let id = |n: usize| ChallengeId(Uuid::from_u128(n as u128));
        let code = |n: usize| OtpCode::parse(&format!("{n:08}")).unwrap();
        for n in 0..=MAX_CODES {
            codes.add(id(n), code(n), start);
        }
        assert_eq!(codes.get(id(0), start), None);
        assert_eq!(codes.get(id(1), start), Some(code(1)));
        assert_eq!(codes.get(id(MAX_CODES), start), Some(code(MAX_CODES)));
        assert_eq!(codes.get(id(1), start + LIFETIME), None);
        codes.add(id(5000), code(5000), start + LIFETIME + Duration::from_secs(1));
        assert_eq!(codes.0.lock().unwrap().len(), 1);
    }
}

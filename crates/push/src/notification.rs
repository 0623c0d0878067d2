//! What is sent: a notification says that there is mail, or confirms a registration.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;

/// A notification to one target.
#[derive(Clone, Debug)]
pub struct Notification {
    /// What it says.
    pub payload: Payload,
    /// How soon it must arrive, against the battery of the device.
    pub urgency: Urgency,
    /// How long the push service keeps it for a device that it cannot reach. Push services keep none for longer than
    /// four weeks; more is sent as four weeks.
    pub time_to_live: Duration,
}

/// What a notification says. Of the notifications with the same kind of payload that a push service keeps for a
/// target, a newer one replaces the older.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// There is mail.
    Wake,
    /// Confirms a registration: only the device that receives the notification knows the nonce.
    Confirm {
        /// What the device shows to the server.
        nonce: Nonce,
    },
}

/// The four weeks that push services keep notifications for at most.
const MAX_TIME_TO_LIVE: Duration = Duration::from_hours(28 * 24);

impl Notification {
    /// The seconds that the push service keeps the notification.
    pub(crate) fn ttl_seconds(&self) -> u64 {
        self.time_to_live.min(MAX_TIME_TO_LIVE).as_secs()
    }
}

impl Payload {
    /// The fields that the client receives.
    pub(crate) fn fields(&self) -> Fields {
        match self {
            Self::Wake => Fields { sealwire: "wake", nonce: None },
            Self::Confirm { nonce } => Fields { sealwire: "confirm", nonce: Some(nonce.to_string()) },
        }
    }

    /// The name under which a newer notification replaces an older one: the `Topic` of Web Push, the collapse id of
    /// APNs, the collapse key of FCM. One of each suffices, since it is looked at per target.
    pub(crate) fn topic(&self) -> &'static str {
        match self {
            Self::Wake => "sealwire-wake",
            Self::Confirm { .. } => "sealwire-confirm",
        }
    }
}

/// The fields of a payload, as the client receives them.
#[derive(Serialize)]
pub(crate) struct Fields {
    sealwire: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

/// A secret of 16 random bytes. `Display` is unpadded base64url; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Nonce([u8; 16]);

impl Nonce {
    /// The nonce of these bytes, which must be random.
    #[must_use]
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce")
    }
}

/// How soon a notification must arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// When it suits the device.
    Normal,
    /// At once.
    High,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(payload: &Payload) -> String {
        serde_json::to_string(&payload.fields()).unwrap()
    }

    #[test]
    fn payloads_have_the_fields_of_the_protocol() {
        assert_eq!(json(&Payload::Wake), r#"{"sealwire":"wake"}"#);
        let confirm = Payload::Confirm { nonce: Nonce::new([0xfb; 16]) };
        assert_eq!(json(&confirm), r#"{"sealwire":"confirm","nonce":"-_v7-_v7-_v7-_v7-_v7-w"}"#);
        assert!(!format!("{confirm:?}").contains("-_v7"));
    }

    #[test]
    fn topics_are_valid_for_web_push() {
        // RFC 8030 §5.4: at most 32 characters of the base64url alphabet.
        for payload in [Payload::Wake, Payload::Confirm { nonce: Nonce::new([0; 16]) }] {
            let topic = payload.topic();
            assert!(
                topic.len() <= 32 && topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
                "{topic}"
            );
        }
    }

    #[test]
    fn times_to_live_are_limited_to_four_weeks() {
        let of = |time_to_live| Notification { payload: Payload::Wake, urgency: Urgency::High, time_to_live };
        assert_eq!(of(Duration::from_millis(1900)).ttl_seconds(), 1);
        assert_eq!(of(Duration::MAX).ttl_seconds(), 2_419_200);
    }
}

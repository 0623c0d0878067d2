//! Push targets: where a push service takes wake-ups for a device.

use std::{fmt, time::Duration};

use super::Timestamp;

pub use sealwire_protocol::push::{PushKind, PushState};

/// Size of the nonce that confirms a target.
pub const NONCE_BYTES: usize = 16;
/// How long a nonce confirms its target.
pub const NONCE_LIFETIME: Duration = Duration::from_mins(10);
/// How long after a wake-up, or the last ack that follows it, the next one follows while messages wait.
pub const WAKE_AGAIN_AFTER: Duration = Duration::from_hours(6);

/// Failures count no more when the next push follows so long after the time at which it was to be repeated: the device
/// has acked meanwhile, and it is for another message.
pub const FAILURES_KEPT: Duration = Duration::from_mins(1);

/// The pauses after failures double from the first to the second.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);
/// A push service cannot ask for a shorter pause than the doubled one, up to this: the pauses would be a loop without end.
const SHORTEST_ASKED_PAUSE: Duration = Duration::from_mins(1);
/// A push service cannot ask for a longer pause.
const LONGEST_ASKED_PAUSE: Duration = Duration::from_hours(24);
/// How long a wake-up is tried again before it is given up.
const GIVE_UP_AFTER: Duration = Duration::from_hours(24);

/// The push service of a device, and its address there. All texts but the topic are secrets: `Debug` shows only the kind.
#[derive(Clone, PartialEq, Eq)]
pub enum PushTarget {
    /// The subscription of a browser or of a `UnifiedPush` app.
    WebPush {
        /// The URL that pushes are sent to.
        endpoint: String,
        /// The public key of the subscription, in base64url.
        p256dh: String,
        /// The secret of the subscription, in base64url.
        auth: String,
    },
    /// An app on a device of Apple.
    Apns {
        /// The device token, in hexadecimal.
        token: String,
        /// The app's bundle id.
        topic: String,
        /// Whether the token is for the development environment.
        is_sandbox: bool,
    },
    /// An app that Firebase Cloud Messaging reaches.
    Fcm {
        /// The registration token.
        token: String,
    },
}

impl fmt::Debug for PushTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PushTarget({}, ..)", self.kind().name())
    }
}

impl PushTarget {
    /// The kind of the target.
    #[must_use]
    pub fn kind(&self) -> PushKind {
        match self {
            Self::WebPush { .. } => PushKind::Webpush,
            Self::Apns { .. } => PushKind::Apns,
            Self::Fcm { .. } => PushKind::Fcm,
        }
    }
}

/// The secret that a push carries to the device, by which the device confirms its target. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PushNonce(pub [u8; NONCE_BYTES]);

impl fmt::Debug for PushNonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PushNonce(..)")
    }
}

impl PushNonce {
    /// The hash that is stored.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        blake3::hash(&self.0).into()
    }
}

/// The failures of pushes to a target since the last one that succeeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushFailures {
    /// When the first failed.
    pub since: Option<Timestamp>,
    /// How many failed.
    pub count: u32,
}

/// How often a nonce is sent at most.
const NONCE_TRIES: u32 = 5;

/// The pause after a failed try to send a nonce that follows `failures` others; `None` if it is not tried again. A push
/// service can ask for a longer pause, but not for a shorter one.
#[must_use]
pub fn nonce_pause(failures: u32, retry_after: Option<Duration>) -> Option<Duration> {
    (failures + 1 < NONCE_TRIES).then(|| PushFailures::pause(failures).max(retry_after.unwrap_or_default()))
}

impl PushFailures {
    /// The pause after a failure that follows `count` others.
    #[must_use]
    pub fn pause(count: u32) -> Duration {
        FIRST_PAUSE.saturating_mul(1 << count.min(16)).min(LONGEST_PAUSE)
    }

    /// Counts a failure. Returns the failures with it, and when to try again; `None` if the push is given up.
    #[must_use]
    pub fn after(self, retry_after: Option<Duration>, now: Timestamp) -> (Self, Option<Timestamp>) {
        let since = self.since.unwrap_or(now);
        let own = Self::pause(self.count);
        let asked = |pause: Duration| pause.clamp(own.min(SHORTEST_ASKED_PAUSE), LONGEST_ASKED_PAUSE);
        let next = now + retry_after.map_or(own, asked);
        let failures = Self { since: Some(since), count: self.count.saturating_add(1) };
        (failures, (next <= since + GIVE_UP_AFTER).then_some(next))
    }
}

/// What has happened since a mailbox was empty. The numbers are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WakeState {
    /// The device was not woken.
    #[default]
    Waiting = 0,
    /// It was woken, and has acked nothing since.
    Woken = 1,
    /// It was woken, and has acked something since. So it knows of the rest.
    Acked = 2,
}

impl From<i32> for WakeState {
    fn from(stored: i32) -> Self {
        match stored {
            1 => Self::Woken,
            2 => Self::Acked,
            _ => Self::Waiting,
        }
    }
}

/// When a device is to be woken, as its mailbox records it.
///
/// A wake-up is due when an urgent envelope was stored and nothing was acked for a while. It is judged by acks and not by
/// connections, because a connection may be dead without anybody knowing. There is one wake-up until the device acks
/// something, and another one six hours after the last wake-up or ack while messages wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WakeUp {
    /// Whether the device has an active push target.
    pub has_target: bool,
    /// When the next wake-up is due, if any.
    pub due_at: Option<Timestamp>,
    /// What has happened since the mailbox was empty.
    pub state: WakeState,
}

impl WakeUp {
    /// Records that an urgent envelope was stored. `was_empty` says whether the mailbox was empty before.
    pub fn note_stored(&mut self, was_empty: bool, after: Duration, now: Timestamp) {
        let is_news = match self.state {
            WakeState::Waiting => self.due_at.is_none(),
            WakeState::Woken => was_empty,
            WakeState::Acked => true,
        };
        if self.has_target && is_news {
            (self.due_at, self.state) = (Some(now + after), WakeState::Waiting);
        }
    }

    /// Records that the device acked envelopes. `is_empty` says whether the mailbox is empty now.
    pub fn note_acked(&mut self, is_empty: bool, after: Duration, now: Timestamp) {
        if is_empty {
            (self.due_at, self.state) = (None, WakeState::Waiting);
        } else if let Some(due_at) = &mut self.due_at {
            if self.state == WakeState::Waiting {
                *due_at = now + after;
            } else {
                // It may be ended by its system before it has acked the rest.
                (*due_at, self.state) = (now + WAKE_AGAIN_AFTER, WakeState::Acked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_millis(1500);

    fn start() -> Timestamp {
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap()
    }

    fn seconds(seconds: u64) -> Timestamp {
        start() + Duration::from_secs(seconds)
    }

    #[test]
    fn a_wake_up_is_due_when_nothing_was_acked_for_a_while_after_the_first_message() {
        let mut wake = WakeUp { has_target: true, ..WakeUp::default() };
        wake.note_stored(true, AFTER, start());
        wake.note_stored(false, AFTER, seconds(1));
        assert_eq!(wake.due_at, Some(start() + AFTER), "a later message does not postpone it");
        wake.note_acked(false, AFTER, seconds(1));
        assert_eq!(wake.due_at, Some(seconds(1) + AFTER), "an ack does");
        wake.note_acked(true, AFTER, seconds(2));
        assert_eq!(wake.due_at, None);
    }

    #[test]
    fn a_woken_device_is_woken_again_after_six_hours_or_for_messages_after_its_next_ack() {
        let woken = WakeUp { has_target: true, due_at: Some(seconds(6 * 3600)), state: WakeState::Woken };
        let mut wake = woken;
        wake.note_stored(false, AFTER, seconds(1));
        assert_eq!(wake, woken);
        for at in [2, 3] {
            wake.note_acked(false, AFTER, seconds(at));
            assert_eq!((wake.due_at, wake.state), (Some(seconds(6 * 3600 + at)), WakeState::Acked), "the rest waits");
        }
        wake.note_stored(false, AFTER, seconds(4));
        assert_eq!((wake.due_at, wake.state), (Some(seconds(4) + AFTER), WakeState::Waiting));

        let mut wake = woken;
        wake.note_acked(true, AFTER, seconds(2));
        assert_eq!((wake.due_at, wake.state), (None, WakeState::Waiting));

        // The messages for which it was woken have expired.
        let mut wake = woken;
        wake.note_stored(true, AFTER, seconds(5));
        assert_eq!((wake.due_at, wake.state), (Some(seconds(5) + AFTER), WakeState::Waiting));
    }

    #[test]
    fn a_device_without_a_target_is_never_due() {
        let mut wake = WakeUp::default();
        wake.note_stored(true, AFTER, start());
        assert_eq!(wake, WakeUp::default());
    }

    #[test]
    fn pauses_double_to_an_hour_and_end_after_a_day() {
        let (mut failures, mut now, mut pauses) = (PushFailures::default(), start(), Vec::new());
        while let (after, Some(next)) = failures.after(None, now) {
            pauses.push((next.as_micros() - now.as_micros()) / 1_000_000);
            (failures, now) = (after, next);
        }
        assert_eq!(pauses[..11], [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600]);
        assert!(pauses[11..].iter().all(|pause| *pause == 3600));
        assert!(now >= seconds(23 * 3600 - 1) && now < seconds(24 * 3600));

        let retry = |after| PushFailures::default().after(Some(Duration::from_secs(after)), start()).1;
        assert_eq!(retry(7), Some(seconds(7)));
        assert_eq!(retry(0), Some(seconds(5)), "a service cannot ask for a busy loop");
        assert_eq!(retry(1_000_000), Some(seconds(24 * 3600)), "once, at the end of the day");
        let many = PushFailures { since: Some(start()), count: 9 };
        assert_eq!(many.after(Some(Duration::from_secs(7)), start()).1, Some(seconds(60)));
        assert_eq!(many.after(Some(Duration::from_hours(24)), seconds(1)).1, None);
    }

    #[test]
    fn a_nonce_is_tried_five_times_and_a_push_service_only_lengthens_the_pauses() {
        let pauses = |retry_after: Option<u64>| {
            let pause = |failures| nonce_pause(failures, retry_after.map(Duration::from_secs));
            (0..).map_while(pause).map(|pause| pause.as_secs()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(None), [5, 10, 20, 40]);
        assert_eq!(pauses(Some(0)), [5, 10, 20, 40]);
        assert_eq!(pauses(Some(15)), [15, 15, 20, 40]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let endpoint = "https://push.example/secret".to_owned();
        let target = PushTarget::WebPush { endpoint, p256dh: "7".to_owned(), auth: "7".to_owned() };
        let shown = format!("{target:?} {:?}", PushNonce([7; 16]));
        assert!(!shown.contains('7') && !shown.contains("secret"), "{shown}");
    }
}

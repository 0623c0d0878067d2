//! Decides which messages are sent when: again under their ids until they are answered, and in the order in which the
//! app gave them, for each recipient. Does no I/O; time and randomness are parameters.
//!
//! At most one message for each recipient is unanswered, so that a message that is refused for a moment is not overtaken
//! by the next one. Messages for different recipients do not wait for each other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use sealwire_protocol::{Code, error::ErrorBody, ids::UserId, value::Named};

use crate::reconnect::backoff;

/// The place of a message in the outbox. A later message has a greater one.
pub type Place = u64;

/// What to do after the reply to a message.
#[derive(Debug, PartialEq)]
pub enum Answer<T> {
    /// The message is accepted or finally refused, and gone from the outbox.
    Final(T),
    /// The message is sent again later.
    Again,
}

#[derive(Debug)]
struct Entry<T> {
    to: UserId,
    message: T,
    /// How often it was refused for a moment.
    failures: u32,
}

/// The messages that are not answered yet.
#[derive(Debug)]
pub struct Outbox<T> {
    entries: BTreeMap<Place, Entry<T>>,
    /// The messages for each recipient, in order.
    queues: HashMap<UserId, BTreeSet<Place>>,
    /// The first messages of their recipients that can be sent.
    ready: BTreeSet<Place>,
    /// The first messages of their recipients that have to wait, and until when.
    waiting: BTreeMap<Place, Instant>,
    /// No message is sent before, since the server limits the rate of all.
    not_before: Option<Instant>,
}

impl<T> Default for Outbox<T> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            queues: HashMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeMap::new(),
            not_before: None,
        }
    }
}

impl<T> Outbox<T> {
    /// Adds a message. Its place must be greater than those of all messages for the same recipient.
    pub fn push(&mut self, place: Place, to: UserId, message: T) {
        self.entries.insert(place, Entry { to, message, failures: 0 });
        let queue = self.queues.entry(to).or_default();
        queue.insert(place);
        if queue.len() == 1 {
            self.ready.insert(place);
        }
    }

    /// The number of messages that are not answered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Takes the next message that is to be sent now: it is unanswered from here on.
    pub fn next(&mut self, now: Instant) -> Option<(Place, &T)> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        let due: Vec<Place> =
            self.waiting.iter().filter(|(_, until)| **until <= now).map(|(place, _)| *place).collect();
        for place in due {
            self.waiting.remove(&place);
            self.ready.insert(place);
        }
        let place = self.ready.pop_first()?;
        self.entries.get(&place).map(|entry| (place, &entry.message))
    }

    /// When [`next`](Self::next) has to be called again although nothing else happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let first = if self.ready.is_empty() { self.waiting.values().min().copied() } else { self.not_before };
        first.max(self.not_before.filter(|_| first.is_some()))
    }

    /// The connection is lost: what is unanswered is to be sent again, before anything else.
    pub fn disconnected(&mut self) {
        self.waiting.clear();
        self.not_before = None;
        self.ready = self.queues.values().filter_map(|queue| queue.first().copied()).collect();
    }

    /// The reply to a message: accepted, or refused with this error. `random` is a number from 0 to 1.
    pub fn answered(
        &mut self,
        place: Place,
        error: Option<&ErrorBody>,
        now: Instant,
        random: f64,
    ) -> Option<Answer<T>> {
        let entry = self.entries.get_mut(&place)?;
        if let Some(error) = error.filter(|error| is_momentary(error, entry.failures)) {
            let retry_after = Duration::from_millis(error.retry_after_ms.unwrap_or_default());
            let until = now + retry_after.saturating_add(backoff(entry.failures, random));
            entry.failures = entry.failures.saturating_add(1);
            self.waiting.insert(place, until);
            if error.code == Named::Known(Code::RateLimited) {
                self.not_before = Some(now + retry_after);
            }
            return Some(Answer::Again);
        }
        self.remove(place).map(Answer::Final)
    }

    fn remove(&mut self, place: Place) -> Option<T> {
        let entry = self.entries.remove(&place)?;
        if let Some(queue) = self.queues.get_mut(&entry.to) {
            queue.remove(&place);
            match queue.first() {
                Some(next) => drop(self.ready.insert(*next)),
                None => drop(self.queues.remove(&entry.to)),
            }
        }
        Some(entry.message)
    }
}

/// Whether the same message is likely to be accepted in a moment. A full mailbox is not: the person should know, and
/// send again much later. After a defect of the server, one more try is made.
fn is_momentary(error: &ErrorBody, failures: u32) -> bool {
    match error.code {
        Named::Known(Code::MailboxFull) => false,
        Named::Known(Code::Internal) => failures == 0,
        // The connection is about to close. The message is sent when the person has signed in again.
        Named::Known(Code::SessionRevoked) => true,
        _ => error.retryable,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user(number: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(number))
    }

    fn error(code: Code, retry_after: u64) -> ErrorBody {
        ErrorBody::new(code, String::new(), Some(Duration::from_millis(retry_after)), None)
    }

    fn sent(outbox: &mut Outbox<&'static str>, now: Instant) -> Vec<&'static str> {
        std::iter::from_fn(|| outbox.next(now).map(|(_, message)| *message)).collect()
    }

    fn three() -> Outbox<&'static str> {
        let mut outbox = Outbox::default();
        outbox.push(1, user(1), "a1");
        outbox.push(2, user(1), "a2");
        outbox.push(3, user(2), "b1");
        outbox
    }

    #[test]
    fn one_message_for_each_recipient_is_unanswered() {
        let now = Instant::now();
        let mut outbox = three();
        assert_eq!(sent(&mut outbox, now), ["a1", "b1"]);
        assert_eq!(outbox.answered(1, None, now, 0.0), Some(Answer::Final("a1")));
        assert_eq!(sent(&mut outbox, now), ["a2"]);
        assert_eq!(outbox.answered(3, None, now, 0.0), Some(Answer::Final("b1")));
        assert_eq!(outbox.answered(2, None, now, 0.0), Some(Answer::Final("a2")));
        assert_eq!((outbox.len(), outbox.queues.len()), (0, 0));
        assert_eq!(outbox.answered(2, None, now, 0.0), None, "a reply that is not expected");
    }

    #[test]
    fn after_a_lost_connection_unanswered_messages_come_first_and_in_order() {
        let now = Instant::now();
        let mut outbox = three();
        assert_eq!(sent(&mut outbox, now), ["a1", "b1"]);
        outbox.push(4, user(3), "c1");
        outbox.disconnected();
        assert_eq!(sent(&mut outbox, now), ["a1", "b1", "c1"]);
    }

    #[test]
    fn a_momentary_refusal_holds_back_the_later_messages_for_the_same_recipient() {
        let now = Instant::now();
        let mut outbox = three();
        assert_eq!(sent(&mut outbox, now), ["a1", "b1"]);
        let unavailable = error(Code::Unavailable, 500);
        assert_eq!(outbox.answered(1, Some(&unavailable), now, 0.5), Some(Answer::Again));
        assert_eq!(outbox.answered(3, None, now, 0.0), Some(Answer::Final("b1")));
        assert_eq!(sent(&mut outbox, now), Vec::<&str>::new());
        let at = now + Duration::from_secs(1);
        assert_eq!(outbox.wake_at(), Some(at));
        assert_eq!(sent(&mut outbox, at), ["a1"]);
        assert_eq!(outbox.wake_at(), None);
        assert_eq!(outbox.answered(1, Some(&unavailable), at, 1.0), Some(Answer::Again));
        assert_eq!(outbox.wake_at(), Some(at + Duration::from_millis(2500)), "longer each time");
    }

    #[test]
    fn a_limit_on_the_rate_holds_back_all_messages() {
        let now = Instant::now();
        let mut outbox = three();
        outbox.next(now);
        assert_eq!(outbox.answered(1, Some(&error(Code::RateLimited, 200)), now, 0.0), Some(Answer::Again));
        assert_eq!(outbox.next(now), None);
        let at = now + Duration::from_millis(200);
        assert_eq!(outbox.wake_at(), Some(at));
        assert_eq!(sent(&mut outbox, at), ["a1", "b1"]);
    }

    #[test]
    fn a_final_refusal_lets_the_next_message_pass() {
        let now = Instant::now();
        for code in [Code::DevicesMismatch, Code::NoDevices, Code::NotFound, Code::MailboxFull] {
            let mut outbox = three();
            outbox.next(now);
            assert_eq!(outbox.answered(1, Some(&error(code, 0)), now, 0.0), Some(Answer::Final("a1")), "{code:?}");
            assert_eq!(sent(&mut outbox, now), ["a2", "b1"]);
        }
    }

    #[test]
    fn a_message_outlives_the_session_in_which_it_was_sent() {
        let now = Instant::now();
        let mut outbox = three();
        outbox.next(now);
        assert_eq!(outbox.answered(1, Some(&error(Code::SessionRevoked, 0)), now, 1.0), Some(Answer::Again));
        assert_eq!(outbox.len(), 3);
    }

    #[test]
    fn after_a_defect_of_the_server_one_more_try_is_made() {
        let now = Instant::now();
        let mut outbox = three();
        outbox.next(now);
        let internal = error(Code::Internal, 0);
        assert_eq!(outbox.answered(1, Some(&internal), now, 0.0), Some(Answer::Again));
        outbox.next(now);
        assert_eq!(outbox.answered(1, Some(&internal), now, 0.0), Some(Answer::Final("a1")));
    }

    proptest! {
        /// Whatever is refused, repeated or lost: every message is accepted, in the order of its recipient's messages.
        #[test]
        fn order_is_kept_for_each_recipient(
            recipients in proptest::collection::vec(0_u128..4, 1..40),
            steps in proptest::collection::vec((0_u8..6, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut now = Instant::now();
            let mut outbox = Outbox::default();
            for (place, to) in recipients.iter().enumerate() {
                outbox.push(place as Place, user(*to), place as Place);
            }
            let mut unanswered = Vec::new();
            let mut accepted: HashMap<u128, Vec<Place>> = HashMap::new();
            let mut answer = |outbox: &mut Outbox<Place>, place: Place, now: Instant| {
                if outbox.answered(place, None, now, 1.0) == Some(Answer::Final(place)) {
                    let to = recipients[usize::try_from(place).unwrap()];
                    accepted.entry(to).or_default().push(place);
                }
            };
            for (step, which) in steps {
                match step {
                    0 | 1 => unanswered.extend(outbox.next(now).map(|(place, _)| place)),
                    2 => {
                        outbox.disconnected();
                        unanswered.clear();
                    }
                    3 => now += Duration::from_secs(2),
                    _ if unanswered.is_empty() => {}
                    4 => answer(&mut outbox, unanswered.remove(which.index(unanswered.len())), now),
                    _ => {
                        let place = unanswered.remove(which.index(unanswered.len()));
                        let code = if which.index(2) == 0 { Code::RateLimited } else { Code::Unavailable };
                        outbox.answered(place, Some(&error(code, 300)), now, 1.0);
                    }
                }
            }
            outbox.disconnected();
            while outbox.len() > 0 {
                let (place, _) = outbox.next(now).unwrap();
                answer(&mut outbox, place, now);
            }
            for (to, places) in accepted {
                let expected: Vec<Place> =
                    (0..).zip(&recipients).filter(|(_, other)| **other == to).map(|(place, _)| place).collect();
                prop_assert_eq!(places, expected);
            }
        }
    }
}

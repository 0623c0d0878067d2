//! Enforces the rate limits on sign-in, locks, user look-ups and messages. Limits per network, user and device are counted
//! in memory, by each node separately, except that of wrong guesses per day. That and the limits per address are counted in
//! the database, over all nodes. The limits on claims are enforced by the store.
//!
//! A client that has reached a limit of codes or guesses can exceed it with a [proof of work](crate::domain::work).

use std::time::Duration;

use super::sliding_window::SlidingWindow;
use crate::{
    domain::{
        Caller, ClientNetwork, DeviceId, Refusal, Timestamp, UserId,
        clock_guard::TOLERATED_AHEAD,
        keyed_buckets::KeyedBuckets,
        network::CountedNetwork,
        work::{MAX_BITS, MIN_BITS},
    },
    store::{CodeHistory, PastChallenge, Trust},
    usage_limits::UsageLimits,
};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// Maximum number of codes to one address, in each of its budgets, that proofs of work pay for in 24 hours.
pub const MAX_PAID_CODES: usize = 20;
/// From this wrong guess at codes of an address in a day, strangers need a proof for a code, and the owner is mailed.
pub const GUESSES_WITHOUT_PROOF: usize = 20;
/// From this wrong guess in 30 days, strangers need a proof of [`MAX_BITS`] for a code.
const GUESSES_WITHOUT_HARD_PROOF: usize = 100;
const MONTH: Duration = Duration::from_hours(30 * 24);
/// `retry_after` of a request that needs a proof however long the client waits.
const PROOF_IS_NEEDED: Duration = HOUR;
/// The burst of messages from one user to another is as many as the rate allows in this many seconds.
const PAIR_BURST: u32 = 5;

/// The limits that are counted in memory.
pub struct Limits {
    otp_per_network: SlidingWindow<CountedNetwork>,
    verify_per_network: SlidingWindow<CountedNetwork>,
    session_failures_per_network: SlidingWindow<CountedNetwork>,
    poll_failures_per_network: SlidingWindow<CountedNetwork>,
    lock_changes_per_device: SlidingWindow<DeviceId>,
    find_per_user: SlidingWindow<UserId>,
    sends_per_device: KeyedBuckets<UserId, DeviceId>,
    /// By sending and receiving user.
    sends_per_pair: KeyedBuckets<UserId, UserId>,
}

impl Limits {
    /// Starts with nothing counted.
    #[must_use]
    pub fn new(settings: &UsageLimits) -> Self {
        let (sends, to_one) = (settings.sends_per_device_second, settings.sends_per_pair_second);
        Self {
            otp_per_network: SlidingWindow::new(settings.otp_per_network_hour, HOUR),
            verify_per_network: SlidingWindow::new(settings.verify_per_network_minute, MINUTE),
            session_failures_per_network: SlidingWindow::new(settings.session_failures_per_network_minute, MINUTE),
            poll_failures_per_network: SlidingWindow::new(settings.poll_failures_per_network_minute, MINUTE),
            lock_changes_per_device: SlidingWindow::new(settings.lock_changes_per_device_hour, HOUR),
            find_per_user: SlidingWindow::new(settings.find_per_user_hour, HOUR),
            sends_per_device: KeyedBuckets::new(sends, Duration::from_secs(1) / sends.max(1)),
            sends_per_pair: KeyedBuckets::new(
                to_one.saturating_mul(PAIR_BURST),
                Duration::from_secs(1) / to_one.max(1),
            ),
        }
    }

    /// Counts a request for a code.
    ///
    /// # Errors
    /// The time to wait, if the network has made too many.
    pub fn otp(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Duration> {
        self.otp_per_network.take(&network.counted(), now)
    }

    /// Counts an attempt to redeem a code.
    ///
    /// # Errors
    /// The time to wait, if the network has made too many.
    pub fn verify(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Duration> {
        self.verify_per_network.take(&network.counted(), now)
    }

    /// Takes back an attempt that was counted at `at`, because its code was right.
    pub fn give_back_verify(&self, network: ClientNetwork, at: Timestamp) {
        self.verify_per_network.give_back(&network.counted(), at);
    }

    /// Whether the network has made too many look-ups of tokens that failed.
    pub fn has_session_failures(&self, network: ClientNetwork, now: Timestamp) -> bool {
        self.session_failures_per_network.wait(&network.counted(), now).is_some()
    }

    /// Counts a look-up of a token that failed.
    ///
    /// # Errors
    /// The time to wait, if the network has made too many.
    pub fn session_failure(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Duration> {
        self.session_failures_per_network.take(&network.counted(), now)
    }

    /// Counts a poll of an approval with an unknown request or a wrong token. Apart from the attempts to redeem a code, so
    /// that it costs a neighbour none of them.
    ///
    /// # Errors
    /// The time to wait, if the network has made too many.
    pub fn poll_failure(&self, network: ClientNetwork, now: Timestamp) -> Result<(), Duration> {
        self.poll_failures_per_network.take(&network.counted(), now)
    }

    /// Counts a change of an account's lock. By device, so that a thief with the token of one does not use up the changes of
    /// the others.
    ///
    /// # Errors
    /// `rate_limited` if the device has made too many.
    pub fn lock_change(&self, device: DeviceId, now: Timestamp) -> Result<(), Refusal> {
        let counted = self.lock_changes_per_device.take(&[(device, 1)], now);
        counted.map_err(|retry_after| Refusal::RateLimited { retry_after })
    }

    /// Takes back a change of a lock that was counted at `at`, because it changed nothing.
    pub fn give_back_lock_change(&self, device: DeviceId, at: Timestamp) {
        self.lock_changes_per_device.give_back(&[(device, 1)], at);
    }

    /// Counts a look-up of an address.
    ///
    /// # Errors
    /// `rate_limited` if the user has made too many.
    pub fn find(&self, user: UserId, now: Timestamp) -> Result<(), Refusal> {
        self.find_per_user.take(&[(user, 1)], now).map_err(|retry_after| Refusal::RateLimited { retry_after })
    }

    /// Counts a message to a user.
    ///
    /// # Errors
    /// `rate_limited` if the device has sent too many, or its user too many to this one. What a user sends to itself
    /// counts for the device only.
    pub fn send(&self, caller: &Caller, to: UserId, now: Timestamp) -> Result<(), Refusal> {
        let Caller { user, device, .. } = *caller;
        let refused = |retry_after| Refusal::RateLimited { retry_after };
        self.sends_per_device.take(user, device, now).map_err(refused)?;
        if to == user {
            return Ok(());
        }
        self.sends_per_pair.take(user, to, now).map_err(|retry_after| {
            // A refused message costs the device nothing.
            self.sends_per_device.refund(user, device);
            refused(retry_after)
        })
    }
}

/// A request for a code, as the limits see it.
#[derive(Clone, Copy, Debug)]
pub struct CodeRequest<'a> {
    /// Keyed hash of the requesting network.
    pub network: &'a [u8],
    /// How long the network must wait for its next code, if it has made too many requests.
    pub network_wait: Option<Duration>,
    /// The bits of a proof that is right, not stale and not spent.
    pub proven_bits: Option<u8>,
    /// The current time.
    pub now: Timestamp,
}

/// Whether a code is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeVerdict {
    /// It is sent.
    Send {
        /// Whether the proof was needed, and is spent.
        spends_proof: bool,
        /// Whether the proof lets the request exceed a limit.
        is_paid: bool,
    },
    /// It is not sent.
    Refuse {
        /// How long to wait before a request without a proof can succeed.
        retry_after: Duration,
        /// The bits of a proof with which it is sent at once; `None` if no proof is offered.
        bits: Option<u8>,
    },
}

/// Returns the bits of a proof for an address to which `paid` codes were paid for by proofs in 24 hours.
#[must_use]
pub fn proof_bits(paid: usize) -> u8 {
    u8::try_from(paid).map_or(MAX_BITS, |paid| MIN_BITS.saturating_add(paid).min(MAX_BITS))
}

/// Decides about a request for a code.
#[must_use]
pub fn judge_code(settings: &UsageLimits, history: &CodeHistory, request: &CodeRequest<'_>) -> CodeVerdict {
    let CodeRequest { network, network_wait, proven_bits, now } = *request;
    // A challenge from further in the future was stored under a wrong clock.
    let latest = now + TOLERATED_AHEAD;
    let past = history.past.iter().filter(|one| one.created_at <= latest);
    let (paid, free): (Vec<&PastChallenge>, Vec<&PastChallenge>) = past.partition(|one| one.is_paid);
    let paid = paid.len();
    // A client that shows a token is known, and needs no place of the network.
    let network_wait = network_wait.filter(|_| history.trust != Trust::Token);
    let guessed = match history.trust {
        Trust::None => guess_wait(&history.wrong_guesses, now),
        Trust::KnownNetwork | Trust::Token => None,
    };
    let wait = address_wait(settings, &free, network, now).max(network_wait).max(guessed.map(|(wait, _)| wait));
    let least_bits = guessed.map_or(0, |(_, bits)| bits);
    let due = wait.map(|_| proof_bits(paid).max(least_bits));
    let signup_bits = if history.trust == Trust::None { settings.signup_proof_bits } else { 0 };
    let needed = due.unwrap_or_default().max(signup_bits);
    if needed == 0 {
        return CodeVerdict::Send { spends_proof: false, is_paid: false };
    }
    let is_offered = due.is_none() || paid < MAX_PAID_CODES;
    if is_offered && proven_bits.is_some_and(|bits| bits >= needed) {
        return CodeVerdict::Send { spends_proof: true, is_paid: due.is_some() };
    }
    CodeVerdict::Refuse { retry_after: wait.unwrap_or(PROOF_IS_NEEDED), bits: is_offered.then_some(needed) }
}

/// Returns how long strangers need proofs for codes to an address because of wrong guesses, and the least bits of these
/// proofs; `None` if they do not. `guesses` are the newest within 30 days, newest first.
fn guess_wait(guesses: &[Timestamp], now: Timestamp) -> Option<(Duration, u8)> {
    let until = |count: usize, span: Duration| {
        let oldest_that_counts = *guesses.get(count - 1)?;
        (oldest_that_counts > now.before(span)).then(|| (oldest_that_counts + span).since(now))
    };
    let hard = until(GUESSES_WITHOUT_HARD_PROOF, MONTH).map(|wait| (wait, MAX_BITS));
    hard.or_else(|| until(GUESSES_WITHOUT_PROOF, DAY).map(|wait| (wait, MIN_BITS)))
}

/// Returns how long an address must wait for its next code; `None` if it need not wait. `past` holds the challenges of
/// one of its budgets in the last day, newest first; `network` is the keyed hash of the requesting network.
fn address_wait(settings: &UsageLimits, past: &[&PastChallenge], network: &[u8], now: Timestamp) -> Option<Duration> {
    let wait = |limit: usize, span: Duration, matching: &dyn Fn(&PastChallenge) -> bool| {
        // If the span holds `limit` challenges, the next is allowed when the oldest of the `limit` newest leaves the
        // span.
        let oldest_that_counts =
            past.iter().filter(|one| one.created_at > now.before(span) && matching(one)).nth(limit.checked_sub(1)?)?;
        Some((oldest_that_counts.created_at + span).since(now))
    };
    [
        wait(settings.otp_per_email_network_hour, HOUR, &|one| one.network == network),
        wait(settings.otp_per_email_hour, HOUR, &|_| true),
        wait(settings.otp_per_email_day, DAY, &|_| true),
    ]
    .into_iter()
    .flatten()
    .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: UsageLimits = UsageLimits {
        otp_per_email_hour: 0,
        otp_per_email_day: 0,
        otp_per_email_network_hour: 0,
        otp_per_network_hour: 0,
        verify_per_network_minute: 0,
        signup_proof_bits: 0,
        wrong_guesses_per_network_day: 0,
        session_failures_per_network_minute: 0,
        poll_failures_per_network_minute: 0,
        lock_changes_per_device_hour: 0,
        find_per_user_hour: 0,
        claim_burst: 0,
        claim_refill_s: 1,
        stranger_keys_per_device_hour: 0,
        sends_per_device_second: 0,
        sends_per_pair_second: 0,
    };
    const SENT: CodeVerdict = CodeVerdict::Send { spends_proof: false, is_paid: false };

    fn start() -> Timestamp {
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap()
    }

    fn made(minutes_ago: u64, network: u8) -> PastChallenge {
        let created_at = start().before(Duration::from_mins(minutes_ago));
        PastChallenge { created_at, network: vec![network], is_paid: false }
    }

    fn history_of(trust: Trust, past: Vec<PastChallenge>) -> CodeHistory {
        CodeHistory { trust, past, wrong_guesses: vec![] }
    }

    fn request(network_wait: Option<Duration>, proven_bits: Option<u8>) -> CodeRequest<'static> {
        CodeRequest { network: &[1], network_wait, proven_bits, now: start() }
    }

    fn refused(retry_after: Duration, bits: Option<u8>) -> CodeVerdict {
        CodeVerdict::Refuse { retry_after, bits }
    }

    #[test]
    fn an_address_waits_for_the_limit_with_the_longest_wait() {
        let settings =
            UsageLimits { otp_per_email_hour: 3, otp_per_email_day: 5, otp_per_email_network_hour: 2, ..OFF };
        let wait = |past: &[PastChallenge]| {
            let past: Vec<_> = past.iter().collect();
            address_wait(&settings, &past, &[1], start()).map(|wait| wait.as_secs() / 60)
        };
        assert_eq!(wait(&[]), None);
        assert_eq!(wait(&[made(1, 1)]), None);
        assert_eq!(wait(&[made(1, 1), made(10, 1)]), Some(50));
        assert_eq!(wait(&[made(1, 2), made(10, 1)]), None);
        assert_eq!(wait(&[made(1, 2), made(10, 1), made(20, 3)]), Some(40));
        assert_eq!(wait(&[made(1, 2), made(70, 2), made(80, 2), made(90, 2), made(100, 2)]), Some(24 * 60 - 100));
        let past = [made(1, 1), made(1, 1), made(1, 1)];
        assert_eq!(address_wait(&OFF, &past.iter().collect::<Vec<_>>(), &[1], start()), None);
    }

    #[test]
    fn a_proof_exceeds_a_limit_and_becomes_harder_with_each_code_that_it_pays_for() {
        let settings = UsageLimits { otp_per_email_hour: 1, ..OFF };
        let hour = HOUR.checked_sub(Duration::from_mins(1)).unwrap();
        let mut past = vec![made(1, 1)];
        for paid in 0..MAX_PAID_CODES {
            let history = history_of(Trust::None, past.clone());
            let bits = [18, 19, 20, 21, 22, 23].get(paid).copied().unwrap_or(24);
            let judge = |proven| judge_code(&settings, &history, &request(None, proven));
            assert_eq!(judge(None), refused(hour, Some(bits)));
            assert_eq!(judge(Some(bits - 1)), refused(hour, Some(bits)), "an offer from before another code was paid");
            assert_eq!(judge(Some(bits)), CodeVerdict::Send { spends_proof: true, is_paid: true });
            past.insert(0, PastChallenge { is_paid: true, ..made(1, 1) });
        }
        let history = history_of(Trust::None, past.clone());
        assert_eq!(judge_code(&settings, &history, &request(None, Some(24))), refused(hour, None));
        past.retain(|one| one.is_paid);
        let history = history_of(Trust::None, past);
        assert_eq!(judge_code(&settings, &history, &request(None, None)), SENT, "paid codes use no limit up");
    }

    #[test]
    fn a_proof_that_is_not_needed_is_not_spent() {
        let history = history_of(Trust::None, vec![]);
        assert_eq!(judge_code(&OFF, &history, &request(None, Some(24))), SENT);
    }

    #[test]
    fn the_longest_wait_of_address_and_network_applies() {
        let settings = UsageLimits { otp_per_email_hour: 1, ..OFF };
        let history = history_of(Trust::None, vec![made(30, 1)]);
        for (network, wait) in [(10, 30), (40, 40)] {
            let request = request(Some(Duration::from_mins(network)), None);
            assert_eq!(judge_code(&settings, &history, &request), refused(Duration::from_mins(wait), Some(18)));
        }
        let request = request(Some(HOUR), None);
        let known = history_of(Trust::KnownNetwork, vec![]);
        assert_eq!(judge_code(&settings, &known, &request), refused(HOUR, Some(18)));
        let token = history_of(Trust::Token, vec![]);
        assert_eq!(judge_code(&settings, &token, &request), SENT, "a token needs no place of the network");
    }

    #[test]
    fn a_proof_for_every_request_is_not_one_of_the_paid_codes() {
        let settings = UsageLimits { signup_proof_bits: 20, otp_per_email_hour: 1, ..OFF };
        let stranger = |past| history_of(Trust::None, past);
        let fresh = stranger(vec![]);
        assert_eq!(judge_code(&settings, &fresh, &request(None, None)), refused(PROOF_IS_NEEDED, Some(20)));
        assert_eq!(judge_code(&settings, &fresh, &request(None, Some(19))), refused(PROOF_IS_NEEDED, Some(20)));
        let sent = CodeVerdict::Send { spends_proof: true, is_paid: false };
        assert_eq!(judge_code(&settings, &fresh, &request(None, Some(20))), sent);
        let limited = stranger(vec![made(30, 1)]);
        let half = Duration::from_mins(30);
        assert_eq!(judge_code(&settings, &limited, &request(None, None)), refused(half, Some(20)), "the greater");
        let trusted = history_of(Trust::KnownNetwork, vec![]);
        assert_eq!(judge_code(&settings, &trusted, &request(None, None)), SENT);
        let trusted = history_of(Trust::KnownNetwork, vec![made(30, 1)]);
        assert_eq!(judge_code(&settings, &trusted, &request(None, None)), refused(half, Some(18)));
    }

    #[test]
    fn wrong_guesses_make_codes_for_strangers_cost_proofs() {
        let minutes_ago = |minutes: u64| start().before(Duration::from_mins(minutes));
        let guessed = |count: u64, first: u64| (first..first + count).map(minutes_ago).collect::<Vec<_>>();
        let judge = |trust: Trust, wrong_guesses: Vec<Timestamp>| {
            judge_code(&OFF, &CodeHistory { trust, past: vec![], wrong_guesses }, &request(None, None))
        };
        assert_eq!(judge(Trust::None, guessed(19, 1)), SENT);
        let wait = DAY.checked_sub(Duration::from_mins(20)).unwrap();
        assert_eq!(judge(Trust::None, guessed(20, 1)), refused(wait, Some(18)));
        assert_eq!(judge(Trust::None, guessed(20, 24 * 60 - 19)), SENT, "the oldest is from another day");
        assert_eq!(judge(Trust::None, guessed(99, 24 * 60)), SENT);
        let wait = MONTH.checked_sub(Duration::from_mins(24 * 60 + 99)).unwrap();
        assert_eq!(judge(Trust::None, guessed(100, 24 * 60)), refused(wait, Some(24)));
        let wait = MONTH.checked_sub(Duration::from_mins(100)).unwrap();
        assert_eq!(judge(Trust::None, guessed(100, 1)), refused(wait, Some(24)));
        for trust in [Trust::KnownNetwork, Trust::Token] {
            assert_eq!(judge(trust, guessed(100, 1)), SENT);
        }
    }

    /// The arithmetic of docs/architecture.md, section Guesses.
    #[test]
    fn guessing_takes_over_few_accounts_in_a_year() {
        const CODES: f64 = 1e8;
        const DAYS: f64 = 365.0;
        let limits = crate::config::Config::load(None, std::iter::empty()).unwrap().limits.usage;
        assert!(limits.otp_per_email_day > 0 && limits.verify_per_network_minute > 0, "0 means no limit");
        assert!(limits.wrong_guesses_per_network_day > 0, "0 means no limit");
        let attempts = f64::from(crate::domain::otp::MAX_ATTEMPTS);
        let count = |count: usize| f64::from(u32::try_from(count).unwrap());
        let of_one_address = attempts * count(limits.otp_per_email_day + MAX_PAID_CODES) * DAYS / CODES;
        assert!(of_one_address <= 1e-3, "{of_one_address}");
        let address: std::net::IpAddr = "2001:db8::1".parse().unwrap();
        let widest = ClientNetwork::from(address).counted().into_iter().map(|(_, factor)| factor).max().unwrap();
        let of_a_prefix = f64::from(widest) * count(limits.wrong_guesses_per_network_day) * DAYS / CODES;
        assert!(of_a_prefix <= 1e-2, "{of_a_prefix}");
        let document = include_str!("../../docs/architecture.md");
        for stated in [format!("{of_one_address:.5}"), format!("{of_a_prefix:.5}")] {
            assert!(document.contains(&stated), "docs/architecture.md does not say {stated}");
        }
    }
}

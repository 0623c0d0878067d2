//! Places for notifications that are under way: a limit in all, and one for each kind of target at each origin.
//!
//! Clients choose the origins of Web Push, also those at which FCM and APNs are. So the kinds share no places, and nobody can
//! take those of FCM and APNs, or use their trust. And anybody can make many that hang. An origin is proven once it has
//! answered quickly many times in a row, and it loses that if a quarter of its last answers were slow or failed. Origins
//! that are not proven share half of the places; with the proven ones, three quarters. The rest is left to the origins that
//! the operator trusts: those of APNs and FCM, and well-known services of Web Push.
//!
//! If the queue of an origin is full too, a send fails with the time after which to try again. These times differ, so that
//! a thousand sends to one origin do not all come at once.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout},
};

use crate::{outcome::Outcome, settings::Limits, target::Kind, web_push::VapidToken};

/// Quick answers in a row that make an origin proven. Twice as many as the places of an origin: an attacker must have
/// answered more requests than it can then hold up.
const PROVEN_ANSWERS: u32 = 32;
/// A proven origin loses its proof if more than this many of its last [`PROVEN_ANSWERS`] were slow or failed.
const FAILED_ANSWERS: u32 = PROVEN_ANSWERS / 4;
/// The part of the time limit that a quick answer takes at most.
const QUICK_PART: u32 = 5;
/// The shortest time until the next try of a send for which the room of all origins was full.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// Origins that can be proven at a time. Connections are kept for those and the trusted ones alone, which bounds their
/// number.
const MAX_PROVEN: usize = 256;
/// Origins that are remembered, at least.
const MIN_ORIGINS: usize = 4096;
/// The latest place counts for one part of so many in the average of how long places are held.
const HELD_WEIGHT: u32 = 8;

/// The places of all origins.
pub(crate) struct Origins {
    limits: Limits,
    trusted: TrustedServices,
    under_way: Arc<Semaphore>,
    /// The part of the places that origins can take that are not trusted.
    untrusted: Arc<Semaphore>,
    /// The part of the places that origins can take that are not proven.
    unproven: Arc<Semaphore>,
    table: Mutex<Table>,
    is_closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Table {
    origins: HashMap<(Kind, Arc<str>), Arc<Origin>>,
    /// Counts uses, to tell which origin was not used for longest.
    uses: u64,
    waiting: usize,
    waiting_untrusted: usize,
    waiting_unproven: usize,
}

/// Services of Web Push that the operator trusts not to hang on purpose.
#[derive(Debug)]
struct TrustedServices(Vec<String>);

impl TrustedServices {
    /// Whether an origin is one of them. An entry is a host, a host with a port, or `*.` and a domain.
    fn contains(&self, origin: &str) -> bool {
        let Some((_, authority)) = origin.split_once("://") else { return false };
        self.0.iter().any(|entry| match entry.strip_prefix('*') {
            Some(domain) => authority.len() > domain.len() && authority.ends_with(domain),
            None => authority == entry,
        })
    }
}

/// How much an origin is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Unproven,
    Proven,
    Trusted,
}

/// What is known about an origin, as one of a kind of target.
struct Origin {
    is_trusted: bool,
    /// Whether it is in use for as long as the server runs.
    is_pinned: bool,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    record: Mutex<Record>,
    last_use: AtomicU64,
    backlog: Mutex<Backlog>,
    vapid_token: VapidToken,
}

/// Tells sends that find no place when to come again.
struct Backlog {
    /// For how long a place is held: a moving average.
    held: Duration,
    /// The time that was given to the send that was refused last.
    last: Instant,
}

/// The last answers of an origin.
#[derive(Default)]
struct Record {
    is_proven: bool,
    /// How many are known, at most [`PROVEN_ANSWERS`].
    answers: u32,
    /// Which of them were slow or failed, the last one in the lowest bit.
    failed: u32,
}

impl Record {
    /// Notes an answer. Returns whether the origin has just earned its proof.
    fn note(&mut self, is_quick: bool) -> bool {
        self.answers = (self.answers + 1).min(PROVEN_ANSWERS);
        self.failed = (self.failed << 1) | u32::from(!is_quick);
        if self.is_proven {
            if self.failed.count_ones() > FAILED_ANSWERS {
                *self = Self::default();
            }
            return false;
        }
        self.is_proven = self.answers == PROVEN_ANSWERS && self.failed == 0;
        self.is_proven
    }
}

impl Origin {
    fn standing(&self) -> Standing {
        if self.is_trusted {
            Standing::Trusted
        } else if self.record().is_proven {
            Standing::Proven
        } else {
            Standing::Unproven
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long until there should be a place for a send that is refused: after those that wait, and after those that were
    /// refused before. If all came again at once, most of them would be refused again.
    fn turn_of_refused(&self, places: usize) -> Duration {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let (now, mut backlog) = (Instant::now(), self.backlog());
        let each = backlog.held / count(places).max(1);
        let after_waiting = now + each.saturating_mul(count(self.waiting.load(Relaxed))).min(Outcome::MAX_BUSY_WAIT);
        backlog.last = (backlog.last.max(after_waiting) + each).min(now + Outcome::MAX_BUSY_WAIT);
        backlog.last - now
    }

    /// Notes for how long a place was held.
    fn was_held(&self, held: Duration) {
        let mut backlog = self.backlog();
        backlog.held = (backlog.held * (HELD_WEIGHT - 1) + held) / HELD_WEIGHT;
    }
}

type Permits = [Option<OwnedSemaphorePermit>; 4];

/// A place for one notification. Dropping it frees the place.
pub(crate) struct Place<'a> {
    origins: &'a Origins,
    origin: Arc<Origin>,
    standing: Standing,
    taken_at: Instant,
    _permits: Permits,
}

impl Origins {
    /// `pinned` are the origins of APNs and FCM, which are trusted too.
    pub(crate) fn new(
        limits: Limits,
        trusted: Vec<String>,
        pinned: impl IntoIterator<Item = (Kind, Arc<str>)>,
    ) -> Self {
        let origins = Self {
            limits,
            trusted: TrustedServices(trusted),
            under_way: Arc::new(Semaphore::new(limits.under_way)),
            untrusted: Arc::new(Semaphore::new(three_quarters(limits.under_way))),
            unproven: Arc::new(Semaphore::new(limits.under_way.div_ceil(2))),
            table: Mutex::default(),
            is_closed: watch::Sender::new(false),
        };
        let pinned = pinned.into_iter().map(|key| (key, Arc::new(origins.origin(true, true))));
        origins.table().origins.extend(pinned);
        origins
    }

    /// Takes a place for a notification of a kind to `origin`, and waits for one if there is room to wait.
    ///
    /// # Errors
    /// If there is none in time: how long to wait before the next try, at most [`Outcome::MAX_BUSY_WAIT`].
    pub(crate) async fn take(&self, kind: Kind, origin: &Arc<str>) -> Result<Place<'_>, Duration> {
        let mut closed = self.is_closed.subscribe();
        if *closed.borrow() {
            return Err(Duration::ZERO);
        }
        let origin = self.find((kind, Arc::clone(origin)));
        let standing = origin.standing();
        let permits = if let Some(permits) = self.try_permits(&origin, standing) {
            permits
        } else {
            let refused = || origin.turn_of_refused(self.limits.per_origin);
            let _waiting = self.wait(&origin, standing)?;
            tokio::select! {
                biased;
                _ = closed.wait_for(|is_closed| *is_closed) => return Err(Duration::ZERO),
                permits = timeout(self.limits.timeout, self.permits(&origin, standing)) => {
                    permits.ok().flatten().ok_or_else(refused)?
                }
            }
        };
        Ok(Place { origins: self, origin, standing, taken_at: Instant::now(), _permits: permits })
    }

    /// Whether the operator trusts an origin as a service of Web Push.
    pub(crate) fn is_trusted(&self, origin: &str) -> bool {
        self.trusted.contains(origin)
    }

    /// Gives no more places. Sends that wait for one fail, to be tried again at once by another node.
    pub(crate) fn close(&self) {
        self.is_closed.send_replace(true);
    }

    /// Notifications that are under way, sends that wait, and origins that are remembered.
    pub(crate) fn usage(&self) -> (usize, usize, usize) {
        let table = self.table();
        (self.limits.under_way - self.under_way.available_permits(), table.waiting, table.origins.len())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self, is_trusted: bool, is_pinned: bool) -> Origin {
        Origin {
            is_trusted,
            is_pinned,
            turns: Arc::new(Semaphore::new(self.limits.per_origin)),
            waiting: AtomicUsize::new(0),
            record: Mutex::default(),
            last_use: AtomicU64::new(0),
            backlog: Mutex::new(Backlog { held: Duration::ZERO, last: Instant::now() }),
            vapid_token: VapidToken::default(),
        }
    }

    fn find(&self, key: (Kind, Arc<str>)) -> Arc<Origin> {
        let mut table = self.table();
        table.uses += 1;
        if !table.origins.contains_key(&key) {
            table.make_room(MIN_ORIGINS.max(2 * (self.limits.under_way + self.limits.waiting)));
        }
        let (uses, is_trusted) = (table.uses, key.0 == Kind::WebPush && self.trusted.contains(&key.1));
        let origin = table.origins.entry(key).or_insert_with(|| Arc::new(self.origin(is_trusted, false)));
        origin.last_use.store(uses, Relaxed);
        Arc::clone(origin)
    }

    /// The places that a send of this standing needs beside its turn, the scarcest first.
    fn shares(&self, standing: Standing) -> [Option<&Arc<Semaphore>>; 3] {
        let unproven = (standing == Standing::Unproven).then_some(&self.unproven);
        let untrusted = (standing != Standing::Trusted).then_some(&self.untrusted);
        [unproven, untrusted, Some(&self.under_way)]
    }

    fn try_permits(&self, origin: &Origin, standing: Standing) -> Option<Permits> {
        let mut permits = [const { None }; 4];
        let [unproven, untrusted, all] = self.shares(standing);
        for (permit, semaphore) in permits.iter_mut().zip([Some(&origin.turns), unproven, untrusted, all]) {
            let Some(semaphore) = semaphore else { continue };
            *permit = Some(Arc::clone(semaphore).try_acquire_owned().ok()?);
        }
        Some(permits)
    }

    /// The turn comes first: a send that waits for its origin holds no place that others need.
    async fn permits(&self, origin: &Origin, standing: Standing) -> Option<Permits> {
        let mut permits = [const { None }; 4];
        let [unproven, untrusted, all] = self.shares(standing);
        for (permit, semaphore) in permits.iter_mut().zip([Some(&origin.turns), unproven, untrusted, all]) {
            let Some(semaphore) = semaphore else { continue };
            *permit = Some(Arc::clone(semaphore).acquire_owned().await.ok()?);
        }
        Some(permits)
    }

    /// Counts a send that waits. One trusted origin can take half of the room to wait, a proven one an eighth, another a
    /// sixteenth.
    ///
    /// # Errors
    /// How long to wait before the next try, if there is no room.
    fn wait(&self, origin: &Arc<Origin>, standing: Standing) -> Result<Waiting<'_>, Duration> {
        let room = self.limits.waiting;
        let room_of_origin = match standing {
            Standing::Trusted => room.div_ceil(2),
            Standing::Proven => room.div_ceil(8),
            Standing::Unproven => room.div_ceil(16),
        };
        let (is_untrusted, is_unproven) = (standing != Standing::Trusted, standing == Standing::Unproven);
        let mut table = self.table();
        let has_its_share = origin.waiting.load(Relaxed) >= room_of_origin;
        let is_full = table.waiting >= room
            || (is_untrusted && table.waiting_untrusted >= three_quarters(room))
            || (is_unproven && table.waiting_unproven >= room.div_ceil(2));
        if has_its_share || is_full {
            drop(table);
            let turn = origin.turn_of_refused(self.limits.per_origin);
            // If others take the room, the answers of this origin do not tell when there is some.
            return Err(if has_its_share { turn } else { turn.max(FULL_PAUSE) });
        }
        table.waiting += 1;
        table.waiting_untrusted += usize::from(is_untrusted);
        table.waiting_unproven += usize::from(is_unproven);
        origin.waiting.fetch_add(1, Relaxed);
        Ok(Waiting { origins: self, origin: Arc::clone(origin), standing })
    }

    /// Ends the proof of the proven origin that was not used for longest, if there are too many with this new one.
    fn make_room_for_proof(&self, origin: &Arc<Origin>) {
        let table = self.table();
        let is_other = |other: &&Arc<Origin>| other.standing() == Standing::Proven && !Arc::ptr_eq(other, origin);
        let proven = || table.origins.values().filter(is_other);
        if proven().count() >= MAX_PROVEN
            && let Some(oldest) = proven().min_by_key(|other| other.last_use.load(Relaxed))
        {
            *oldest.record() = Record::default();
        }
    }
}

fn three_quarters(limit: usize) -> usize {
    limit - limit / 4
}

impl Table {
    /// Forgets the origin that matters least if there are `limit`: not one in use, rather one that has not proven itself,
    /// rather one that was not used for long.
    fn make_room(&mut self, limit: usize) {
        if self.origins.len() < limit {
            return;
        }
        let idle = self.origins.iter().filter(|(_, origin)| !origin.is_pinned && Arc::strong_count(origin) == 1);
        let least = idle.min_by_key(|(_, origin)| (origin.record().is_proven, origin.last_use.load(Relaxed)));
        if let Some(key) = least.map(|(key, _)| key.clone()) {
            self.origins.remove(&key);
        }
    }
}

/// A send that waits for its place.
struct Waiting<'a> {
    origins: &'a Origins,
    origin: Arc<Origin>,
    standing: Standing,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut table = self.origins.table();
        table.waiting -= 1;
        table.waiting_untrusted -= usize::from(self.standing != Standing::Trusted);
        table.waiting_unproven -= usize::from(self.standing == Standing::Unproven);
        self.origin.waiting.fetch_sub(1, Relaxed);
    }
}

impl Place<'_> {
    /// Whether the origin was proven or trusted when the place was taken.
    pub(crate) fn is_proven(&self) -> bool {
        self.standing != Standing::Unproven
    }

    /// The VAPID token for the origin.
    pub(crate) fn vapid_token(&self) -> &VapidToken {
        &self.origin.vapid_token
    }

    /// Notes that the origin answered.
    pub(crate) fn answered(&self) {
        self.note(self.taken_at.elapsed() <= self.origins.limits.timeout / QUICK_PART);
    }

    /// Notes that the origin did not answer.
    pub(crate) fn failed(&self) {
        self.note(false);
    }

    fn note(&self, is_quick: bool) {
        let has_earned_proof = self.origin.record().note(is_quick);
        if has_earned_proof && !self.origin.is_trusted {
            self.origins.make_room_for_proof(&self.origin);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.origin.was_held(self.taken_at.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    fn limits(under_way: usize, per_origin: usize, waiting: usize) -> Limits {
        Limits { under_way, per_origin, waiting, timeout: TIMEOUT }
    }

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    async fn prove(origins: &Origins, origin: &Arc<str>) {
        for _ in 0..PROVEN_ANSWERS {
            origins.take(Kind::WebPush, origin).await.unwrap().answered();
        }
        assert!(origins.take(Kind::WebPush, origin).await.unwrap().is_proven());
    }

    #[tokio::test(start_paused = true)]
    async fn an_origin_has_its_own_places() {
        let origins = Origins::new(limits(16, 2, 0), vec![], []);
        let (slow, other) = (name("https://slow"), name("https://other"));
        let held =
            [origins.take(Kind::WebPush, &slow).await.unwrap(), origins.take(Kind::WebPush, &slow).await.unwrap()];
        assert!(origins.take(Kind::WebPush, &slow).await.is_err());
        assert!(origins.take(Kind::WebPush, &other).await.is_ok());
        drop(held);
        assert!(origins.take(Kind::WebPush, &slow).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn places_are_limited_in_all() {
        let origins =
            Origins::new(limits(2, 2, 0), vec![], ["https://a", "https://b"].map(|text| (Kind::WebPush, name(text))));
        let held = [
            origins.take(Kind::WebPush, &name("https://a")).await.unwrap(),
            origins.take(Kind::WebPush, &name("https://b")).await.unwrap(),
        ];
        assert_eq!(origins.usage(), (2, 0, 2));
        assert!(origins.take(Kind::WebPush, &name("https://a")).await.is_err());
        drop(held);
        assert_eq!(origins.usage(), (0, 0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn origins_that_are_not_proven_leave_half_of_the_places() {
        let origins = Origins::new(limits(4, 1, 0), vec![], [(Kind::Apns, name("https://apns"))]);
        prove(&origins, &name("https://proven")).await;
        let mut held = Vec::new();
        for index in 0..10 {
            held.extend(origins.take(Kind::WebPush, &name(&format!("https://{index}.hostile"))).await);
        }
        assert_eq!(held.len(), 2);
        held.push(origins.take(Kind::WebPush, &name("https://proven")).await.unwrap());
        held.push(origins.take(Kind::Apns, &name("https://apns")).await.unwrap());
        assert_eq!(origins.usage().0, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarter_of_slow_or_failed_answers_ends_the_proof_and_fewer_do_not() {
        let origins = Origins::new(limits(64, 64, 0), vec![], []);
        let origin = name("https://a");
        prove(&origins, &origin).await;
        for round in 0..4 {
            for _ in 0..FAILED_ANSWERS / 2 {
                origins.take(Kind::WebPush, &origin).await.unwrap().failed();
                let place = origins.take(Kind::WebPush, &origin).await.unwrap();
                tokio::time::advance(TIMEOUT / QUICK_PART + Duration::from_millis(1)).await;
                place.answered();
                assert!(origins.take(Kind::WebPush, &origin).await.unwrap().is_proven(), "round {round}");
            }
            for _ in 0..PROVEN_ANSWERS {
                origins.take(Kind::WebPush, &origin).await.unwrap().answered();
            }
        }
        for _ in 0..=FAILED_ANSWERS {
            assert!(origins.take(Kind::WebPush, &origin).await.unwrap().is_proven());
            origins.take(Kind::WebPush, &origin).await.unwrap().failed();
        }
        assert!(!origins.take(Kind::WebPush, &origin).await.unwrap().is_proven());
        for _ in 0..PROVEN_ANSWERS - 1 {
            origins.take(Kind::WebPush, &origin).await.unwrap().answered();
        }
        assert!(!origins.take(Kind::WebPush, &origin).await.unwrap().is_proven());
        origins.take(Kind::WebPush, &origin).await.unwrap().answered();
        assert!(origins.take(Kind::WebPush, &origin).await.unwrap().is_proven());
    }

    #[tokio::test(start_paused = true)]
    async fn the_origins_of_the_operator_stay_trusted() {
        let origin = name("https://api.push.apple.com");
        let origins = Origins::new(limits(64, 64, 0), vec![], [(Kind::Apns, origin.clone())]);
        origins.take(Kind::Apns, &origin).await.unwrap().failed();
        assert!(origins.take(Kind::Apns, &origin).await.unwrap().is_proven());
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_at_one_origin_share_neither_places_nor_trust() {
        let origin = name("https://fcm.googleapis.com");
        let origins = Origins::new(limits(16, 2, 0), vec![], [(Kind::Fcm, origin.clone())]);
        let held =
            [origins.take(Kind::WebPush, &origin).await.unwrap(), origins.take(Kind::WebPush, &origin).await.unwrap()];
        assert!(held.iter().all(|place| !place.is_proven()));
        assert!(origins.take(Kind::WebPush, &origin).await.is_err());
        assert!(origins.take(Kind::Fcm, &origin).await.unwrap().is_proven());
        assert_eq!(origins.usage().2, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_send_waits_for_its_turn_and_not_for_ever() {
        let origins = Origins::new(limits(4, 1, 16), vec![], []);
        let origin = name("https://a");
        let held = origins.take(Kind::WebPush, &origin).await.unwrap();
        let started = Instant::now();
        assert!(origins.take(Kind::WebPush, &origin).await.is_err());
        assert!(started.elapsed() >= TIMEOUT);
        assert_eq!(origins.usage().1, 0);

        let (next, ()) = tokio::join!(origins.take(Kind::WebPush, &origin), async {
            tokio::task::yield_now().await;
            assert_eq!(origins.usage(), (1, 1, 1));
            drop(held);
        });
        assert!(next.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn room_to_wait_is_limited_for_an_origin_and_does_not_matter_to_others() {
        let origins = Origins::new(limits(8, 1, 32), vec![], []);
        let origin = name("https://a");
        let _held = origins.take(Kind::WebPush, &origin).await.unwrap();
        let waiting =
            async { tokio::join!(origins.take(Kind::WebPush, &origin), origins.take(Kind::WebPush, &origin)) };
        let (waited, refused, other) = tokio::join!(
            waiting,
            async {
                tokio::task::yield_now().await;
                let started = Instant::now();
                (origins.take(Kind::WebPush, &origin).await.is_err(), started.elapsed())
            },
            async {
                tokio::task::yield_now().await;
                origins.take(Kind::WebPush, &name("https://b")).await.is_ok()
            }
        );
        assert_eq!(refused, (true, Duration::ZERO));
        assert!(other);
        assert!(waited.0.is_err() && waited.1.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn refused_sends_come_again_one_after_the_other_at_the_rate_of_the_origin() {
        let origins = Origins::new(limits(8, 2, 0), vec![], []);
        let origin = name("https://a");
        let refused = async || origins.take(Kind::WebPush, &origin).await.err().unwrap();
        let take = async || origins.take(Kind::WebPush, &origin).await.unwrap();
        let held = [take().await, take().await];
        assert_eq!(refused().await, Duration::ZERO, "nothing is known of the origin");
        drop(held);
        for _ in 0..64 {
            let held = [take().await, take().await];
            tokio::time::advance(Duration::from_millis(400)).await;
            drop(held);
        }
        let _held = [take().await, take().await];
        for turn in 1..=5 {
            let wait = refused().await.as_millis();
            assert!((195 * turn..=200 * turn).contains(&wait), "{turn}: {wait}");
        }
        tokio::time::advance(Duration::from_millis(600)).await;
        let wait = refused().await.as_millis();
        assert!((580..=600).contains(&wait), "two of five turns are ahead: {wait}");
        for _ in 0..1000 {
            assert!(refused().await <= Outcome::MAX_BUSY_WAIT);
        }
        assert_eq!(refused().await, Outcome::MAX_BUSY_WAIT);
        // They do not count for others.
        let other = name("https://b");
        assert!(origins.take(Kind::WebPush, &other).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn origins_are_forgotten_but_not_those_in_use_or_proven() {
        let origins = Origins::new(limits(16, 1, 0), vec![], [(Kind::Apns, name("https://apns"))]);
        prove(&origins, &name("https://proven")).await;
        let held = origins.take(Kind::WebPush, &name("https://held")).await.unwrap();
        for index in 0..2 * MIN_ORIGINS {
            drop(origins.take(Kind::WebPush, &name(&format!("https://{index}"))).await);
        }
        assert_eq!(origins.usage().2, MIN_ORIGINS);
        let table = origins.table();
        for (kind, kept) in
            [(Kind::Apns, "https://apns"), (Kind::WebPush, "https://proven"), (Kind::WebPush, "https://held")]
        {
            assert!(table.origins.contains_key(&(kind, name(kept))), "{kept}");
        }
        drop((table, held));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_origins_are_proven() {
        let origins = Origins::new(limits(16, 1, 0), vec![], []);
        for index in 0..=MAX_PROVEN {
            prove(&origins, &name(&format!("https://{index}"))).await;
        }
        assert!(!origins.take(Kind::WebPush, &name("https://0")).await.unwrap().is_proven());
        assert!(origins.take(Kind::WebPush, &name("https://1")).await.unwrap().is_proven());
    }

    #[tokio::test(start_paused = true)]
    async fn well_known_services_are_trusted_from_the_start() {
        let trusted = ["fcm.example", "*.notify.example", "own.example:8443"].map(str::to_owned).to_vec();
        let origins = Origins::new(limits(64, 64, 0), trusted, []);
        for trusted in ["https://fcm.example", "https://db5p.notify.example", "https://own.example:8443"] {
            let origin = name(trusted);
            for _ in 0..PROVEN_ANSWERS {
                origins.take(Kind::WebPush, &origin).await.unwrap().failed();
            }
            assert!(
                origins.take(Kind::WebPush, &origin).await.unwrap().is_proven() && origins.is_trusted(&origin),
                "{trusted}"
            );
        }
        for other in [
            "https://fcm.example:8443",
            "https://fcm.example.org",
            "https://x.fcm.example",
            "https://notify.example",
            "https://evilnotify.example",
            "https://a.notify.example:8443",
            "https://own.example",
        ] {
            let origin = name(other);
            assert!(
                !origins.take(Kind::WebPush, &origin).await.unwrap().is_proven() && !origins.is_trusted(&origin),
                "{other}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn proven_origins_that_hang_leave_a_quarter_of_the_places_and_of_the_room_to_wait() {
        let origins = Origins::new(limits(16, 4, 16), vec!["trusted".to_owned()], []);
        let proven: Vec<_> = (0..16).map(|n| name(&format!("https://{n}"))).collect();
        for origin in &proven {
            prove(&origins, origin).await;
        }
        let mut hanging: Vec<_> =
            proven.iter().cycle().take(80).map(|origin| Box::pin(origins.take(Kind::WebPush, origin))).collect();
        let mut places = Vec::new();
        for take in &mut hanging {
            if let Some(Ok(place)) = futures_now(take) {
                places.push(place);
            }
        }
        assert_eq!(origins.usage(), (12, 12, 16));
        let trusted = name("https://trusted");
        for _ in 0..4 {
            places.push(origins.take(Kind::WebPush, &trusted).await.unwrap());
        }
        assert_eq!(origins.usage().0, 16);
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(origins.take(Kind::WebPush, &trusted))).collect();
        assert!(waiting.iter_mut().all(|take| futures_now(take).is_none()), "they wait");
        assert_eq!(origins.usage().1, 16);
    }

    #[tokio::test(start_paused = true)]
    async fn once_closed_nothing_is_sent_that_waited() {
        let origins = Origins::new(limits(16, 1, 32), vec![], []);
        let origin = name("https://a");
        let held = origins.take(Kind::WebPush, &origin).await.unwrap();
        let (waited, ()) = tokio::join!(origins.take(Kind::WebPush, &origin), async {
            tokio::task::yield_now().await;
            origins.close();
            drop(held);
        });
        assert!(waited.is_err());
        assert!(origins.take(Kind::WebPush, &name("https://b")).await.is_err());
    }

    /// Polls a future once.
    fn futures_now<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        }
    }
}

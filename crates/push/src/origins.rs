//! Places for notifications that are under way: a limit in all, and one for each kind of target at each origin.
//!
//! Clients choose the origins of Web Push, also those at which FCM and APNs are. So the kinds share no places, and nobody can
//! take those of FCM and APNs, or use their trust.
//!
//! Clients choose the origins of Web Push, so anybody can make many that hang. An origin is proven once it has
//! answered quickly many times in a row, and it loses that with one slow or failed answer. Origins that are not proven
//! share half of the places; the other half is left to services that work.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::{outcome::Outcome, settings::Limits, target::Kind, web_push::VapidToken};

/// Quick answers in a row that make an origin proven. Twice as many as the places of an origin: an attacker must have
/// answered more requests than it can then hold up.
const PROVEN_ANSWERS: u32 = 32;
/// The part of the time limit that a quick answer takes at most.
const QUICK_PART: u32 = 5;
/// Origins that can be proven at a time. Connections are kept for those alone, which bounds their number.
const MAX_PROVEN: usize = 256;
/// The latest place counts for one part of so many in the average of how long places are held.
const HELD_WEIGHT: u32 = 8;
/// Origins that are remembered, at least.
const MIN_ORIGINS: usize = 4096;

/// The places of all origins.
pub(crate) struct Origins {
    limits: Limits,
    under_way: Arc<Semaphore>,
    /// The part of the places that origins can take that are not proven.
    unproven: Arc<Semaphore>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    origins: HashMap<(Kind, Arc<str>), Arc<Origin>>,
    /// Counts uses, to tell which origin was not used for longest.
    uses: u64,
    waiting: usize,
    waiting_unproven: usize,
}

/// What is known about an origin, as one of a kind of target.
struct Origin {
    /// An origin of the operator's settings: proven, and not forgotten.
    is_trusted: bool,
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    /// Quick answers in a row, at most [`PROVEN_ANSWERS`].
    answers: AtomicU32,
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

impl Origin {
    fn is_proven(&self) -> bool {
        self.is_trusted || self.answers.load(Relaxed) >= PROVEN_ANSWERS
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

/// A place for one notification. Dropping it frees the place.
pub(crate) struct Place<'a> {
    origins: &'a Origins,
    origin: Arc<Origin>,
    is_proven: bool,
    taken_at: Instant,
    _permits: [Option<OwnedSemaphorePermit>; 3],
}

impl Origins {
    /// `trusted` are the origins of the operator's settings.
    pub(crate) fn new(limits: Limits, trusted: impl IntoIterator<Item = (Kind, Arc<str>)>) -> Self {
        let origins = Self {
            limits,
            under_way: Arc::new(Semaphore::new(limits.under_way)),
            unproven: Arc::new(Semaphore::new(limits.under_way.div_ceil(2))),
            table: Mutex::default(),
        };
        let trusted = trusted.into_iter().map(|origin| (origin, Arc::new(origins.origin(true))));
        origins.table().origins.extend(trusted);
        origins
    }

    /// Takes a place for a notification of a kind to `origin`, and waits for one if there is room to wait.
    ///
    /// # Errors
    /// If there is none in time: how long to wait before the next try, at most [`Outcome::MAX_BUSY_WAIT`].
    pub(crate) async fn take(&self, kind: Kind, origin: &Arc<str>) -> Result<Place<'_>, Duration> {
        let origin = self.find((kind, Arc::clone(origin)));
        let is_proven = origin.is_proven();
        let permits = if let Some(permits) = self.try_permits(&origin, is_proven) {
            permits
        } else {
            let refused = || origin.turn_of_refused(self.limits.per_origin);
            let _waiting = self.wait(&origin, is_proven).ok_or_else(refused)?;
            timeout(self.limits.timeout, self.permits(&origin, is_proven)).await.ok().flatten().ok_or_else(refused)?
        };
        Ok(Place { origins: self, origin, is_proven, taken_at: Instant::now(), _permits: permits })
    }

    /// Notifications that are under way, sends that wait, and origins that are remembered.
    pub(crate) fn usage(&self) -> (usize, usize, usize) {
        let table = self.table();
        (self.limits.under_way - self.under_way.available_permits(), table.waiting, table.origins.len())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self, is_trusted: bool) -> Origin {
        Origin {
            is_trusted,
            turns: Arc::new(Semaphore::new(self.limits.per_origin)),
            waiting: AtomicUsize::new(0),
            answers: AtomicU32::new(0),
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
        let uses = table.uses;
        let origin = Arc::clone(table.origins.entry(key).or_insert_with(|| Arc::new(self.origin(false))));
        origin.last_use.store(uses, Relaxed);
        origin
    }

    fn try_permits(&self, origin: &Origin, is_proven: bool) -> Option<[Option<OwnedSemaphorePermit>; 3]> {
        let permit = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_owned().ok();
        let turn = permit(&origin.turns)?;
        let share = if is_proven { None } else { Some(permit(&self.unproven)?) };
        Some([Some(turn), share, Some(permit(&self.under_way)?)])
    }

    /// The turn comes first: a send that waits for its origin holds no place that others need.
    async fn permits(&self, origin: &Origin, is_proven: bool) -> Option<[Option<OwnedSemaphorePermit>; 3]> {
        let permit = async |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).acquire_owned().await.ok();
        let turn = permit(&origin.turns).await?;
        let share = if is_proven { None } else { Some(permit(&self.unproven).await?) };
        Some([Some(turn), share, Some(permit(&self.under_way).await?)])
    }

    /// Counts a send that waits. One proven origin can take half of the room to wait, another a sixteenth.
    fn wait(&self, origin: &Arc<Origin>, is_proven: bool) -> Option<Waiting<'_>> {
        let room = self.limits.waiting;
        let room_of_origin = if is_proven { room.div_ceil(2) } else { room.div_ceil(16) };
        let mut table = self.table();
        if table.waiting >= room
            || origin.waiting.load(Relaxed) >= room_of_origin
            || (!is_proven && table.waiting_unproven >= room.div_ceil(2))
        {
            return None;
        }
        table.waiting += 1;
        table.waiting_unproven += usize::from(!is_proven);
        origin.waiting.fetch_add(1, Relaxed);
        Some(Waiting { origins: self, origin: Arc::clone(origin), is_proven })
    }

    /// Makes an origin proven, at the expense of the proven one that was not used for longest if there are too many.
    fn prove(&self, origin: &Arc<Origin>) {
        let table = self.table();
        let is_other = |other: &&Arc<Origin>| !other.is_trusted && other.is_proven() && !Arc::ptr_eq(other, origin);
        let proven = || table.origins.values().filter(is_other);
        if proven().count() >= MAX_PROVEN
            && let Some(oldest) = proven().min_by_key(|other| other.last_use.load(Relaxed))
        {
            oldest.answers.store(0, Relaxed);
        }
        origin.answers.store(PROVEN_ANSWERS, Relaxed);
    }
}

impl Table {
    /// Forgets the origin that matters least if there are `limit`: not one in use, rather one that is not proven, rather
    /// one that was not used for long.
    fn make_room(&mut self, limit: usize) {
        if self.origins.len() < limit {
            return;
        }
        let idle = self.origins.iter().filter(|(_, origin)| !origin.is_trusted && Arc::strong_count(origin) == 1);
        let least = idle.min_by_key(|(_, origin)| (origin.is_proven(), origin.last_use.load(Relaxed)));
        if let Some(key) = least.map(|(key, _)| key.clone()) {
            self.origins.remove(&key);
        }
    }
}

/// A send that waits for its place.
struct Waiting<'a> {
    origins: &'a Origins,
    origin: Arc<Origin>,
    is_proven: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut table = self.origins.table();
        table.waiting -= 1;
        table.waiting_unproven -= usize::from(!self.is_proven);
        self.origin.waiting.fetch_sub(1, Relaxed);
    }
}

impl Place<'_> {
    /// Whether the origin was proven when the place was taken.
    pub(crate) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// The VAPID token for the origin.
    pub(crate) fn vapid_token(&self) -> &VapidToken {
        &self.origin.vapid_token
    }

    /// Notes that the origin answered.
    pub(crate) fn answered(&self) {
        if self.taken_at.elapsed() > self.origins.limits.timeout / QUICK_PART {
            return self.failed();
        }
        if self.origin.is_proven() {
            return;
        }
        if self.origin.answers.fetch_add(1, Relaxed) + 1 >= PROVEN_ANSWERS {
            self.origins.prove(&self.origin);
        }
    }

    /// Notes that the origin did not answer.
    pub(crate) fn failed(&self) {
        self.origin.answers.store(0, Relaxed);
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
        let origins = Origins::new(limits(16, 2, 0), []);
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
        let origins = Origins::new(limits(2, 2, 0), ["https://a", "https://b"].map(|text| (Kind::WebPush, name(text))));
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
        let origins = Origins::new(limits(4, 1, 0), [(Kind::Apns, name("https://apns"))]);
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
    async fn one_slow_or_failed_answer_ends_the_proof() {
        let origins = Origins::new(limits(64, 64, 0), []);
        let origin = name("https://a");
        prove(&origins, &origin).await;
        origins.take(Kind::WebPush, &origin).await.unwrap().failed();
        assert!(!origins.take(Kind::WebPush, &origin).await.unwrap().is_proven());

        prove(&origins, &origin).await;
        let place = origins.take(Kind::WebPush, &origin).await.unwrap();
        tokio::time::advance(TIMEOUT / QUICK_PART + Duration::from_millis(1)).await;
        place.answered();
        assert!(!origins.take(Kind::WebPush, &origin).await.unwrap().is_proven());
    }

    #[tokio::test(start_paused = true)]
    async fn the_origins_of_the_operator_stay_trusted() {
        let origin = name("https://api.push.apple.com");
        let origins = Origins::new(limits(64, 64, 0), [(Kind::Apns, origin.clone())]);
        origins.take(Kind::Apns, &origin).await.unwrap().failed();
        assert!(origins.take(Kind::Apns, &origin).await.unwrap().is_proven());
    }

    #[tokio::test(start_paused = true)]
    async fn kinds_at_one_origin_share_neither_places_nor_trust() {
        let origin = name("https://fcm.googleapis.com");
        let origins = Origins::new(limits(16, 2, 0), [(Kind::Fcm, origin.clone())]);
        let held =
            [origins.take(Kind::WebPush, &origin).await.unwrap(), origins.take(Kind::WebPush, &origin).await.unwrap()];
        assert!(held.iter().all(|place| !place.is_proven()));
        assert!(origins.take(Kind::WebPush, &origin).await.is_err());
        assert!(origins.take(Kind::Fcm, &origin).await.unwrap().is_proven());
        assert_eq!(origins.usage().2, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_send_waits_for_its_turn_and_not_for_ever() {
        let origins = Origins::new(limits(4, 1, 16), []);
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
        let origins = Origins::new(limits(8, 1, 32), []);
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
        let origins = Origins::new(limits(8, 2, 0), []);
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
        let origins = Origins::new(limits(16, 1, 0), [(Kind::Apns, name("https://apns"))]);
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
        let origins = Origins::new(limits(16, 1, 0), []);
        for index in 0..=MAX_PROVEN {
            prove(&origins, &name(&format!("https://{index}"))).await;
        }
        assert!(!origins.take(Kind::WebPush, &name("https://0")).await.unwrap().is_proven());
        assert!(origins.take(Kind::WebPush, &name("https://1")).await.unwrap().is_proven());
    }
}

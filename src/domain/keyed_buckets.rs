//! Token buckets by key, held in memory, in a table of bounded size that never forgets what counts.
//!
//! A bucket belongs to an owner: the user that spends its tokens. Full buckets are removed, oldest first, which loses
//! nothing. If the table has no room although none is full, the owner with the most buckets loses some, and gets no new
//! ones until the lost ones would have been full again. So nobody resets a bucket of their own or of others by opening
//! many, and an owner with fewer buckets than its fair share of the table is limited exactly as in a table without
//! bounds.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, hash_map::Entry},
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{DeviceId, Timestamp, UserId, clock_guard::TOLERATED_AHEAD, token_bucket::TokenBucket};

/// Maximum number of buckets in a table: 75 MiB if each has another owner, half of that if owners have many.
const MAX_BUCKETS: usize = 200_000;
/// Full buckets are removed only from tables with more buckets than this, so that a small table rarely changes.
const CLEAN_ABOVE: usize = 10_000;
/// Maximum number of buckets that one request looks at to remove full ones.
const CLEAN_STEP: usize = 64;
/// If the table is full, the owner with the most buckets loses one in this many. So finding them costs constant time per
/// bucket.
const DISPLACED: usize = 8;

/// A token bucket per owner and key: `burst` tokens at once, then one more per `refill`. Other nodes have their own
/// buckets.
pub struct KeyedBuckets<O, K> {
    burst: u32,
    refill: Duration,
    max_buckets: usize,
    table: Mutex<BucketTable<O, K>>,
}

/// Limits how many claims of one user may take a key of one device.
pub type DrainLimit = KeyedBuckets<UserId, DeviceId>;

struct BucketTable<O, K> {
    owners: HashMap<O, OwnedBuckets<K>>,
    /// The owners by their number of buckets.
    by_size: BTreeSet<(usize, O)>,
    /// The number of buckets.
    total: usize,
    /// When each bucket may be full. A bucket that was used since is full later; one that was displaced is missing.
    due: BinaryHeap<Reverse<(Timestamp, O, K)>>,
}

struct OwnedBuckets<K> {
    buckets: HashMap<K, TokenBucket<Timestamp>>,
    /// When the buckets that the owner has lost would all have been full again.
    closed_until: Option<Timestamp>,
}

impl<O: Copy + Hash + Ord, K: Copy + Hash + Ord> KeyedBuckets<O, K> {
    /// Starts with full buckets. A `burst` of 0 turns the limit off.
    #[must_use]
    pub fn new(burst: u32, refill: Duration) -> Self {
        Self::with_max_buckets(burst, refill, MAX_BUCKETS)
    }

    fn with_max_buckets(burst: u32, refill: Duration, max_buckets: usize) -> Self {
        // A timestamp has whole microseconds; a shorter refill would round to zero and make tokens free.
        let micros = u64::try_from(refill.as_micros()).unwrap_or(u64::MAX).max(1);
        let table = BucketTable { owners: HashMap::new(), by_size: BTreeSet::new(), total: 0, due: BinaryHeap::new() };
        Self { burst, refill: Duration::from_micros(micros), max_buckets, table: Mutex::new(table) }
    }

    fn table(&self) -> MutexGuard<'_, BucketTable<O, K>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token from the owner's bucket of `key`.
    ///
    /// # Errors
    /// The time until the next token, if the bucket is empty; the time until there may be room, if the table is full and
    /// the owner has more of it than others, or was displaced.
    pub fn take(&self, owner: O, key: K, now: Timestamp) -> Result<(), Duration> {
        if self.burst == 0 {
            return Ok(());
        }
        let capacity = self.refill.saturating_mul(self.burst);
        let mut table = self.table();
        if let Some(bucket) = table.owners.get_mut(&owner).and_then(|owned| owned.buckets.get_mut(&key)) {
            if bucket.missing(now) > capacity + TOLERATED_AHEAD {
                // More than a bucket holds: it was used before the clock was set back.
                *bucket = TokenBucket::full(now);
            }
            return bucket.take(self.refill, capacity, now);
        }
        table.clean(now, CLEAN_ABOVE.min(self.max_buckets - 1));
        let closed_until = table.owners.get(&owner).and_then(|owned| owned.closed_until);
        let wait = closed_until.map_or(Duration::ZERO, |until| until.since(now));
        if !wait.is_zero() && wait <= capacity + TOLERATED_AHEAD {
            return Err(wait);
        }
        if table.total >= self.max_buckets && !table.displace_for(owner) {
            return Err(table.first_due(now).max(self.refill));
        }
        let mut bucket = TokenBucket::full(now);
        bucket.charge(self.refill, now);
        table.insert(owner, key, bucket);
        if table.due.len() > 2 * self.max_buckets {
            table.rebuild_due();
        }
        Ok(())
    }

    /// Puts back a token that was not used.
    pub fn refund(&self, owner: O, key: K) {
        let mut table = self.table();
        let Some(owned) = table.owners.get_mut(&owner) else { return };
        if let Some(bucket) = owned.buckets.get_mut(&key) {
            bucket.refund(self.refill);
            // The owner's record must last as long as it gets no new buckets.
            if let Some(until) = owned.closed_until.filter(|until| *until > bucket.full_at()) {
                *bucket = TokenBucket::full(until);
            }
        }
    }
}

impl<O: Copy + Hash + Ord, K: Copy + Hash + Ord> BucketTable<O, K> {
    /// Removes full buckets, oldest first, while there are more than `keep`; at most [`CLEAN_STEP`].
    fn clean(&mut self, now: Timestamp, keep: usize) {
        for _ in 0..CLEAN_STEP {
            if self.total <= keep {
                return;
            }
            let Some(Reverse((_, owner, key))) = self.due.peek().copied().filter(|Reverse((at, ..))| *at <= now) else {
                return;
            };
            self.due.pop();
            let bucket = self.owners.get(&owner).and_then(|owned| owned.buckets.get(&key));
            match bucket.map(TokenBucket::full_at) {
                None => {}
                Some(full_at) if full_at > now => self.due.push(Reverse((full_at, owner, key))),
                Some(_) => self.remove(owner, key),
            }
        }
    }

    /// The time until the next bucket may be full.
    fn first_due(&self, now: Timestamp) -> Duration {
        self.due.peek().map_or(Duration::ZERO, |Reverse((at, ..))| at.since(now))
    }

    /// Makes room for a bucket of `owner` at the expense of the owner with the most buckets: those of its buckets that are
    /// full first. Returns `false` if `owner` has as many itself.
    fn displace_for(&mut self, owner: O) -> bool {
        let Some((most, largest)) = self.by_size.last().copied() else { return false };
        let own = self.owners.get(&owner).map_or(0, |owned| owned.buckets.len());
        // One that lost its last bucket would leave nothing behind that says so.
        if own >= most || most < 2 {
            return false;
        }
        let Some(owned) = self.owners.get_mut(&largest) else { return false };
        let lost = (most / DISPLACED).max(1);
        let mut all: Vec<(Timestamp, K)> = owned.buckets.iter().map(|(key, one)| (one.full_at(), *key)).collect();
        all.select_nth_unstable(lost - 1);
        all.truncate(lost);
        owned.closed_until = all.iter().map(|(full_at, _)| *full_at).max().max(owned.closed_until);
        for (_, key) in all {
            self.remove(largest, key);
        }
        true
    }

    fn insert(&mut self, owner: O, key: K, bucket: TokenBucket<Timestamp>) {
        let owned = match self.owners.entry(owner) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(OwnedBuckets { buckets: HashMap::new(), closed_until: None }),
        };
        self.by_size.remove(&(owned.buckets.len(), owner));
        owned.buckets.insert(key, bucket);
        self.by_size.insert((owned.buckets.len(), owner));
        self.total += 1;
        self.due.push(Reverse((bucket.full_at(), owner, key)));
    }

    fn remove(&mut self, owner: O, key: K) {
        let Some(owned) = self.owners.get_mut(&owner) else { return };
        let before = owned.buckets.len();
        if owned.buckets.remove(&key).is_none() {
            return;
        }
        self.total -= 1;
        self.by_size.remove(&(before, owner));
        if before == 1 {
            self.owners.remove(&owner);
        } else {
            self.by_size.insert((before - 1, owner));
        }
    }

    /// Drops what is left of displaced buckets.
    fn rebuild_due(&mut self) {
        let all = self.owners.iter().flat_map(|(owner, owned)| {
            owned.buckets.iter().map(|(key, bucket)| Reverse((bucket.full_at(), *owner, *key)))
        });
        self.due = all.collect();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use uuid::Uuid;

    use super::*;

    fn start() -> Timestamp {
        Timestamp::parse("2026-01-01T00:00:00Z").unwrap()
    }

    #[test]
    fn a_bucket_allows_ten_at_once_and_then_one_per_ten_minutes() {
        let limit = DrainLimit::new(10, Duration::from_mins(10));
        let (user, device) = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
        let start = start();
        let taken = |at: Timestamp, tries: usize| (0..tries).filter(|_| limit.take(user, device, at).is_ok()).count();
        assert_eq!(taken(start, 12), 10);
        assert_eq!(taken(start + Duration::from_mins(9), 3), 0);
        assert_eq!(taken(start + Duration::from_mins(10), 3), 1);
        assert_eq!(limit.take(user, device, start + Duration::from_mins(14)), Err(Duration::from_mins(6)));
        limit.refund(user, device);
        assert_eq!(taken(start + Duration::from_mins(10), 3), 1);
        assert_eq!(taken(start + Duration::from_hours(10), 12), 10);
        assert!(limit.take(UserId(Uuid::from_u128(3)), device, start).is_ok(), "another user has a bucket of its own");
    }

    #[test]
    fn a_bucket_that_was_used_in_the_future_is_full() {
        let limit = KeyedBuckets::new(10, Duration::from_mins(10));
        let start = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let taken = |at: Timestamp| (0..12).filter(|_| limit.take(1, 1, at).is_ok()).count();
        assert_eq!(taken(start + Duration::from_hours(10 * 365 * 24)), 10);
        assert_eq!((taken(start), taken(start)), (10, 0), "the clock was set back");
    }

    #[test]
    fn a_burst_of_zero_turns_the_limit_off() {
        let limit = DrainLimit::new(0, Duration::from_mins(10));
        assert!((0..1000).all(|_| limit.take(UserId(Uuid::nil()), DeviceId(Uuid::nil()), start()).is_ok()));
    }

    const REFILL: Duration = Duration::from_secs(10);

    /// Two tokens at once, one more every ten seconds, and room for 100 buckets.
    fn small() -> KeyedBuckets<u8, u32> {
        KeyedBuckets::with_max_buckets(2, REFILL, 100)
    }

    #[test]
    fn a_full_table_takes_room_from_the_owner_with_the_most_buckets() {
        let (limit, now) = (small(), start());
        assert!((0..100).all(|key| limit.take(1, key, now).is_ok()));
        assert_eq!(limit.take(1, 100, now), Err(REFILL), "it has more than anybody else");
        for key in 0..2 {
            assert!(limit.take(2, key, now).is_ok() && limit.take(2, key, now).is_ok());
            assert!(limit.take(2, key, now).is_err(), "its buckets are not forgotten");
        }
        // What it lost does not let it take more.
        let taken = (0..100).filter(|key| limit.take(1, *key, now).is_ok()).count();
        assert_eq!(taken, 88, "the second token of what is left");
        assert!(limit.take(1, 1000, now).is_err(), "there is room again, but not for it");
        let later = now + REFILL;
        assert!(limit.take(1, 1000, later).is_ok(), "what it lost would be full now");
    }

    #[test]
    fn full_buckets_make_room_first() {
        let (limit, now) = (small(), start());
        assert!((0..50).all(|key| limit.take(1, key, now).is_ok()));
        let later = now + Duration::from_secs(9);
        assert!((50..100).all(|key| limit.take(1, key, later).is_ok()));
        assert!((0..10).all(|key| limit.take(1, key, later).is_ok()), "used again, and full later");
        assert_eq!(
            limit.take(1, 100, later),
            Err(REFILL),
            "the refill of a token, which is more than the second to wait"
        );
        let at = now + REFILL;
        assert_eq!((100..200).filter(|key| limit.take(1, *key, at).is_ok()).count(), 40);
        assert_eq!(limit.table().total, 100);
    }

    #[test]
    fn a_table_of_owners_with_a_bucket_each_displaces_nobody() {
        let (limit, now) = (small(), start());
        assert!((0..100).all(|owner| limit.take(owner, 0, now).is_ok()));
        assert!(limit.take(100, 0, now).is_err());
        assert!((0..100).all(|owner| limit.take(owner, 0, now).is_ok() && limit.take(owner, 0, now).is_err()));
    }

    #[test]
    fn memory_stays_bounded_while_owners_displace_each_other() {
        let limit: KeyedBuckets<u32, u32> = KeyedBuckets::with_max_buckets(2, REFILL, 100);
        for owner in 0..2000 {
            for key in 0..20 {
                let _ = limit.take(owner, key, start());
            }
        }
        let table = limit.table();
        assert!(table.total <= 100 && table.owners.len() <= 100, "{}, {}", table.total, table.owners.len());
        assert_eq!((table.by_size.len(), table.due.len() <= 200), (table.owners.len(), true));
    }

    /// One bucket for each owner and key, none of which is ever removed.
    #[derive(Default)]
    struct Unbounded(HashMap<(u8, u32), TokenBucket<Timestamp>>);

    impl Unbounded {
        fn bucket(&mut self, owner: u8, key: u32, now: Timestamp) -> &mut TokenBucket<Timestamp> {
            self.0.entry((owner, key)).or_insert_with(|| TokenBucket::full(now))
        }

        /// The number of buckets of `owner` that are not full.
        fn used(&self, owner: u8, now: Timestamp) -> usize {
            self.0.iter().filter(|((of, _), bucket)| *of == owner && !bucket.missing(now).is_zero()).count()
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Owner and key.
        Take(u8, u32),
        /// Takes a token and puts it back.
        TakeBack(u8, u32),
        /// Milliseconds.
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Three owners with many keys, and one with few.
        let taker = prop_oneof![(0..3_u8, 0..120_u32), (Just(3_u8), 0..20_u32)];
        prop_oneof![
            40 => taker.clone().prop_map(|(owner, key)| Step::Take(owner, key)),
            4 => taker.prop_map(|(owner, key)| Step::TakeBack(owner, key)),
            1 => (0..15_000_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn a_bounded_table_allows_no_more_than_an_unbounded_one_and_small_owners_no_less(
            steps in vec(step(), 1..3000),
        ) {
            let (limit, mut model, mut now) = (small(), Unbounded::default(), start());
            let capacity = REFILL * 2;
            for step in steps {
                match step {
                    Step::Wait(ms) => now = now + Duration::from_millis(ms),
                    Step::Take(owner, key) => {
                        let taken = limit.take(owner, key, now).is_ok();
                        let bucket = model.bucket(owner, key, now);
                        if taken {
                            prop_assert!(bucket.take(REFILL, capacity, now).is_ok(), "the token was not there");
                        } else if owner == 3 {
                            prop_assert!(bucket.take(REFILL, capacity, now).is_err(), "a small owner is refused");
                        }
                    }
                    Step::TakeBack(owner, key) => {
                        if limit.take(owner, key, now).is_ok() {
                            let bucket = model.bucket(owner, key, now);
                            prop_assert!(bucket.take(REFILL, capacity, now).is_ok(), "the token was not there");
                            bucket.refund(REFILL);
                            limit.refund(owner, key);
                        }
                    }
                }
                prop_assert!(model.used(3, now) <= 20);
                let table = limit.table();
                prop_assert!(table.total <= 100);
                prop_assert_eq!(table.total, table.owners.values().map(|owned| owned.buckets.len()).sum::<usize>());
                prop_assert_eq!(table.by_size.len(), table.owners.len());
            }
        }
    }
}

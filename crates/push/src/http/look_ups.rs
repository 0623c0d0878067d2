//! Limits look-ups of host names, because clients choose the names, and a look-up that hangs blocks a thread.
//!
//! Look-ups of one name at the same time are joined, and a site has few. Sites whose last look-up was slow share half of all
//! places for ten minutes, so that names that hang leave the other half. A look-up that has begun keeps its place until the
//! resolver is done, even if nobody waits for it any more; one that has not begun is given up with its callers.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::{
    sync::{OnceCell, Semaphore},
    task,
    time::{Duration, Instant},
};

use super::resolver::Resolve;

/// Look-ups of the names of one site at a time.
const PER_SITE: usize = 2;
/// Number of names, or of sites, above which those are forgotten that are not in use; of slow sites, the oldest.
const CLEAN_UP_ABOVE: usize = 1024;
/// A look-up that takes longer is slow.
const SLOW: Duration = Duration::from_secs(1);
/// How long a site is known as slow.
const SLOW_FOR: Duration = Duration::from_mins(10);

/// An error is shared by the callers, and cannot be cloned.
type Shared = Result<Vec<IpAddr>, Arc<io::Error>>;

/// Looks up names.
pub(crate) struct LookUps {
    resolver: Arc<dyn Resolve>,
    all: Arc<Semaphore>,
    /// The part of the places that slow sites can take.
    slow: Arc<Semaphore>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    names: HashMap<Box<str>, Weak<OnceCell<Shared>>>,
    sites: HashMap<Box<str>, Weak<Semaphore>>,
    /// Sites whose last look-up was slow, and when it ended.
    slow_sites: HashMap<Box<str>, Instant>,
}

impl Table {
    fn is_slow(&self, site: &str) -> bool {
        self.slow_sites.get(site).is_some_and(|at| at.elapsed() < SLOW_FOR)
    }

    fn note(&mut self, site: &str, was_slow: bool) {
        if !was_slow {
            self.slow_sites.remove(site);
            return;
        }
        if self.slow_sites.len() >= CLEAN_UP_ABOVE
            && !self.slow_sites.contains_key(site)
            && let Some(oldest) = self.slow_sites.iter().min_by_key(|(_, at)| **at).map(|(site, _)| site.clone())
        {
            self.slow_sites.remove(&oldest);
        }
        self.slow_sites.insert(site.into(), Instant::now());
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LookUps {
    /// At most `all` look-ups at a time.
    pub(crate) fn new(resolver: Arc<dyn Resolve>, all: usize) -> Self {
        let slow = Arc::new(Semaphore::new(all.div_ceil(2)));
        Self { resolver, all: Arc::new(Semaphore::new(all)), slow, table: Arc::default() }
    }

    /// Looks up the addresses of a name.
    ///
    /// # Errors
    /// That of the resolver.
    pub(crate) async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let (cell, site) = {
            let mut table = lock(&self.table);
            let Table { names, sites, .. } = &mut *table;
            (entry(names, name, OnceCell::new), entry(sites, site_of(name), || Semaphore::new(PER_SITE)))
        };
        let found = cell.get_or_init(|| self.look_up(name, site)).await;
        found.clone().map_err(|error| io::Error::new(error.kind(), error))
    }

    async fn look_up(&self, name: &str, site: Arc<Semaphore>) -> Shared {
        let failed = |error| Arc::new(io::Error::other(error));
        let of_site = site.acquire_owned().await.map_err(failed)?;
        let is_slow = lock(&self.table).is_slow(site_of(name));
        let of_slow = if is_slow { Some(Arc::clone(&self.slow).acquire_owned().await.map_err(failed)?) } else { None };
        let of_all = Arc::clone(&self.all).acquire_owned().await.map_err(failed)?;
        let resolving = self.resolver.resolve(name);
        let (table, site, began) = (Arc::clone(&self.table), Box::<str>::from(site_of(name)), Instant::now());
        let look_up = task::spawn(async move {
            let found = resolving.await;
            lock(&table).note(&site, began.elapsed() > SLOW);
            drop((of_site, of_slow, of_all));
            found
        });
        look_up.await.map_err(|error| Arc::new(io::Error::other(error)))?.map_err(Arc::new)
    }
}

/// The value of a key that is in use, or a new one.
fn entry<T>(table: &mut HashMap<Box<str>, Weak<T>>, key: &str, new: impl FnOnce() -> T) -> Arc<T> {
    if let Some(known) = table.get(key).and_then(Weak::upgrade) {
        return known;
    }
    if table.len() >= CLEAN_UP_ABOVE {
        table.retain(|_, value| value.strong_count() > 0);
    }
    let value = Arc::new(new());
    table.insert(key.into(), Arc::downgrade(&value));
    value
}

/// Labels before that of a country below which owners register names.
const PUBLIC_LABELS: [&str; 10] = ["ac", "co", "com", "edu", "go", "gov", "ne", "net", "or", "org"];

/// The part of a host name that one owner has registered, as far as the name shows it: its last two labels, or three if the
/// last two are like `co.uk`. What shares a site by mistake only has its look-ups one after the other.
fn site_of(name: &str) -> &str {
    let name = name.trim_end_matches('.');
    let mut starts = name.rmatch_indices('.').map(|(dot, _)| dot + 1);
    let (Some(last), Some(second)) = (starts.next(), starts.next()) else { return name };
    let looks_public = name.len() - last == 2 && PUBLIC_LABELS.contains(&&name[second..last - 1]);
    if looks_public { starts.next().map_or(name, |third| &name[third..]) } else { &name[second..] }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        time::Duration,
    };

    use tokio::{task::JoinSet, time::timeout};

    use super::*;
    use crate::http::Resolving;

    /// Counts look-ups. Those of names that begin with `hang` take for ever; those that begin with `slow` take a minute.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Resolve for Counting {
        fn resolve(&self, name: &str) -> Resolving {
            self.0.fetch_add(1, Relaxed);
            let (hangs, is_slow) = (name.starts_with("hang"), name.starts_with("slow"));
            Box::pin(async move {
                if hangs {
                    pending::<()>().await;
                }
                if is_slow {
                    tokio::time::sleep(Duration::from_mins(1)).await;
                }
                Ok(vec![[192, 0, 2, 1].into()])
            })
        }
    }

    fn look_ups(all: usize) -> (Arc<LookUps>, Arc<Counting>) {
        let counting = Arc::new(Counting::default());
        (Arc::new(LookUps::new(counting.clone(), all)), counting)
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_of_one_name_are_joined() {
        let (look_ups, counting) = look_ups(8);
        let mut tasks = JoinSet::new();
        for _ in 0..10 {
            let look_ups = look_ups.clone();
            tasks.spawn(async move { look_ups.resolve("slow.example").await.unwrap() });
        }
        assert_eq!(tasks.join_all().await.len(), 10);
        assert_eq!(counting.0.load(Relaxed), 1);
        look_ups.resolve("slow.example").await.unwrap();
        assert_eq!(counting.0.load(Relaxed), 2, "results are not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn a_site_that_hangs_takes_two_look_ups_and_leaves_those_of_others() {
        let (look_ups, counting) = look_ups(4);
        for n in 0..20 {
            let name = format!("hang{n}.attacker.example");
            assert!(timeout(Duration::from_secs(10), look_ups.resolve(&name)).await.is_err());
        }
        assert_eq!(counting.0.load(Relaxed), 2);
        assert!(look_ups.resolve("push.honest.example").await.is_ok());
        let table = look_ups.table.lock().unwrap();
        assert!(table.sites["attacker.example"].upgrade().is_some(), "its two still hang");
    }

    #[tokio::test(start_paused = true)]
    async fn slow_sites_leave_half_of_the_places() {
        let (look_ups, counting) = look_ups(4);
        let ask = |site: usize| {
            let look_ups = look_ups.clone();
            task::spawn(async move { look_ups.resolve(&format!("slow.{site}.example")).await.unwrap() })
        };
        // Four sites become known as slow, and are looked up again.
        let first: Vec<_> = (0..4).map(ask).collect();
        for asked in first {
            asked.await.unwrap();
        }
        let again: Vec<_> = (0..4).map(ask).collect();
        while counting.0.load(Relaxed) < 6 {
            task::yield_now().await;
        }
        let began = Instant::now();
        look_ups.resolve("push.honest.example").await.unwrap();
        assert_eq!((began.elapsed(), counting.0.load(Relaxed)), (Duration::ZERO, 7), "two slow ones wait");
        for asked in again {
            asked.await.unwrap();
        }
        tokio::time::sleep(SLOW_FOR).await;
        assert!(!look_ups.table.lock().unwrap().is_slow("0.example"));
    }

    #[tokio::test(start_paused = true)]
    async fn look_ups_are_limited_in_all_and_names_are_forgotten() {
        let (look_ups, counting) = look_ups(1);
        assert!(timeout(Duration::from_secs(10), look_ups.resolve("hang.a.example")).await.is_err());
        for n in 0..3 * CLEAN_UP_ABOVE {
            let name = format!("{n}.b{n}.example");
            assert!(timeout(Duration::from_millis(1), look_ups.resolve(&name)).await.is_err());
        }
        assert_eq!(counting.0.load(Relaxed), 1);
        let table = look_ups.table.lock().unwrap();
        assert!(table.names.len() <= CLEAN_UP_ABOVE && table.sites.len() <= CLEAN_UP_ABOVE);
    }

    #[test]
    fn a_site_is_what_one_owner_registers() {
        for (name, site) in [
            ("a.b.example.org", "example.org"),
            ("example.org.", "example.org"),
            ("localhost", "localhost"),
            ("a.b.example.co.uk", "example.co.uk"),
            ("co.uk", "co.uk"),
            ("a.t.co", "t.co"),
            ("a.example.de", "example.de"),
        ] {
            assert_eq!(site_of(name), site);
        }
    }
}

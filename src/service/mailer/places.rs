//! Divides the mailer by recipient domain and client network, so that recipients whose mail hangs, and clients that ask for
//! much mail, delay nobody else.
//!
//! A mail holds a *place* while it waits for a connection to the mail server and while it is being sent, and another kind
//! of place while it waits for its next attempt. If all places are taken, a new mail displaces the newest one of the network
//! that holds most.
//!
//! Connections go to the network that has waited longest since it last got one. Attempts that take long mark their domain
//! and network as slow for a while. Slow ones get few connections, and together at most half of them, so the other half is
//! always free for mail that is sent quickly.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use crate::{
    domain::{ClientNetwork, Email, network::CountedNetwork},
    metrics::{MailDrop, MailState, Metrics},
};

/// Maximum number of mails that are being sent or wait for a connection.
const MAX_PLACES: usize = 1024;
/// Maximum number of mails that wait for their next attempt. Each takes about 2 KB of memory.
const MAX_RETRYING: usize = 8 * 1024;
/// Maximum number of connections to the mail server.
const CONNECTIONS: usize = 16;
/// Maximum number of connections for one recipient domain.
const DOMAIN_CONNECTIONS: usize = CONNECTIONS / 2;
/// Maximum number of connections for one client network.
const NETWORK_CONNECTIONS: usize = CONNECTIONS / 4;
/// Maximum number of connections for one slow domain or network.
const SLOW_CONNECTIONS: usize = CONNECTIONS / 8;
/// Maximum number of connections for all slow domains and networks together.
const ALL_SLOW_CONNECTIONS: usize = CONNECTIONS / 2;
/// An attempt that takes this long is slow.
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// How long a domain or network is slow. Each slow attempt occupied a connection for [`SLOW_AFTER`], so a few thousand
/// domains are remembered at most.
const SLOW_FOR: Duration = Duration::from_mins(10);

/// The share of a domain, or of an IPv4 /24 or IPv6 /48, is the limit divided by this.
const SHARES: usize = 8;

/// By what a mail counts.
#[derive(Clone, Debug)]
pub struct MailKeys {
    domain: Arc<str>,
    /// The networks of the client that caused the mail, the widest last. Empty for mails that no client caused.
    networks: Arc<[CountedNetwork]>,
}

impl MailKeys {
    /// The keys of a mail to this address that a client in this network caused.
    pub fn new(to: &Email, network: Option<ClientNetwork>) -> Self {
        let networks = network.iter().flat_map(ClientNetwork::counted).map(|(network, _)| network).collect();
        Self { domain: to.domain().into(), networks }
    }

    /// The widest network: /24 of IPv4, /32 of IPv6.
    fn owner(&self) -> Owner {
        self.networks.last().copied()
    }

    /// The networks, each with its share: an eighth of the limit for the narrowest, then a quarter, then half.
    fn network_shares(&self, limit: usize) -> impl Iterator<Item = (CountedNetwork, usize)> {
        self.networks.iter().enumerate().map(move |(width, network)| (*network, limit / (SHARES >> width)))
    }
}

/// The widest network of a client; `None` for mails that no client caused.
type Owner = Option<CountedNetwork>;

/// What became slow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum SlowKey {
    Domain(Arc<str>),
    Owner(Owner),
}

/// The places and connections of a mailer. Clones share them.
#[derive(Clone)]
pub struct Places {
    state: Arc<Mutex<PlacesState>>,
    metrics: Arc<Metrics>,
    /// The time that has passed for a test, in addition to the real one.
    #[cfg(test)]
    passed: Arc<Mutex<Duration>>,
}

struct PlacesState {
    /// Mails that wait for a connection or are being sent.
    unsent: Room,
    /// Mails that wait for their next attempt.
    retrying: Room,
    connections: Connections,
}

/// Mails with a limit on their number, and with shares of it.
struct Room {
    limit: usize,
    /// Whether there are shares. Not if mails are only written or printed, which nobody can slow down.
    is_divided: bool,
    next_id: u64,
    /// In the order in which they came.
    mails: BTreeMap<u64, Occupant>,
    domains: HashMap<Arc<str>, usize>,
    networks: HashMap<CountedNetwork, usize>,
    owners: HashMap<Owner, usize>,
}

struct Occupant {
    keys: MailKeys,
    /// Wakes the mail. Dropping it tells the mail that it was displaced. `None` while it is being sent.
    wake: Option<oneshot::Sender<()>>,
}

/// The connections in use, and what the choice of the next mail depends on.
struct Connections {
    is_divided: bool,
    /// By the id of the mail.
    used: HashMap<u64, Connection>,
    /// When each network that has unsent mails last got a connection, as the number of connections until then.
    served: HashMap<Owner, u64>,
    count: u64,
    /// Until when domains and networks are slow.
    slow: HashMap<SlowKey, Instant>,
}

struct Connection {
    keys: MailKeys,
    since: Instant,
    /// Whether its domain or network was slow when it was assigned.
    is_slow: bool,
}

/// The place of a mail that waits for a connection or is being sent. Dropping it frees the place and the connection.
#[must_use = "dropping a place gives it back"]
pub struct UnsentPlace {
    places: Places,
    id: u64,
    turn: oneshot::Receiver<()>,
    /// Whether the mail got a connection; `None` while it waits.
    is_connected: Option<bool>,
}

/// The place of a mail that waits for its next attempt. Dropping it frees it.
#[must_use = "dropping a place gives it back"]
pub struct RetryPlace {
    places: Places,
    id: u64,
    displaced: oneshot::Receiver<()>,
}

impl Places {
    /// All places and connections are free. They have shares if `is_divided`.
    pub fn new(is_divided: bool, metrics: Arc<Metrics>) -> Self {
        let state = PlacesState {
            unsent: Room::new(MAX_PLACES, is_divided),
            retrying: Room::new(MAX_RETRYING, is_divided),
            connections: Connections {
                is_divided,
                used: HashMap::new(),
                served: HashMap::new(),
                count: 0,
                slow: HashMap::new(),
            },
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            metrics,
            #[cfg(test)]
            passed: Arc::default(),
        }
    }

    /// Takes a place for a mail that is to be sent.
    ///
    /// # Errors
    /// If its domain or network holds its share, or all places are taken and no network holds more than its own.
    pub fn enter(&self, keys: &MailKeys) -> Result<UnsentPlace, MailDrop> {
        let (wake, turn) = oneshot::channel();
        let id = self.change(|state| {
            let id = state.unsent.insert(keys, wake)?;
            state.assign(self.now());
            Ok(id)
        })?;
        Ok(UnsentPlace { places: self.clone(), id, turn, is_connected: None })
    }

    /// Takes a place for a mail that waits for its next attempt.
    ///
    /// # Errors
    /// As for [`Self::enter`].
    pub fn wait(&self, keys: &MailKeys) -> Result<RetryPlace, MailDrop> {
        let (wake, displaced) = oneshot::channel();
        let id = self.change(|state| state.retrying.insert(keys, wake)).map_err(|_| MailDrop::Retries)?;
        Ok(RetryPlace { places: self.clone(), id, displaced })
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests have a time of their own")]
    fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    fn now(&self) -> Instant {
        Instant::now() + *self.passed.lock().unwrap()
    }

    /// Changes the state, and sets the gauges.
    fn change<T>(&self, change: impl FnOnce(&mut PlacesState) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        let sending = state.connections.used.len();
        let waiting = state.unsent.mails.len().saturating_sub(sending);
        let retrying = state.retrying.mails.len();
        for (of, mails) in
            [(MailState::Sending, sending), (MailState::Waiting, waiting), (MailState::Retrying, retrying)]
        {
            self.metrics.unsent_mails.set(of, u64::try_from(mails).unwrap_or(u64::MAX));
        }
        changed
    }

    /// The number of mails that wait for their next attempt.
    #[cfg(test)]
    pub fn retrying(&self) -> usize {
        self.state().retrying.mails.len()
    }

    fn state(&self) -> MutexGuard<'_, PlacesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnsentPlace {
    /// Waits for a connection to the mail server. Returns false if the mail was displaced by another one.
    pub async fn connection(&mut self) -> bool {
        if let Some(is_connected) = self.is_connected {
            return is_connected;
        }
        let is_connected = (&mut self.turn).await.is_ok();
        self.is_connected = Some(is_connected);
        is_connected
    }

    /// Notes that the mail was sent: its domain is not slow, unless this attempt took long too.
    pub fn note_sent(&self) {
        let mut state = self.places.state();
        let connections = &mut state.connections;
        if let Some(connection) = connections.used.get(&self.id) {
            connections.slow.remove(&SlowKey::Domain(connection.keys.domain.clone()));
        }
    }
}

impl Drop for UnsentPlace {
    fn drop(&mut self) {
        let now = self.places.now();
        self.places.change(|state| {
            state.unsent.remove(self.id);
            state.connections.release(self.id, now);
            state.assign(now);
        });
    }
}

impl RetryPlace {
    /// Waits until the mail is displaced by another one.
    pub async fn displaced(&mut self) {
        // The sender is only ever dropped.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for RetryPlace {
    fn drop(&mut self) {
        self.places.change(|state| state.retrying.remove(self.id));
    }
}

impl PlacesState {
    /// Gives free connections to mails that wait for one.
    fn assign(&mut self, now: Instant) {
        while self.connections.used.len() < CONNECTIONS {
            let Some(wake) = self.connections.choose(&mut self.unsent, now) else { break };
            // If the mail no longer waits, it is about to give its place back, and the connection with it.
            let _ = wake.send(());
        }
        let owners = &self.unsent.owners;
        self.connections.served.retain(|owner, _| owners.contains_key(owner));
    }
}

impl Room {
    fn new(limit: usize, is_divided: bool) -> Self {
        Self {
            limit,
            is_divided,
            next_id: 0,
            mails: BTreeMap::new(),
            domains: HashMap::new(),
            networks: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    /// Takes a place for a mail, and returns its id.
    fn insert(&mut self, keys: &MailKeys, wake: oneshot::Sender<()>) -> Result<u64, MailDrop> {
        if self.is_divided {
            if count(&self.domains, &keys.domain) >= self.limit / SHARES {
                return Err(MailDrop::Domain);
            }
            if keys.network_shares(self.limit).any(|(network, share)| count(&self.networks, &network) >= share) {
                return Err(MailDrop::Network);
            }
        }
        if self.mails.len() >= self.limit {
            let displaced = self.newest_of_largest(keys.owner()).ok_or(MailDrop::Places)?;
            self.remove(displaced);
        }
        let id = self.next_id;
        self.next_id += 1;
        *self.domains.entry(keys.domain.clone()).or_default() += 1;
        for network in keys.networks.iter() {
            *self.networks.entry(*network).or_default() += 1;
        }
        *self.owners.entry(keys.owner()).or_default() += 1;
        self.mails.insert(id, Occupant { keys: keys.clone(), wake: Some(wake) });
        Ok(id)
    }

    /// The newest mail that can be displaced of the network that holds most, if that is more than `owner` would hold.
    fn newest_of_largest(&self, owner: Owner) -> Option<u64> {
        let own = count(&self.owners, &owner);
        let (largest, _) = self.owners.iter().filter(|(_, held)| **held > own + 1).max_by_key(|(_, held)| **held)?;
        let mut newest_first = self.mails.iter().rev();
        newest_first.find(|(_, mail)| mail.wake.is_some() && mail.keys.owner() == *largest).map(|(id, _)| *id)
    }

    /// Frees the place of a mail. Does nothing if the mail was displaced.
    fn remove(&mut self, id: u64) {
        let Some(Occupant { keys, .. }) = self.mails.remove(&id) else { return };
        subtract(&mut self.domains, &keys.domain);
        for network in keys.networks.iter() {
            subtract(&mut self.networks, network);
        }
        subtract(&mut self.owners, &keys.owner());
    }
}

impl Connections {
    /// Chooses the next mail to send, assigns a connection to it and returns what wakes it; `None` if no mail may have one
    /// now.
    fn choose(&mut self, unsent: &mut Room, now: Instant) -> Option<oneshot::Sender<()>> {
        let waiting = unsent.mails.iter().filter(|(_, mail)| mail.wake.is_some());
        let may_send = waiting.filter(|(_, mail)| self.may_have_one(&mail.keys, now));
        let last_served = |keys: &MailKeys| self.served.get(&keys.owner()).copied().unwrap_or_default();
        let id = may_send.map(|(id, mail)| (last_served(&mail.keys), *id)).min()?.1;
        let mail = unsent.mails.get_mut(&id)?;
        let (keys, wake) = (mail.keys.clone(), mail.wake.take()?);
        self.count += 1;
        self.served.insert(keys.owner(), self.count);
        let is_slow = self.is_slow(&keys, now);
        self.used.insert(id, Connection { keys, since: now, is_slow });
        Some(wake)
    }

    fn may_have_one(&self, keys: &MailKeys, now: Instant) -> bool {
        if !self.is_divided {
            return true;
        }
        let used = |is_same: &dyn Fn(&Connection) -> bool| self.used.values().filter(|used| is_same(used)).count();
        let domain_limit = self.limit(DOMAIN_CONNECTIONS, &SlowKey::Domain(keys.domain.clone()), now);
        let owner_limit = self.limit(NETWORK_CONNECTIONS, &SlowKey::Owner(keys.owner()), now);
        used(&|other| other.keys.domain == keys.domain) < domain_limit
            && used(&|other| other.keys.owner() == keys.owner()) < owner_limit
            && (!self.is_slow(keys, now) || used(&|other| other.is_slow) < ALL_SLOW_CONNECTIONS)
    }

    fn limit(&self, usual: usize, key: &SlowKey, now: Instant) -> usize {
        if self.slow.get(key).is_some_and(|until| *until > now) { SLOW_CONNECTIONS } else { usual }
    }

    fn is_slow(&self, keys: &MailKeys, now: Instant) -> bool {
        let is_slow = |key| self.slow.get(&key).is_some_and(|until| *until > now);
        is_slow(SlowKey::Domain(keys.domain.clone())) || is_slow(SlowKey::Owner(keys.owner()))
    }

    /// Ends the use of a connection, if the mail has one.
    fn release(&mut self, id: u64, now: Instant) {
        let Some(Connection { keys, since, .. }) = self.used.remove(&id) else { return };
        if self.is_divided && now.duration_since(since) >= SLOW_AFTER {
            self.slow.retain(|_, until| *until > now);
            self.slow.insert(SlowKey::Domain(keys.domain.clone()), now + SLOW_FOR);
            self.slow.insert(SlowKey::Owner(keys.owner()), now + SLOW_FOR);
        }
    }
}

fn count<K: Eq + Hash>(counts: &HashMap<K, usize>, key: &K) -> usize {
    counts.get(key).copied().unwrap_or_default()
}

fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn places() -> Places {
        Places::new(true, Arc::default())
    }

    fn pass(places: &Places, time: Duration) {
        *places.passed.lock().unwrap() += time;
    }

    fn keys(domain: &str, network: &str) -> MailKeys {
        let to = Email::parse(&format!("user@{domain}")).unwrap();
        MailKeys::new(&to, Some(network.parse::<std::net::IpAddr>().unwrap().into()))
    }

    /// Takes places until one is refused.
    fn fill(places: &Places, keys: impl Fn(usize) -> MailKeys) -> (Vec<UnsentPlace>, MailDrop) {
        let mut taken = Vec::new();
        loop {
            match places.enter(&keys(taken.len())) {
                Ok(place) => taken.push(place),
                Err(reason) => return (taken, reason),
            }
        }
    }

    fn is_sending(place: &UnsentPlace) -> bool {
        place.places.state().connections.used.contains_key(&place.id)
    }

    fn sending(all: &[UnsentPlace]) -> usize {
        all.iter().filter(|place| is_sending(place)).count()
    }

    #[tokio::test]
    async fn a_domain_and_a_network_hold_an_eighth_of_the_places() {
        let of_domain = places();
        let (held, reason) = fill(&of_domain, |n| keys("slow.example", &format!("10.0.{}.1", n % 256)));
        assert_eq!((held.len(), reason), (128, MailDrop::Domain));
        let other = of_domain.enter(&keys("other.example", "10.0.0.1")).unwrap();
        drop((held, other));
        assert!(of_domain.state().unsent.domains.is_empty(), "all was given back");

        let of_network = places();
        let (held, reason) = fill(&of_network, |n| keys(&format!("d{n}.example"), "10.0.0.1"));
        assert_eq!((held.len(), reason), (128, MailDrop::Network));
        let _other = of_network.enter(&keys("d1.example", "10.0.1.1")).unwrap();

        let wide = places();
        let (held, reason) = fill(&wide, |n| keys(&format!("d{n}.example"), &format!("2001:db8:1{:02x}::1", n % 256)));
        assert_eq!((held.len(), reason), (256, MailDrop::Network), "a quarter for a /40");
        let (held, _) = fill(&wide, |n| keys(&format!("d{n}.example"), &format!("2001:db8:{:x}::1", 0x0200 + n)));
        assert_eq!(held.len(), 256, "half for a /32");
    }

    #[tokio::test]
    async fn if_all_places_are_taken_the_network_that_holds_most_loses_one() {
        let places = places();
        let mut taken = Vec::new();
        // One network holds 100, and 924 hold one each.
        for n in 0..1024usize {
            let network = format!("10.{}.{}.1", n.saturating_sub(100) / 256, n.saturating_sub(100) % 256);
            taken.push(places.enter(&keys(&format!("d{n}.example"), &network)).unwrap());
        }
        let bystander = places.enter(&keys("honest.example", "192.0.2.1")).unwrap();
        // The 101st is the newest of the network: the others of its network were first.
        let displaced: Vec<usize> = taken
            .iter_mut()
            .enumerate()
            .filter_map(|(n, place)| (place.connection().now_or_never() == Some(false)).then_some(n))
            .collect();
        assert_eq!(displaced, [100]);
        assert_eq!(places.enter(&keys("d.example", "10.0.0.1")).err(), Some(MailDrop::Places), "it holds most itself");
        drop((taken, bystander));
        let state = places.state();
        assert!(state.unsent.mails.is_empty() && state.unsent.owners.is_empty() && state.connections.used.is_empty());
    }

    #[tokio::test]
    async fn recipients_that_hang_leave_connections_for_others() {
        let places = places();
        let mut hanging: Vec<_> =
            (0..100).map(|n| places.enter(&keys("slow.example", &format!("10.0.{n}.1"))).unwrap()).collect();
        assert_eq!(sending(&hanging), DOMAIN_CONNECTIONS, "half of the connections");
        let honest: Vec<_> =
            (0..20).map(|n| places.enter(&keys("quick.example", &format!("192.0.{n}.1"))).unwrap()).collect();
        assert_eq!(sending(&honest), CONNECTIONS - DOMAIN_CONNECTIONS);
        drop(honest);
        pass(&places, SLOW_AFTER);
        // The attempts end, and the mails give their places back.
        let waiting = hanging.split_off(DOMAIN_CONNECTIONS);
        drop(hanging);
        assert_eq!(sending(&waiting), SLOW_CONNECTIONS);
        pass(&places, SLOW_FOR);
        let _another = places.enter(&keys("slow.example", "10.1.1.1")).unwrap();
        assert_eq!(sending(&waiting), DOMAIN_CONNECTIONS, "those from before, and more: it is no longer slow");
    }

    #[tokio::test]
    async fn networks_whose_mail_hangs_leave_connections_for_others_whatever_the_domains() {
        let places = places();
        let mail = |n: usize| places.enter(&keys(&format!("d{n}.example"), &format!("10.0.{}.1", n % 35))).unwrap();
        for round in 0..35 {
            let hanging: Vec<_> = (0..4).map(|n| mail(round * 100 + n * 35 + round % 35)).collect();
            sending(&hanging);
            pass(&places, SLOW_AFTER);
        }
        let hanging: Vec<_> = (5000..5500).map(mail).collect();
        assert_eq!(sending(&hanging), ALL_SLOW_CONNECTIONS);
        let honest: Vec<_> =
            (0..8).map(|n| places.enter(&keys("quick.example", &format!("192.0.{n}.1"))).unwrap()).collect();
        assert_eq!(sending(&honest), 8);
    }

    #[tokio::test]
    async fn the_network_that_waited_longest_is_next_and_a_sent_mail_makes_its_domain_quick_again() {
        let places = places();
        let slow = keys("slow.example", "10.0.0.1");
        let first = places.enter(&slow).unwrap();
        assert!(is_sending(&first));
        pass(&places, SLOW_AFTER);
        drop(first);
        let is_slow = || places.state().connections.is_slow(&keys("slow.example", "192.0.2.1"), places.now());
        assert!(is_slow());
        let again = places.enter(&keys("slow.example", "192.0.2.1")).unwrap();
        again.note_sent();
        assert!(!is_slow());
        drop(again);

        // All connections are in use; then the first one that is free goes to the network that has had none.
        let mut busy: Vec<_> = (0..16)
            .map(|n| places.enter(&keys(&format!("d{n}.example"), &format!("10.1.{}.1", n / 4))).unwrap())
            .collect();
        assert_eq!(sending(&busy), CONNECTIONS);
        let more = places.enter(&keys("d1.example", "10.1.0.1")).unwrap();
        let newcomer = places.enter(&keys("d1.example", "10.2.0.1")).unwrap();
        drop(busy.remove(0));
        assert!(is_sending(&newcomer) && !is_sending(&more));
        drop(busy.remove(0));
        assert!(is_sending(&more));
    }

    #[tokio::test]
    async fn without_shares_only_the_number_of_places_counts() {
        let places = Places::new(false, Arc::default());
        let (held, reason) = fill(&places, |_| keys("example.org", "127.0.0.1"));
        assert_eq!((held.len(), reason), (MAX_PLACES, MailDrop::Places));
        assert_eq!(sending(&held), CONNECTIONS);
    }

    #[tokio::test]
    async fn retries_wait_outside_the_places() {
        let places = places();
        let one = keys("grey.example", "10.0.0.1");
        let waiting: Vec<_> = (0..MAX_RETRYING / SHARES).map(|_| places.wait(&one).unwrap()).collect();
        assert_eq!(places.wait(&one).err(), Some(MailDrop::Retries));
        let _place = places.enter(&one).unwrap();
        drop(waiting);
        assert!(places.state().retrying.mails.is_empty());
    }
}

//! Divides the mailer by recipient domain and client network, so that recipients whose mail hangs, and clients that ask for
//! much mail, delay nobody else.
//!
//! A mail holds a *place* while it waits for a connection to the mail server and while it is being sent, and another kind
//! of place while it waits for its next attempt. Each mail has an *owner*: a code that of the network of the client that asked
//! for it, a notice its recipient. If all places, or those of its domain or network, are taken, a new mail displaces the newest
//! one of the owner that holds most there. So nobody can take a domain's share from its other users, and nobody can suppress
//! the notices of what they do to somebody else's account by using up the share of the network from which they do it.
//!
//! Connections go to the owner that has waited longest since it last got one. Attempts that take long mark their domain
//! and owner as slow for a while. Slow ones get few connections, and together at most half of them, so the other half is
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
/// Maximum number of connections for one owner.
const OWNER_CONNECTIONS: usize = CONNECTIONS / 4;
/// Maximum number of connections for all notices, whose owners are easier to multiply than networks.
const NOTICE_CONNECTIONS: usize = CONNECTIONS / 2;
/// Maximum number of connections for one slow domain or owner.
const SLOW_CONNECTIONS: usize = CONNECTIONS / 8;
/// Maximum number of connections for all slow domains and owners together.
const ALL_SLOW_CONNECTIONS: usize = CONNECTIONS / 2;
/// An attempt that takes this long is slow.
const SLOW_AFTER: Duration = Duration::from_secs(5);
/// How long a domain or owner is slow. Each slow attempt occupied a connection for [`SLOW_AFTER`], so a few thousand
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
    owner: Owner,
}

impl MailKeys {
    /// The keys of a code for this address that a client in this network requested.
    pub fn code(to: &Email, network: Option<ClientNetwork>) -> Self {
        Self::new(to, network, Owner::Network(network.map(|network| network.widest())))
    }

    /// The keys of a notice to this address that a client in this network caused.
    pub fn notice(to: &Email, network: Option<ClientNetwork>) -> Self {
        Self::new(to, network, Owner::Recipient(to.clone()))
    }

    fn new(to: &Email, network: Option<ClientNetwork>, owner: Owner) -> Self {
        let networks = network.iter().flat_map(ClientNetwork::counted).map(|(network, _)| network).collect();
        Self { domain: to.domain().into(), networks, owner }
    }

    const fn is_notice(&self) -> bool {
        matches!(self.owner, Owner::Recipient(_))
    }

    /// The networks, each with its share: an eighth of the limit for the narrowest, then a quarter, then half.
    fn network_shares(&self, limit: usize) -> impl Iterator<Item = (CountedNetwork, usize)> {
        self.networks.iter().enumerate().map(move |(width, network)| (*network, limit / (SHARES >> width)))
    }
}

/// By whom mails take turns.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    /// The widest network of the client that asked for a code: /24 of IPv4, /32 of IPv6. `None` if no client did.
    Network(Option<CountedNetwork>),
    /// The recipient of a notice.
    Recipient(Email),
}

/// Wakes a mail: it got a connection, or was displaced because of this limit.
type Wake = oneshot::Sender<Result<(), MailDrop>>;

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
    /// `None` while it is being sent.
    wake: Option<Wake>,
}

/// The connections in use, and what the choice of the next mail depends on.
struct Connections {
    is_divided: bool,
    /// By the id of the mail.
    used: HashMap<u64, Connection>,
    /// When each owner that has unsent mails last got a connection, as the number of connections until then.
    served: HashMap<Owner, u64>,
    count: u64,
    /// Until when domains and owners are slow.
    slow: HashMap<SlowKey, Instant>,
}

struct Connection {
    keys: MailKeys,
    since: Instant,
    /// Whether its domain or owner was slow when it was assigned.
    is_slow: bool,
}

/// The place of a mail that waits for a connection or is being sent. Dropping it frees the place and the connection.
#[must_use = "dropping a place gives it back"]
pub struct UnsentPlace {
    places: Places,
    id: u64,
    turn: oneshot::Receiver<Result<(), MailDrop>>,
    /// Whether the mail got a connection; `None` while it waits.
    connected: Option<Result<(), MailDrop>>,
}

/// The place of a mail that waits for its next attempt. Dropping it frees it.
#[must_use = "dropping a place gives it back"]
pub struct RetryPlace {
    places: Places,
    id: u64,
    displaced: oneshot::Receiver<Result<(), MailDrop>>,
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
    /// If all places, or those of its domain or network, are taken and no owner holds more of them than its own.
    pub fn enter(&self, keys: &MailKeys) -> Result<UnsentPlace, MailDrop> {
        let (wake, turn) = oneshot::channel();
        let id = self.change(|state| {
            let id = state.unsent.insert(keys, wake)?;
            state.assign(self.now());
            Ok(id)
        })?;
        Ok(UnsentPlace { places: self.clone(), id, turn, connected: None })
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
    /// Waits for a connection to the mail server.
    ///
    /// # Errors
    /// If the mail was displaced by another one.
    pub async fn connection(&mut self) -> Result<(), MailDrop> {
        if let Some(connected) = self.connected {
            return connected;
        }
        let connected = (&mut self.turn).await.unwrap_or(Err(MailDrop::Places));
        self.connected = Some(connected);
        connected
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
        // Nothing else wakes a mail that waits for its next attempt.
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
            let _ = wake.send(Ok(()));
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
    fn insert(&mut self, keys: &MailKeys, wake: Wake) -> Result<u64, MailDrop> {
        for (displaced, limit) in self.displaced_by(keys)? {
            if let Some(wake) = self.remove(displaced).and_then(|mail| mail.wake) {
                // If the mail no longer waits, it is about to give its place back anyway.
                let _ = wake.send(Err(limit));
            }
        }
        let id = self.next_id;
        self.next_id += 1;
        *self.domains.entry(keys.domain.clone()).or_default() += 1;
        for network in keys.networks.iter() {
            *self.networks.entry(*network).or_default() += 1;
        }
        *self.owners.entry(keys.owner.clone()).or_default() += 1;
        self.mails.insert(id, Occupant { keys: keys.clone(), wake: Some(wake) });
        Ok(id)
    }

    /// The mails to displace so that there is a place for a new one, each with the limit that it makes room under.
    ///
    /// # Errors
    /// The limit that has no room.
    fn displaced_by(&self, keys: &MailKeys) -> Result<Vec<(u64, MailDrop)>, MailDrop> {
        let mut displaced = Vec::new();
        if self.is_divided {
            let (held, share) = (count(&self.domains, &keys.domain), self.limit / SHARES);
            let is_in = |mail: &MailKeys| mail.domain == keys.domain;
            self.make_room(keys, (held, share, MailDrop::Domain), &is_in, &mut displaced)?;
            for (network, share) in keys.network_shares(self.limit) {
                let held = count(&self.networks, &network);
                let is_in = |mail: &MailKeys| mail.networks.contains(&network);
                self.make_room(keys, (held, share, MailDrop::Network), &is_in, &mut displaced)?;
            }
        }
        self.make_room(keys, (self.mails.len(), self.limit, MailDrop::Places), &|_| true, &mut displaced)?;
        Ok(displaced)
    }

    /// If `held` mails of a group reach its share, adds one of the group to those that are displaced.
    fn make_room(
        &self,
        keys: &MailKeys,
        (held, share, limit): (usize, usize, MailDrop),
        is_in: &dyn Fn(&MailKeys) -> bool,
        displaced: &mut Vec<(u64, MailDrop)>,
    ) -> Result<(), MailDrop> {
        let leaving = displaced.iter().filter(|(id, _)| self.mails.get(id).is_some_and(|mail| is_in(&mail.keys)));
        if held - leaving.count() < share {
            return Ok(());
        }
        let newest = self.newest_of_largest(&keys.owner, is_in, displaced).ok_or(limit)?;
        displaced.push((newest, limit));
        Ok(())
    }

    /// The newest waiting mail of the owner that has most waiting mails in a group, if these are more than `owner` would hold
    /// there.
    fn newest_of_largest(
        &self,
        owner: &Owner,
        is_in: &dyn Fn(&MailKeys) -> bool,
        displaced: &[(u64, MailDrop)],
    ) -> Option<u64> {
        let group = || self.mails.iter().filter(move |(_, mail)| is_in(&mail.keys));
        let own = group().filter(|(_, mail)| mail.keys.owner == *owner).count();
        let is_leaving = |id: &u64| displaced.iter().any(|(leaving, _)| leaving == id);
        let waiting = group().filter(|(id, mail)| mail.wake.is_some() && !is_leaving(id));
        let mut held: HashMap<&Owner, (usize, u64)> = HashMap::new();
        for (id, mail) in waiting {
            let (number, newest) = held.entry(&mail.keys.owner).or_default();
            (*number, *newest) = (*number + 1, *id);
        }
        let (largest, newest) = held.into_values().max_by_key(|(number, _)| *number)?;
        (largest > own + 1).then_some(newest)
    }

    /// Frees the place of a mail and returns it. Does nothing if the mail was displaced.
    fn remove(&mut self, id: u64) -> Option<Occupant> {
        let mail = self.mails.remove(&id)?;
        subtract(&mut self.domains, &mail.keys.domain);
        for network in mail.keys.networks.iter() {
            subtract(&mut self.networks, network);
        }
        subtract(&mut self.owners, &mail.keys.owner);
        Some(mail)
    }
}

impl Connections {
    /// Chooses the next mail to send, assigns a connection to it and returns what wakes it; `None` if no mail may have one
    /// now.
    fn choose(&mut self, unsent: &mut Room, now: Instant) -> Option<Wake> {
        let waiting = unsent.mails.iter().filter(|(_, mail)| mail.wake.is_some());
        let may_send = waiting.filter(|(_, mail)| self.may_have_one(&mail.keys, now));
        let last_served = |keys: &MailKeys| self.served.get(&keys.owner).copied().unwrap_or_default();
        let id = may_send.map(|(id, mail)| (last_served(&mail.keys), *id)).min()?.1;
        let mail = unsent.mails.get_mut(&id)?;
        let (keys, wake) = (mail.keys.clone(), mail.wake.take()?);
        self.count += 1;
        self.served.insert(keys.owner.clone(), self.count);
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
        let owner_limit = self.limit(OWNER_CONNECTIONS, &SlowKey::Owner(keys.owner.clone()), now);
        used(&|other| other.keys.domain == keys.domain) < domain_limit
            && used(&|other| other.keys.owner == keys.owner) < owner_limit
            && (!keys.is_notice() || used(&|other| other.keys.is_notice()) < NOTICE_CONNECTIONS)
            && (!self.is_slow(keys, now) || used(&|other| other.is_slow) < ALL_SLOW_CONNECTIONS)
    }

    fn limit(&self, usual: usize, key: &SlowKey, now: Instant) -> usize {
        if self.slow.get(key).is_some_and(|until| *until > now) { SLOW_CONNECTIONS } else { usual }
    }

    fn is_slow(&self, keys: &MailKeys, now: Instant) -> bool {
        let is_slow = |key| self.slow.get(&key).is_some_and(|until| *until > now);
        is_slow(SlowKey::Domain(keys.domain.clone())) || is_slow(SlowKey::Owner(keys.owner.clone()))
    }

    /// Ends the use of a connection, if the mail has one.
    fn release(&mut self, id: u64, now: Instant) {
        let Some(Connection { keys, since, .. }) = self.used.remove(&id) else { return };
        if self.is_divided && now.duration_since(since) >= SLOW_AFTER {
            self.slow.retain(|_, until| *until > now);
            self.slow.insert(SlowKey::Domain(keys.domain.clone()), now + SLOW_FOR);
            self.slow.insert(SlowKey::Owner(keys.owner), now + SLOW_FOR);
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
        MailKeys::code(&to, Some(network.parse::<std::net::IpAddr>().unwrap().into()))
    }

    fn notice(to: &str, network: &str) -> MailKeys {
        let network = network.parse::<std::net::IpAddr>().unwrap().into();
        MailKeys::notice(&Email::parse(to).unwrap(), Some(network))
    }

    /// The numbers of the mails that were displaced, with the limits.
    fn displaced(places: &mut [UnsentPlace]) -> Vec<(usize, MailDrop)> {
        let connections = places.iter_mut().enumerate().map(|(n, place)| (n, place.connection().now_or_never()));
        connections.filter_map(|(n, connected)| Some((n, connected?.err()?))).collect()
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
        assert_eq!(displaced(&mut taken), [(100, MailDrop::Places)]);
        assert_eq!(places.enter(&keys("d.example", "10.0.0.1")).err(), Some(MailDrop::Places), "it holds most itself");
        drop((taken, bystander));
        let state = places.state();
        assert!(state.unsent.mails.is_empty() && state.unsent.owners.is_empty() && state.connections.used.is_empty());
    }

    #[tokio::test]
    async fn a_full_domain_displaces_the_newest_mail_of_the_network_that_holds_most_of_it() {
        let places = places();
        // 60 networks hold two each, and the first of them eight more.
        let network = |n: usize| format!("10.0.{}.1", if n < 120 { n / 2 } else { 0 });
        let mut taken: Vec<_> = (0..128).map(|n| places.enter(&keys("slow.example", &network(n))).unwrap()).collect();
        let bystander = places.enter(&keys("slow.example", "192.0.2.1")).unwrap();
        assert_eq!(displaced(&mut taken), [(127, MailDrop::Domain)]);
        assert_eq!(
            places.enter(&keys("slow.example", "10.0.0.1")).err(),
            Some(MailDrop::Domain),
            "it holds most itself"
        );
        assert_eq!(places.state().unsent.domains[&Arc::from("slow.example")], 128);
        let mut others: Vec<_> =
            (0..40).map(|n| places.enter(&keys("slow.example", &format!("192.1.{n}.1"))).unwrap()).collect();
        assert!(displaced(&mut others).is_empty());
        drop((taken, bystander, others));
        assert!(places.state().unsent.domains.is_empty() && places.state().unsent.owners.is_empty());
    }

    #[tokio::test]
    async fn a_full_domain_has_room_for_others_among_those_that_wait_for_their_next_attempt() {
        let places = places();
        let attack = keys("grey.example", "10.0.0.1");
        let mut waiting: Vec<_> = (0..MAX_RETRYING / SHARES).map(|_| places.wait(&attack).unwrap()).collect();
        let _bystander = places.wait(&keys("grey.example", "192.0.2.1")).unwrap();
        let gone = waiting.iter_mut().filter_map(|place| place.displaced().now_or_never()).count();
        assert_eq!(gone, 1);
        assert_eq!(places.wait(&attack).err(), Some(MailDrop::Retries));
    }

    #[tokio::test]
    async fn a_network_with_a_full_share_suppresses_no_notice_about_what_it_does() {
        let full = places();
        let (mut codes, reason) = fill(&full, |n| keys(&format!("d{n}.example"), "10.0.0.1"));
        assert_eq!((codes.len(), reason), (128, MailDrop::Network));
        let _to_victim = full.enter(&notice("victim@one.example", "10.0.0.1")).unwrap();
        assert_eq!(displaced(&mut codes), [(127, MailDrop::Network)]);
        drop(codes);

        // Notices of its own account displace each other.
        let full = places();
        let (mut own, reason) = fill(&full, |_| notice("thief@slow.example", "10.0.0.1"));
        assert_eq!((own.len(), reason), (128, MailDrop::Domain));
        assert_eq!(sending(&own), OWNER_CONNECTIONS);
        let victim = full.enter(&notice("victim@slow.example", "10.0.0.1")).unwrap();
        assert!(is_sending(&victim), "it is next");
        assert_eq!(displaced(&mut own), [(127, MailDrop::Domain)]);
    }

    #[tokio::test]
    async fn notices_leave_connections_for_codes() {
        let places = places();
        let notices: Vec<_> = (0..40)
            .map(|n| places.enter(&notice(&format!("user@d{n}.example"), &format!("10.0.{n}.1"))).unwrap())
            .collect();
        assert_eq!(sending(&notices), NOTICE_CONNECTIONS);
        let codes: Vec<_> =
            (0..8).map(|n| places.enter(&keys("quick.example", &format!("192.0.{n}.1"))).unwrap()).collect();
        assert_eq!(sending(&codes), 8);
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

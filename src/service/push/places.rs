//! Places for pushes that clients ask for, divided by device, user and client network.
//!
//! Nobody waits for a place. If a share or all places are taken, a new push displaces the oldest one of the user or network
//! that holds most. A push service that works answers within a second, so the oldest push is mostly one to a service that
//! hangs. A device has at most one place, and a new push of the device displaces the one before.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

use crate::domain::{ClientNetwork, DeviceId, UserId, network::CountedNetwork};

/// The share of a user is the limit divided by this.
const USERS: usize = 16;
/// The share of an IPv4 /24 or IPv6 /48 is the limit divided by this. That of a /40 is twice as large, that of a /32 four
/// times.
const NETWORKS: usize = 8;

/// The device, user and network that a push counts for.
#[derive(Clone, Copy, Debug)]
pub struct PlaceHolder {
    /// The device.
    pub device: DeviceId,
    /// Its user.
    pub user: UserId,
    /// The client's network.
    pub network: ClientNetwork,
}

/// A number of places. Clones share them.
#[derive(Clone)]
pub struct Places {
    limit: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    /// In the order in which they came.
    held: BTreeMap<u64, Held>,
    devices: HashMap<DeviceId, u64>,
    users: HashMap<UserId, usize>,
    networks: HashMap<CountedNetwork, usize>,
}

struct Held {
    device: DeviceId,
    user: UserId,
    /// The widest last.
    networks: Vec<CountedNetwork>,
    /// Dropping it tells the holder that it was displaced.
    _displaced: oneshot::Sender<()>,
}

/// A place. Dropping it frees it.
#[must_use = "dropping a place gives it back"]
pub struct Place {
    places: Places,
    id: u64,
    displaced: oneshot::Receiver<()>,
}

impl Places {
    /// `limit` free places.
    pub fn new(limit: usize) -> Self {
        Self { limit, state: Arc::default() }
    }

    /// Takes a place, at the expense of an older one if there is none.
    pub fn enter(&self, holder: PlaceHolder) -> Place {
        let networks: Vec<_> = holder.network.counted().into_iter().map(|(network, _)| network).collect();
        let mut state = self.state();
        if let Some(id) = state.devices.get(&holder.device).copied() {
            state.remove(id);
        }
        if state.users.get(&holder.user).is_some_and(|held| *held >= (self.limit / USERS).max(1)) {
            state.displace(|held| held.user == holder.user);
        }
        for (width, network) in networks.iter().enumerate() {
            let share = (self.limit / (NETWORKS >> width)).max(1);
            if state.networks.get(network).is_some_and(|held| *held >= share) {
                state.displace(|held| held.networks.contains(network));
            }
        }
        if state.held.len() >= self.limit {
            let owners = state.held.values().filter_map(|held| held.networks.last());
            if let Some(most) = owners.max_by_key(|network| state.networks.get(network)).copied() {
                state.displace(|held| held.networks.last() == Some(&most));
            }
        }
        let (id, (displaced, receiver)) = (state.next_id, oneshot::channel());
        state.next_id += 1;
        state.devices.insert(holder.device, id);
        *state.users.entry(holder.user).or_default() += 1;
        for network in &networks {
            *state.networks.entry(*network).or_default() += 1;
        }
        let held = Held { device: holder.device, user: holder.user, networks, _displaced: displaced };
        state.held.insert(id, held);
        drop(state);
        Place { places: self.clone(), id, displaced: receiver }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes one of these: the oldest one of the user that holds most.
    fn displace(&mut self, of: impl Fn(&Held) -> bool) {
        let candidates = self.held.iter().filter(|(_, held)| of(held));
        let victim = candidates.min_by_key(|(id, held)| (Reverse(self.users.get(&held.user)), **id));
        if let Some(id) = victim.map(|(id, _)| *id) {
            self.remove(id);
        }
    }

    fn remove(&mut self, id: u64) {
        let Some(held) = self.held.remove(&id) else { return };
        self.devices.remove(&held.device);
        subtract(&mut self.users, &held.user);
        for network in &held.networks {
            subtract(&mut self.networks, network);
        }
    }
}

fn subtract<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Place {
    /// Runs a future as long as the place is held. Returns `None` if the place was displaced before the end.
    pub async fn hold<T>(mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            _ = &mut self.displaced => None,
            done = future => Some(done),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.state().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, net::IpAddr};

    use futures_util::FutureExt;
    use uuid::Uuid;

    use super::*;

    fn holder(user: u128, device: u128, address: &str) -> PlaceHolder {
        PlaceHolder {
            device: DeviceId(Uuid::from_u128(device)),
            user: UserId(Uuid::from_u128(user)),
            network: ClientNetwork::from(address.parse::<IpAddr>().unwrap()),
        }
    }

    /// The numbers of the places that are still held.
    fn held(places: Vec<Place>) -> Vec<usize> {
        let is_held = |place: Place| place.hold(pending::<()>()).now_or_never().is_none();
        places.into_iter().enumerate().filter_map(|(n, place)| is_held(place).then_some(n)).collect()
    }

    #[test]
    fn a_device_has_one_place() {
        let places = Places::new(64);
        let taken = vec![places.enter(holder(1, 1, "192.0.2.1")), places.enter(holder(1, 1, "198.51.100.1"))];
        assert_eq!(held(taken), [1]);
        let state = places.state();
        assert!(state.held.is_empty() && state.devices.is_empty() && state.users.is_empty());
        assert!(state.networks.is_empty());
    }

    #[test]
    fn a_user_and_a_network_displace_their_own_oldest_place() {
        let places = Places::new(64);
        let of_user = (0..5).map(|n| places.enter(holder(1, n, &format!("10.0.{n}.1")))).collect();
        assert_eq!(held(of_user), [1, 2, 3, 4]);
        let of_network = (0..9).map(|n| places.enter(holder(n, n, "10.0.0.1"))).collect();
        assert_eq!(held(of_network), [1, 2, 3, 4, 5, 6, 7, 8]);
        let wide = (0..17).map(|n| places.enter(holder(n, n, &format!("2001:db8:1{n:02x}::1")))).collect();
        assert_eq!(held(wide), (1..17).collect::<Vec<_>>(), "a quarter for a /40");
    }

    #[test]
    fn in_a_network_the_user_with_the_most_places_loses_one() {
        let places = Places::new(64);
        let mut taken = vec![places.enter(holder(1, 0, "10.0.0.1"))];
        taken.extend((1..8).map(|n| places.enter(holder(2 + n / 4, n, "10.0.0.1"))));
        taken.push(places.enter(holder(9, 9, "10.0.0.1")));
        assert_eq!(held(taken), [0, 1, 2, 3, 5, 6, 7, 8]);
    }

    /// Places of hostile networks: eight each.
    fn hostile(places: &Places) -> Vec<Place> {
        (0..64).map(|n| places.enter(holder(n, n, &format!("10.0.{}.1", n / 8)))).collect()
    }

    #[test]
    fn if_all_are_taken_a_network_that_holds_most_loses_one_and_a_bystander_none() {
        let places = Places::new(64);
        let mut taken = hostile(&places);
        taken.push(places.enter(holder(100, 100, "192.0.2.1")));
        taken.extend(hostile(&places));
        let kept = held(taken);
        assert!(kept.contains(&64));
        assert_eq!(kept.len(), 64);
    }
}

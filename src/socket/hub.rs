//! The registry of this node's connections, by device. A device usually has one. It has two while a newer connection
//! displaces an older one; the epoch in [`Signal::Displaced`] decides which one stays.
//!
//! The hub knows a connection only as the recipient of a [`HubMessage`], not as the actor behind it.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix::{Message, Recipient};

use crate::domain::{DeviceId, LiveConnection, LocalDelivery, SessionId, Signal};

/// The registry is split into this many shards, each with its own lock.
const SHARDS: usize = 32;
/// Number of connections per batch of a drain.
const DRAIN_BATCH: usize = 256;
/// Maximum pause between two batches of a drain.
const LONGEST_DRAIN_PAUSE: Duration = Duration::from_millis(50);

type Shard = HashMap<DeviceId, Vec<Attached>>;

/// What the hub sends to a connection.
#[derive(Message)]
#[rtype(result = "()")]
pub enum HubMessage {
    /// A signal for its device.
    DeliverSignal(Signal),
    /// The node is stopping: answer the requests in flight, then close.
    Drain {
        /// The time over which the reconnects of this node's clients are spread.
        spread: Duration,
    },
    /// The drain has timed out: close without waiting for replies.
    CutOff,
}

/// A registered connection.
struct Attached {
    key: ConnectionKey,
    connection: Recipient<HubMessage>,
    /// Session and epoch, once the connection is open.
    open: Option<(SessionId, i64)>,
}

/// Identifies a connection in the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionKey(u64);

/// The registry of this node's connections.
pub struct Hub {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    next_key: AtomicU64,
    connected: AtomicUsize,
    draining: AtomicBool,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            next_key: AtomicU64::new(1),
            connected: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
        }
    }
}

impl Hub {
    fn shard(&self, device: DeviceId) -> MutexGuard<'_, Shard> {
        #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
        let index = self.hasher.hash_one(device) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection, which receives the signals for its device from now on. Returns its key for
    /// [`Self::note_open`] and [`Self::detach`].
    pub fn attach(&self, device: DeviceId, connection: Recipient<HubMessage>) -> ConnectionKey {
        let key = ConnectionKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        self.shard(device).entry(device).or_insert_with(|| Vec::with_capacity(1)).push(Attached {
            key,
            connection,
            open: None,
        });
        self.connected.fetch_add(1, Ordering::Relaxed);
        key
    }

    /// Records that a connection is open, or has switched to another session.
    pub fn note_open(&self, device: DeviceId, key: ConnectionKey, session: SessionId, epoch: i64) {
        if let Some(connections) = self.shard(device).get_mut(&device) {
            for attached in connections.iter_mut().filter(|attached| attached.key == key) {
                attached.open = Some((session, epoch));
            }
        }
    }

    /// Removes a connection.
    pub fn detach(&self, device: DeviceId, key: ConnectionKey) {
        if let Entry::Occupied(mut entry) = self.shard(device).entry(device) {
            entry.get_mut().retain(|attached| attached.key != key);
            if entry.get().is_empty() {
                entry.remove();
            }
            self.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The number of connections on this node.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether the node is stopping and refuses new connections.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Refuses new connections from now on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Drains all connections: each asks its client to reconnect within `spread`, answers its requests in flight, and
    /// closes. The connections are asked in batches with pauses, the last one after at most `over`.
    pub async fn drain(&self, spread: Duration, over: Duration) {
        self.start_draining();
        // A connection that attaches after this point checks `is_draining` itself.
        let connections = self.all();
        let batches = connections.chunks(DRAIN_BATCH);
        let pause = over / u32::try_from(batches.len().max(1)).unwrap_or(u32::MAX);
        for batch in batches {
            for connection in batch {
                connection.do_send(HubMessage::Drain { spread });
            }
            tokio::time::sleep(pause.min(LONGEST_DRAIN_PAUSE)).await;
        }
    }

    /// Closes all remaining connections, without waiting for their replies.
    pub fn cut_off(&self) {
        for connection in self.all() {
            connection.do_send(HubMessage::CutOff);
        }
    }

    fn all(&self) -> Vec<Recipient<HubMessage>> {
        let mut connections = Vec::with_capacity(self.connected());
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            connections.extend(shard.values().flatten().map(|attached| attached.connection.clone()));
        }
        connections
    }
}

impl LocalDelivery for Hub {
    fn deliver(&self, device: DeviceId, signal: Signal) -> bool {
        let shard = self.shard(device);
        let Some(connections) = shard.get(&device) else { return false };
        for attached in connections {
            attached.connection.do_send(HubMessage::DeliverSignal(signal.clone()));
        }
        true
    }

    fn connections(&self) -> Vec<LiveConnection> {
        let mut live = Vec::with_capacity(self.connected());
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (device, connections) in shard.iter() {
                let open = connections.iter().filter_map(|attached| attached.open);
                live.extend(open.map(|(session, epoch)| LiveConnection { device: *device, session, epoch }));
            }
        }
        live
    }
}

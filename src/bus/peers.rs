//! Tracks whether the announcements of all other running nodes arrive over the bus. A working connection to Redis is
//! not enough: after a failover two nodes may be connected to different servers, and each then receives only its own
//! signals.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::BusState;
use crate::domain::{Timestamp, nodes::Heartbeat};

/// A running node is unreachable if no announcement of it has arrived for longer than this.
const MAX_SILENCE: Duration = Duration::from_secs(15);

/// The other nodes, and the clock of the database.
pub(super) struct Peers(Mutex<State>);

struct State {
    heartbeat: Heartbeat,
    /// When `heartbeat` was read.
    read_at: Instant,
    /// The other running nodes, each with the time of its last announcement or, before the first, the time at which
    /// this node learned of it.
    expected: HashMap<Uuid, Instant>,
    /// The time of the last announcement of another deployment.
    foreign: Option<Instant>,
}

impl Peers {
    /// Starts with the node's first heartbeat, which was read at `read_at`.
    pub fn new(heartbeat: Heartbeat, read_at: Instant) -> Self {
        let expected = heartbeat.others.iter().map(|node| (*node, read_at)).collect();
        Self(Mutex::new(State { heartbeat, read_at, expected, foreign: None }))
    }

    /// Replaces the heartbeat. Nodes that were known already keep their times.
    pub fn update(&self, heartbeat: Heartbeat, now: Instant) {
        self.with(|state| {
            let known = std::mem::take(&mut state.expected);
            let since = |node: &Uuid| known.get(node).copied().unwrap_or(now);
            state.expected = heartbeat.others.iter().map(|node| (*node, since(node))).collect();
            (state.heartbeat, state.read_at) = (heartbeat, now);
        });
    }

    /// Starts the time limit for the next announcement again, for all nodes. Called when the connection to Redis is up
    /// again, because no announcement could arrive while it was down.
    pub fn restart(&self, now: Instant) {
        self.with(|state| state.expected.values_mut().for_each(|since| *since = now));
    }

    /// Records an announcement that arrived.
    pub fn record(&self, node: Uuid, deployment: Uuid, now: Instant) {
        self.with(|state| {
            if deployment != state.heartbeat.deployment {
                state.foreign = Some(now);
            } else if let Some(last) = state.expected.get_mut(&node) {
                *last = now;
            }
        });
    }

    /// The state of a bus whose connection works.
    pub fn state(&self, now: Instant) -> BusState {
        let is_over = |since: Instant| now.saturating_duration_since(since) > MAX_SILENCE;
        self.with(|state| {
            if state.foreign.is_some_and(|last| !is_over(last)) {
                return BusState::ForeignDeployment;
            }
            let silent = state.expected.iter().filter(|(_, since)| is_over(**since)).map(|(node, _)| *node);
            // The least id, so that the state does not change while the same nodes are unreachable.
            silent.min().map_or(BusState::Up, BusState::NodeUnreachable)
        })
    }

    /// The id of this deployment.
    pub fn deployment(&self) -> Uuid {
        self.with(|state| state.heartbeat.deployment)
    }

    /// The time by the clock of the database: that of the last heartbeat plus the time since.
    pub fn database_time(&self, now: Instant) -> Timestamp {
        self.with(|state| state.heartbeat.at + now.saturating_duration_since(state.read_at))
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);
    const OTHER: Uuid = Uuid::from_u128(2);

    fn heartbeat(others: &[Uuid]) -> Heartbeat {
        Heartbeat { at: Timestamp::parse("2026-01-01T00:00:00Z").unwrap(), deployment: OURS, others: others.to_vec() }
    }

    #[test]
    fn a_running_node_is_unreachable_after_15_seconds_without_an_announcement() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let peers = Peers::new(heartbeat(&[OTHER]), start);
        assert_eq!(peers.state(after(15.0)), BusState::Up, "a new node may still be connecting to Redis");
        peers.update(heartbeat(&[OTHER]), after(10.0));
        assert_eq!(peers.state(after(15.1)), BusState::NodeUnreachable(OTHER), "a heartbeat is no announcement");
        peers.record(OTHER, OURS, after(20.0));
        assert_eq!(peers.state(after(35.0)), BusState::Up);
        assert_eq!(peers.state(after(35.1)), BusState::NodeUnreachable(OTHER));
        peers.update(heartbeat(&[]), after(40.0));
        assert_eq!(peers.state(after(40.0)), BusState::Up, "it has stopped");
    }

    #[test]
    fn a_node_of_another_deployment_is_an_error_while_its_announcements_arrive() {
        let start = Instant::now();
        let peers = Peers::new(heartbeat(&[]), start);
        peers.record(OTHER, Uuid::from_u128(9), start);
        assert_eq!(peers.state(start + MAX_SILENCE), BusState::ForeignDeployment);
        assert_eq!(peers.state(start + MAX_SILENCE * 2), BusState::Up);
    }

    #[test]
    fn the_time_of_the_database_advances_between_heartbeats() {
        let start = Instant::now();
        let peers = Peers::new(heartbeat(&[]), start);
        let expected = Timestamp::parse("2026-01-01T00:00:07Z").unwrap();
        assert_eq!(peers.database_time(start + Duration::from_secs(7)), expected);
    }
}

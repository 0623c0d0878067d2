//! Which nodes this one must hear over the bus, and which it does. A connection to Redis that works is not enough: after a
//! failover two nodes may be connected to two servers, and each hears only itself.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::BusState;
use crate::domain::{Timestamp, nodes::Heartbeat};

/// A node that was not heard for this long counts as not heard.
const PATIENCE: Duration = Duration::from_secs(15);

/// The other nodes, and the clock of the database.
pub(super) struct Peers(Mutex<State>);

struct State {
    heartbeat: Heartbeat,
    /// When `heartbeat` was read.
    read_at: Instant,
    /// The other running nodes, with when this node first knew of each or last heard it.
    expected: HashMap<Uuid, Instant>,
    /// When a node of another deployment was last heard.
    foreign: Option<Instant>,
}

impl Peers {
    /// Starts with the node's first heartbeat, which was read at `read_at`.
    pub fn new(heartbeat: Heartbeat, read_at: Instant) -> Self {
        let expected = heartbeat.others.iter().map(|node| (*node, read_at)).collect();
        Self(Mutex::new(State { heartbeat, read_at, expected, foreign: None }))
    }

    /// Takes in a newer heartbeat.
    pub fn update(&self, heartbeat: Heartbeat, now: Instant) {
        self.with(|state| {
            let known = std::mem::take(&mut state.expected);
            let since = |node: &Uuid| known.get(node).copied().unwrap_or(now);
            state.expected = heartbeat.others.iter().map(|node| (*node, since(node))).collect();
            (state.heartbeat, state.read_at) = (heartbeat, now);
        });
    }

    /// Starts anew to wait for the other nodes, when the connection to Redis is up again.
    pub fn restart(&self, now: Instant) {
        self.with(|state| state.expected.values_mut().for_each(|since| *since = now));
    }

    /// Notes an announcement of a node.
    pub fn hear(&self, node: Uuid, deployment: Uuid, now: Instant) {
        self.with(|state| {
            if deployment != state.heartbeat.deployment {
                state.foreign = Some(now);
            } else if let Some(heard) = state.expected.get_mut(&node) {
                *heard = now;
            }
        });
    }

    /// The state of a bus whose connection works.
    pub fn state(&self, now: Instant) -> BusState {
        let is_over = |since: Instant| now.saturating_duration_since(since) > PATIENCE;
        self.with(|state| {
            if state.foreign.is_some_and(|heard| !is_over(heard)) {
                return BusState::ForeignDeployment;
            }
            let silent = state.expected.iter().filter(|(_, since)| is_over(**since)).map(|(node, _)| *node);
            // Of several always the same one.
            silent.min().map_or(BusState::Up, BusState::NotHeard)
        })
    }

    /// The id of this deployment.
    pub fn deployment(&self) -> Uuid {
        self.with(|state| state.heartbeat.deployment)
    }

    /// The time of the database: that of the last heartbeat, and what has passed since.
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
    fn a_running_node_that_is_not_heard_for_15_seconds_is_missed() {
        let start = Instant::now();
        let after = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let peers = Peers::new(heartbeat(&[OTHER]), start);
        assert_eq!(peers.state(after(15.0)), BusState::Up, "a node that was just learned of may still be starting");
        peers.update(heartbeat(&[OTHER]), after(10.0));
        assert_eq!(peers.state(after(15.1)), BusState::NotHeard(OTHER), "a heartbeat alone does not make it heard");
        peers.hear(OTHER, OURS, after(20.0));
        assert_eq!(peers.state(after(35.0)), BusState::Up);
        assert_eq!(peers.state(after(35.1)), BusState::NotHeard(OTHER));
        peers.update(heartbeat(&[]), after(40.0));
        assert_eq!(peers.state(after(40.0)), BusState::Up, "it has stopped");
    }

    #[test]
    fn a_node_of_another_deployment_is_an_error_while_it_is_heard() {
        let start = Instant::now();
        let peers = Peers::new(heartbeat(&[]), start);
        peers.hear(OTHER, Uuid::from_u128(9), start);
        assert_eq!(peers.state(start + PATIENCE), BusState::ForeignDeployment);
        assert_eq!(peers.state(start + PATIENCE * 2), BusState::Up);
    }

    #[test]
    fn the_time_of_the_database_goes_on_between_heartbeats() {
        let start = Instant::now();
        let peers = Peers::new(heartbeat(&[]), start);
        let expected = Timestamp::parse("2026-01-01T00:00:07Z").unwrap();
        assert_eq!(peers.database_time(start + Duration::from_secs(7)), expected);
    }
}

//! Bodies of `GET /healthz` and `GET /readyz`.

use serde::{Deserialize, Serialize};

use crate::value::Named;

/// The body of both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReply {
    /// In a word.
    pub status: Named<HealthStatus>,
    /// Why the status is not better; for people.
    pub reasons: Vec<String>,
}

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// The process is up; `/healthz` says no more.
    Ok,
    /// The node serves clients.
    Ready,
    /// The node serves clients, but signals between nodes are delayed.
    Degraded,
    /// The node should not be sent clients: the store does not answer, or the node is being stopped.
    NotReady,
}

impl HealthStatus {
    /// The word on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::NotReady => "not_ready",
        }
    }
}

//! The response bodies of `GET /healthz` and `GET /readyz`.

use serde::{Deserialize, Serialize};

use crate::value::Named;

/// The body of a health check's response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReply {
    /// The status.
    pub status: Named<HealthStatus>,
    /// Why the status is not `ready`, for people; otherwise empty.
    pub reasons: Vec<String>,
}

/// The status of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    /// The process is running. Only in `/healthz`.
    Ok,
    /// The node serves clients.
    Ready,
    /// The node serves clients, but signals between nodes are delayed.
    Degraded,
    /// The node should not receive clients: the store does not answer, or the node is stopping.
    NotReady,
}

impl HealthStatus {
    /// The name on the wire.
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

//! The nodes of a deployment, as the database knows them.

use uuid::Uuid;

use super::Timestamp;

/// What a node learns when it writes its heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The time of the database.
    pub at: Timestamp,
    /// The random id of the deployment, one per database.
    pub deployment: Uuid,
    /// The other running nodes.
    pub others: Vec<Uuid>,
}

//! The nodes of a deployment, as recorded in the database.

use uuid::Uuid;

use super::Timestamp;

/// A heartbeat of a node, with what the database returns for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it was written, by the clock of the database.
    pub at: Timestamp,
    /// The random id of the deployment: one for all nodes on a database.
    pub deployment: Uuid,
    /// The other running nodes.
    pub others: Vec<Uuid>,
}

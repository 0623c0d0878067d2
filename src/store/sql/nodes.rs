//! The nodes of the deployment. Heartbeats are compared, so all have the time of one clock: PostgreSQL's, or on SQLite
//! that of the only node, given as `$2`.

use super::{Sql, both, per_dialect};

statements! {
    /// The random id of the deployment. The row with the nil id holds it and is not a node.
    DEPLOYMENT = per_dialect(
        "SELECT deployment FROM nodes WHERE id = zeroblob(16)",
        "SELECT deployment FROM nodes WHERE id = '00000000-0000-0000-0000-000000000000'");
    /// Writes the heartbeat of node $1 and returns its time.
    WRITE_HEARTBEAT = per_dialect(
        "INSERT INTO nodes (id, heartbeat) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET heartbeat = $2 \
        RETURNING heartbeat",
        "INSERT INTO nodes (id, heartbeat) VALUES ($1, CLOCK_TIMESTAMP()) \
        ON CONFLICT (id) DO UPDATE SET heartbeat = CLOCK_TIMESTAMP() RETURNING heartbeat");
    /// The nodes whose heartbeat is later than $1.
    RUNNING = both("SELECT id FROM nodes WHERE heartbeat > $1 AND deployment IS NULL ORDER BY id");
    /// Deletes the nodes whose heartbeat is not later than $1.
    DELETE_STALE = both("DELETE FROM nodes WHERE heartbeat <= $1 AND deployment IS NULL");
    REMOVE = both("DELETE FROM nodes WHERE id = $1");
}

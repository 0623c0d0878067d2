//! The heartbeats of nodes, and the id of the deployment, which is in the row with the nil id. Heartbeats are compared,
//! so all have the time of one clock: PostgreSQL's, or on SQLite that of the only node, passed as a parameter.

use super::{Sql, both, per_dialect, sqlite};

statements! {
    /// The current time; on SQLite, $1.
    NOW = per_dialect("SELECT $1", "SELECT CLOCK_TIMESTAMP() WHERE $1::TIMESTAMPTZ IS NOT NULL");
    /// The latest time that was recorded, in the row of the deployment. 1970 if none was.
    HIGH_WATER = sqlite("SELECT heartbeat FROM nodes WHERE id = zeroblob(16)");
    RECORD_HIGH_WATER = sqlite("UPDATE nodes SET heartbeat = $1 WHERE id = zeroblob(16)");
    /// The id of the deployment.
    DEPLOYMENT = per_dialect(
        "SELECT deployment FROM nodes WHERE id = zeroblob(16)",
        "SELECT deployment FROM nodes WHERE id = '00000000-0000-0000-0000-000000000000'");
    /// Writes the heartbeat of node $1 and returns its time; on SQLite, $2.
    WRITE_HEARTBEAT = per_dialect(
        "INSERT INTO nodes (id, heartbeat) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET heartbeat = $2 \
        RETURNING heartbeat",
        "INSERT INTO nodes (id, heartbeat) VALUES ($1, CLOCK_TIMESTAMP()) \
        ON CONFLICT (id) DO UPDATE SET heartbeat = CLOCK_TIMESTAMP() RETURNING heartbeat");
    /// The nodes whose heartbeat is between $1 and $2.
    RUNNING = both("SELECT id FROM nodes WHERE heartbeat > $1 AND heartbeat < $2 AND deployment IS NULL ORDER BY id");
    /// Deletes the nodes whose heartbeat is not between $1 and $2.
    DELETE_STALE = both("DELETE FROM nodes WHERE (heartbeat <= $1 OR heartbeat >= $2) AND deployment IS NULL");
    REMOVE = both("DELETE FROM nodes WHERE id = $1");
}

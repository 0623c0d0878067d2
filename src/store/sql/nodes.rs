//! The nodes of the deployment. All times are the database's: `$2` is the time of a SQLite database, which has no better
//! clock than its only server.

use super::{Sql, both, per_dialect};

statements! {
    /// The time. On SQLite it is the parameter.
    NOW = per_dialect("SELECT $1", "SELECT CLOCK_TIMESTAMP() WHERE $1::TIMESTAMPTZ IS NOT NULL");
    DEPLOYMENT = per_dialect(
        "SELECT deployment FROM nodes WHERE id = zeroblob(16)",
        "SELECT deployment FROM nodes WHERE id = '00000000-0000-0000-0000-000000000000'");
    /// Writes the heartbeat of node $1 and returns its time.
    BEAT = per_dialect(
        "INSERT INTO nodes (id, heartbeat) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET heartbeat = $2 \
        RETURNING heartbeat",
        "INSERT INTO nodes (id, heartbeat) VALUES ($1, CLOCK_TIMESTAMP()) \
        ON CONFLICT (id) DO UPDATE SET heartbeat = CLOCK_TIMESTAMP() RETURNING heartbeat");
    /// The nodes whose heartbeat is between $1 and $2.
    LIVE = both("SELECT id FROM nodes WHERE heartbeat > $1 AND heartbeat < $2 AND deployment IS NULL ORDER BY id");
    /// Deletes the rows of nodes that were killed: their heartbeat is not between $1 and $2.
    DELETE_DEAD = both("DELETE FROM nodes WHERE (heartbeat <= $1 OR heartbeat >= $2) AND deployment IS NULL");
    REMOVE = both("DELETE FROM nodes WHERE id = $1");
}

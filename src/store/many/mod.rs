//! What batches of any kind share: one flow for both engines, each with its own few set-based statements, which take and
//! give many rows at once.

pub mod postgres;
pub mod sqlite;

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// session, device, end, the device's newest epoch.
pub type SessionRow = (Uuid, Uuid, DateTime<Utc>, i64);

/// Runs a block in one transaction of either engine, with the statements that `store::$batch` has for that engine.
macro_rules! batch_transaction {
    ($store:expr, $batch:ident, |$tx:ident, $engine:ident| $body:block) => {
        match $store {
            $crate::store::Store::Sqlite(sqlite) => {
                use $crate::store::$batch::sqlite as $engine;
                $crate::store::run::commit!(sqlite, sqlite.writer, "BEGIN IMMEDIATE", |$tx| $body)?
            }
            $crate::store::Store::Postgres(postgres) => {
                use $crate::store::$batch::postgres as $engine;
                $crate::store::run::commit!(postgres, postgres.connections, "BEGIN", |$tx| $body)?
            }
        }
    };
}
pub(super) use batch_transaction;

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
                let began = tokio::time::Instant::now();
                let mut transaction = sqlite.writer.begin_with("BEGIN IMMEDIATE").await?;
                let $tx = &mut *transaction;
                let value = $body;
                transaction.commit().await?;
                sqlite.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
                value
            }
            $crate::store::Store::Postgres(postgres) => {
                use $crate::store::$batch::postgres as $engine;
                let began = tokio::time::Instant::now();
                let mut transaction = postgres.pool.begin().await?;
                let $tx = &mut *transaction;
                let value = $body;
                transaction.commit().await?;
                postgres.metrics.transaction_seconds.observe(began.elapsed().as_secs_f64());
                value
            }
        }
    };
}
pub(super) use batch_transaction;

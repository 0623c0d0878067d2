//! Row locks, for PostgreSQL only: SQLite has one writer. For their order see `store::locks`.

use super::{Sql, postgres};

statements! {
    ADDRESS = postgres("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))");
    DEVICE_SESSIONS = postgres("SELECT id FROM sessions WHERE device_id = $1 ORDER BY id FOR NO KEY UPDATE");
    DEVICE = postgres("SELECT id FROM devices WHERE id = $1 FOR NO KEY UPDATE");
    USER = postgres("SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE");
    USER_SESSIONS = postgres("SELECT id FROM sessions \
        WHERE device_id IN (SELECT id FROM devices WHERE user_id = $1) ORDER BY id FOR UPDATE");
    USER_DEVICES = postgres("SELECT id FROM devices WHERE user_id = $1 ORDER BY id FOR UPDATE");
    USER_MAILBOXES = postgres("SELECT device_id FROM mailboxes \
        WHERE device_id IN (SELECT id FROM devices WHERE user_id = $1) ORDER BY device_id FOR UPDATE");
}

//! What batches of any kind look up. Lists are arrays in PostgreSQL and one JSON text in SQLite, in which ids stand as
//! hexadecimal digits.

texts! {
    /// Texts of PostgreSQL alone.
    POSTGRES:

    SESSIONS_OF_MANY = "SELECT sessions.id, sessions.device_id, expires_at, conn_epoch FROM sessions \
        JOIN devices ON devices.id = sessions.device_id WHERE sessions.id = ANY($1) AND NOT revoked";
    USERS_OF_MANY = "SELECT id FROM users WHERE id = ANY($1)";
}

/// The same operations for SQLite.
pub mod sqlite {
    texts! {
        /// Texts of SQLite alone.
        SQLITE:

        SESSIONS_OF_MANY = "SELECT sessions.id, sessions.device_id, expires_at, conn_epoch FROM sessions \
            JOIN devices ON devices.id = sessions.device_id \
            WHERE sessions.id IN (SELECT unhex(value) FROM json_each($1)) AND NOT revoked";
        USERS_OF_MANY = "SELECT id FROM users WHERE id IN (SELECT unhex(value) FROM json_each($1))";
    }
}

//! Published keys, and the bundles made from them.

use super::{Sql, both, per_dialect, sqlite};

/// The columns of [`STATUS_OF_MANY`] on SQLite, as values for JSON.
macro_rules! status_columns {
    () => {
        "wanted.value ->> 0, json(iif(NOT revoked AND EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = unhex(wanted.value ->> 2) AND sessions.device_id = devices.id AND sessions.expires_at > $2), \
        'true', 'false')), \
        suite, identity_keys.public_key, signed_prekeys.key_id, signed_prekeys.expires_at, \
        (SELECT key_id FROM pq_prekeys WHERE pq_prekeys.device_id = devices.id AND last_resort), \
        (SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys \
        WHERE one_time_prekeys.device_id = devices.id AND used = FALSE LIMIT $3 + 0) AS pool), \
        (SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys \
        WHERE pq_prekeys.device_id = devices.id AND NOT used AND NOT last_resort LIMIT $3 + 0) AS pool), \
        pool_version, next_seq, count, expired_total, json(iif(push_targets.active, 'true', \
        iif(push_targets.active IS NULL, 'null', 'false')))"
    };
}

/// Where the [`status_columns`] are read from.
macro_rules! status_source {
    () => {
        "FROM json_each($1) AS wanted CROSS JOIN devices ON devices.id = unhex(wanted.value ->> 1) \
        LEFT JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        LEFT JOIN mailboxes ON mailboxes.device_id = devices.id \
        LEFT JOIN push_targets ON push_targets.device_id = devices.id"
    };
}
pub(super) use {status_columns, status_source};

statements! {
    // Publishing

    IDENTITY = both("SELECT suite, public_key FROM identity_keys WHERE device_id = $1");
    INSERT_IDENTITY =
        both("INSERT INTO identity_keys (device_id, public_key, created_at, suite) VALUES ($1, $2, $3, $4)");
    /// The stored PQ keys with the ids $2, each with its signature.
    PQ_SIGNATURES = per_dialect(
        "SELECT public_key, signature FROM pq_prekeys WHERE device_id = $1 AND public_key IS NOT NULL \
        AND signature IS NOT NULL AND key_id IN (SELECT value ->> 0 FROM json_each($2))",
        "SELECT public_key, signature FROM pq_prekeys WHERE device_id = $1 AND public_key IS NOT NULL \
        AND signature IS NOT NULL AND key_id = ANY($2)");
    SIGNED_PREKEY_SIGNATURE = both("SELECT public_key, signature FROM signed_prekeys WHERE device_id = $1");
    SERVED_SIGNED_PREKEY = both("SELECT key_id, public_key FROM signed_prekeys WHERE device_id = $1");
    DELETE_SIGNED_PREKEYS = both("DELETE FROM signed_prekeys WHERE device_id = $1");
    INSERT_SIGNED_PREKEY = both("INSERT INTO signed_prekeys \
        (id, device_id, public_key, signature, created_at, expires_at, key_id) VALUES ($1, $2, $3, $4, $5, $6, $7)");
    DELETE_LAST_RESORT = both("DELETE FROM pq_prekeys WHERE device_id = $1 AND last_resort");
    INSERT_PQ = both("INSERT INTO pq_prekeys \
        (id, device_id, last_resort, key_id, public_key, signature, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (device_id, last_resort, key_id) DO NOTHING");
    INSERT_ONE_TIME = both("INSERT INTO one_time_prekeys (id, device_id, public_key, created_at, key_id) \
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (device_id, key_id) DO NOTHING");
    /// Whether the key with this id was issued, and whether it is the key $3.
    ONE_TIME_BY_KEY_ID =
        both("SELECT used, public_key = $3 FROM one_time_prekeys WHERE device_id = $1 AND key_id = $2");
    /// The same for a PQ key. The sweep sets the key of an issued one to NULL after a day.
    PQ_BY_KEY_ID = both("SELECT used, public_key = $3 FROM pq_prekeys \
        WHERE device_id = $1 AND key_id = $2 AND NOT last_resort");
    UNISSUED_ONE_TIME = both("SELECT key_id FROM one_time_prekeys WHERE device_id = $1 AND used = FALSE");
    UNISSUED_PQ = both("SELECT key_id FROM pq_prekeys WHERE device_id = $1 AND NOT used AND NOT last_resort");
    /// Deletes those of the keys $2 that are still unissued.
    WITHDRAW_ONE_TIME = per_dialect(
        "DELETE FROM one_time_prekeys WHERE device_id = $1 AND used = FALSE \
        AND key_id IN (SELECT value ->> 0 FROM json_each($2)) RETURNING key_id",
        "DELETE FROM one_time_prekeys WHERE device_id = $1 AND used = FALSE AND key_id = ANY($2) RETURNING key_id");
    WITHDRAW_PQ = per_dialect(
        "DELETE FROM pq_prekeys WHERE device_id = $1 AND NOT used AND NOT last_resort \
        AND key_id IN (SELECT value ->> 0 FROM json_each($2)) RETURNING key_id",
        "DELETE FROM pq_prekeys WHERE device_id = $1 AND NOT used AND NOT last_resort \
        AND key_id = ANY($2) RETURNING key_id");
    /// Replaces the key with this id, unless it was issued. On SQLite claims take keys in the order of their row numbers.
    REPLACE_ONE_TIME = per_dialect(
        "UPDATE one_time_prekeys SET rowid = (SELECT MAX(rowid) + 1 FROM one_time_prekeys), public_key = $3, created_at = $4 \
        WHERE device_id = $1 AND key_id = $2 AND used = FALSE",
        "UPDATE one_time_prekeys SET public_key = $3, created_at = $4 \
        WHERE device_id = $1 AND key_id = $2 AND used = FALSE");
    /// Makes the unissued ones of the keys $2 the last that claims take, in this order. Materialized and with `+`, so that
    /// SQLite looks up each key instead of comparing the whole pool with the list.
    ORDER_ONE_TIME = sqlite("WITH moved AS MATERIALIZED (SELECT keys.rowid AS old_number, \
        (SELECT MAX(rowid) FROM one_time_prekeys) + 1 + place.key AS number \
        FROM json_each($2) AS place CROSS JOIN one_time_prekeys AS keys \
        WHERE keys.device_id = $1 AND keys.key_id = place.value ->> 0 AND +keys.used = FALSE) \
        UPDATE one_time_prekeys SET rowid = moved.number FROM moved WHERE one_time_prekeys.rowid = moved.old_number");
    REPLACE_PQ = both("UPDATE pq_prekeys SET public_key = $3, created_at = $4, signature = $5 \
        WHERE device_id = $1 AND key_id = $2 AND NOT used AND NOT last_resort");
    BUMP_POOL_VERSION = both("UPDATE devices SET pool_version = pool_version + 1 WHERE id = $1");
    /// After keys were added: lowers the number of announced levels to $2, which the pool has reached, so that the
    /// other levels will be announced again.
    LOWER_ANNOUNCED_ONE_TIME = both("UPDATE devices SET one_time_depth = $2 WHERE id = $1 AND one_time_depth > $2");
    LOWER_ANNOUNCED_PQ = both("UPDATE devices SET pq_depth = $2 WHERE id = $1 AND pq_depth > $2");
    /// After a pool was replaced: sets the number of announced levels to $2, also if the pool is smaller now. The reply
    /// to the publish has the new counts, so they are not announced as well.
    SET_ANNOUNCED_ONE_TIME = both("UPDATE devices SET one_time_depth = $2 WHERE id = $1 AND one_time_depth <> $2");
    SET_ANNOUNCED_PQ = both("UPDATE devices SET pq_depth = $2 WHERE id = $1 AND pq_depth <> $2");

    // Revoking a device

    DELETE_UNISSUED = both("DELETE FROM one_time_prekeys WHERE device_id = $1 AND used = FALSE");
    DELETE_UNISSUED_PQ = both("DELETE FROM pq_prekeys WHERE device_id = $1 AND NOT used");

    // Status

    /// The keys, mailboxes and push targets of devices, given as rows of place, device and session: whether the session is
    /// valid, the key counts (each at most the last parameter), the mailbox, and whether the push target is active, NULL if
    /// there is none. The last but one parameter is the time. SQLite uses
    /// both columns of the index of one-time prekeys only for `used = FALSE`, not for `NOT used`; with one column it
    /// would scan every tombstone.
    STATUS_OF_MANY = per_dialect(
        concat!("SELECT json_group_array(json_array(", status_columns!(), ")) ", status_source!()),
        "SELECT place, NOT revoked AND EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = wanted.session AND sessions.device_id = devices.id AND sessions.expires_at > $4), \
        suite, identity_keys.public_key, signed_prekeys.key_id, signed_prekeys.expires_at, \
        (SELECT key_id FROM pq_prekeys WHERE pq_prekeys.device_id = devices.id AND last_resort), \
        (SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys \
        WHERE one_time_prekeys.device_id = devices.id AND used = FALSE LIMIT $5) AS pool), \
        (SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys \
        WHERE pq_prekeys.device_id = devices.id AND NOT used AND NOT last_resort LIMIT $5) AS pool), \
        pool_version, next_seq, count, expired_total, push_targets.active \
        FROM UNNEST($1::BIGINT[], $2::UUID[], $3::UUID[]) AS wanted (place, device, session) \
        JOIN devices ON devices.id = wanted.device \
        LEFT JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        LEFT JOIN mailboxes ON mailboxes.device_id = devices.id \
        LEFT JOIN push_targets ON push_targets.device_id = devices.id");
    /// Counts at most $2 keys, with `used = FALSE` for the reason given at [`STATUS_OF_MANY`].
    COUNT_ONE_TIME = both("SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys \
        WHERE device_id = $1 AND used = FALSE LIMIT $2 + 0) AS pool");
    /// Counts at most $2 keys.
    COUNT_PQ = both("SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys \
        WHERE device_id = $1 AND NOT used AND NOT last_resort LIMIT $2 + 0) AS pool");
    /// The keys that a digest covers, in its order. One statement, so that all are read at the same moment.
    DIGEST_KEYS = both("SELECT 1 AS part, key_id, public_key, NULL FROM one_time_prekeys \
        WHERE device_id = $1 AND used = FALSE \
        UNION ALL SELECT 2, key_id, NULL, public_key FROM pq_prekeys \
        WHERE device_id = $1 AND NOT used AND NOT last_resort \
        UNION ALL SELECT 3, key_id, public_key, NULL FROM signed_prekeys WHERE device_id = $1 \
        UNION ALL SELECT 4, key_id, NULL, public_key FROM pq_prekeys WHERE device_id = $1 AND last_resort \
        ORDER BY 1, 2");
    POOL_VERSION = both("SELECT pool_version FROM devices WHERE id = $1");

    // Bundles

    /// The active devices of these users with their signed keys, which are NULL for a device that has not published, and
    /// the access settings of their users. Of users that refuse strangers only if $2.
    TARGETS_OF_MANY = per_dialect(
        "SELECT user_id, devices.id, registration_id, identity_keys.suite, \
        identity_keys.public_key, signed_prekeys.key_id, signed_prekeys.public_key, \
        signed_prekeys.signature, signed_prekeys.expires_at, users.access_key, users.strangers \
        FROM devices JOIN users ON users.id = devices.user_id LEFT JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        WHERE user_id IN (SELECT unhex(value) FROM json_each($1)) AND NOT revoked \
        AND (users.strangers <> 'refuse' OR $2) ORDER BY devices.created_at, devices.id",
        "SELECT user_id, devices.id, registration_id, identity_keys.suite, \
        identity_keys.public_key, signed_prekeys.key_id, signed_prekeys.public_key, \
        signed_prekeys.signature, signed_prekeys.expires_at, users.access_key, users.strangers \
        FROM devices JOIN users ON users.id = devices.user_id LEFT JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        WHERE user_id = ANY($1) AND NOT revoked AND (users.strangers <> 'refuse' OR $2) \
        ORDER BY devices.created_at, devices.id");
    /// Those of the given devices that exist, including revoked ones.
    DEVICES_OF_MANY = per_dialect(
        "SELECT id, user_id, revoked FROM devices WHERE id IN (SELECT unhex(value) FROM json_each($1))",
        "SELECT id, user_id, revoked FROM devices WHERE id = ANY($1)");
    LAST_RESORTS_OF_MANY = per_dialect(
        "SELECT device_id, key_id, public_key, signature FROM pq_prekeys \
        WHERE device_id IN (SELECT unhex(value) FROM json_each($1)) AND last_resort",
        "SELECT device_id, key_id, public_key, signature FROM pq_prekeys WHERE device_id = ANY($1) AND last_resort");
}

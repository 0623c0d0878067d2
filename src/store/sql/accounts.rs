//! Users, sessions, devices and their connections.

use super::{
    Sql, both,
    keys::{status_columns, status_source},
    per_dialect, postgres, sqlite,
};

statements! {
    // Users

    USER_BY_EMAIL = both("SELECT id FROM users WHERE email = $1");
    EMAIL_OF_USER = both("SELECT email, created_at FROM users WHERE id = $1");
    CHANGE_EMAIL = both("UPDATE users SET email = $2 WHERE id = $1");
    USER_EXISTS = both("SELECT 1 FROM users WHERE id = $1");
    /// Creates the user of an address, or locks the existing row.
    UPSERT_USER = both("INSERT INTO users (id, email, email_verified, created_at) VALUES ($1, $2, TRUE, $3) \
        ON CONFLICT (email) DO UPDATE SET email_verified = TRUE RETURNING id");
    DELETE_USER = both("DELETE FROM users WHERE id = $1");
    /// Those of the given users that exist, with their access settings and their number of blocks.
    USERS_OF_MANY = per_dialect(
        "SELECT id, access_key, strangers, block_count FROM users WHERE id IN (SELECT unhex(value) FROM json_each($1))",
        "SELECT id, access_key, strangers, block_count FROM users WHERE id = ANY($1)");

    // Sessions

    INSERT_SESSION = both("INSERT INTO sessions \
        (id, user_id, device_id, token_hash, expires_at, created_at, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7)");
    /// The sessions of tokens that are valid at the time of the last parameter. The tokens are given as rows of place and
    /// hash.
    SESSIONS_BY_TOKENS = per_dialect(
        "SELECT json_group_array(json_array(wanted.value ->> 0, hex(sessions.id), hex(sessions.user_id), \
        hex(sessions.device_id), expires_at, iif(replaces IS NULL, NULL, hex(replaces)), users.created_at, \
        iif(approval_id IS NULL, NULL, hex(approval_id)))) FROM json_each($1) AS wanted \
        CROSS JOIN sessions ON token_hash = wanted.value ->> 1 JOIN devices ON devices.id = sessions.device_id \
        JOIN users ON users.id = sessions.user_id WHERE expires_at > $2 AND NOT revoked",
        "SELECT place, sessions.id, sessions.user_id, sessions.device_id, expires_at, replaces, \
        users.created_at, approval_id FROM UNNEST($1::BIGINT[], $2::TEXT[]) AS wanted (place, hash) \
        JOIN sessions ON token_hash = wanted.hash JOIN devices ON devices.id = sessions.device_id \
        JOIN users ON users.id = sessions.user_id WHERE expires_at > $3 AND NOT revoked");
    /// The row of a session that is valid for its device at $3.
    AUTHORIZE = both("SELECT replaces FROM sessions JOIN devices ON devices.id = sessions.device_id \
        WHERE sessions.id = $1 AND sessions.device_id = $2 AND expires_at > $3 AND NOT revoked");
    /// Those of the given sessions whose devices are not revoked, including expired sessions.
    SESSIONS_OF_MANY = per_dialect(
        "SELECT sessions.id, sessions.device_id, expires_at, conn_epoch FROM sessions \
        JOIN devices ON devices.id = sessions.device_id \
        WHERE sessions.id IN (SELECT unhex(value) FROM json_each($1)) AND NOT revoked",
        "SELECT sessions.id, sessions.device_id, expires_at, conn_epoch FROM sessions \
        JOIN devices ON devices.id = sessions.device_id WHERE sessions.id = ANY($1) AND NOT revoked");
    CLEAR_REPLACES = both("UPDATE sessions SET replaces = NULL WHERE id = $1 AND replaces IS NOT NULL");
    /// Notes that the token of a session that an approval opened was presented.
    CLEAR_APPROVAL = both("UPDATE sessions SET approval_id = NULL WHERE id = $1");
    DELETE_SESSION = both("DELETE FROM sessions WHERE id = $1");
    SESSION_IS_VALID = both("SELECT 1 FROM sessions WHERE id = $1 AND expires_at > $2");
    DELETE_SUCCESSOR = both("DELETE FROM sessions WHERE replaces = $1 AND device_id = $2");
    DELETE_PAIR = both("DELETE FROM sessions WHERE device_id = $1 \
        AND (id = $2 OR replaces = $2 OR id = (SELECT pair.replaces FROM sessions pair WHERE pair.id = $2)) \
        RETURNING id");
    DELETE_SESSIONS_OF_DEVICE = both("DELETE FROM sessions WHERE device_id = $1 RETURNING id");
    /// Deletes all but the newest $2 of a device.
    DELETE_OLDER_SESSIONS = both("DELETE FROM sessions WHERE device_id = $1 AND id NOT IN \
        (SELECT id FROM sessions WHERE device_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2) RETURNING id");
    /// The valid sessions of the user $1 at $2.
    SESSIONS_OF_USER = both("SELECT sessions.id, device_id, sessions.created_at, expires_at, replaces, last_seen \
        FROM devices JOIN sessions ON sessions.device_id = devices.id \
        WHERE devices.user_id = $1 AND NOT revoked AND expires_at > $2 ORDER BY sessions.created_at, sessions.id");
    /// The device of a session of the user $2 that is valid at $3.
    DEVICE_OF_SESSION = both("SELECT device_id FROM sessions JOIN devices ON devices.id = device_id \
        WHERE sessions.id = $1 AND devices.user_id = $2 AND expires_at > $3 AND NOT revoked");

    // Ended sessions. Sessions are recorded before they are deleted.

    /// Why the token $1, which has no valid session, is invalid. An expired session is still in `sessions` until the
    /// sweep deletes and records it.
    WHY_INVALID = both("SELECT reason FROM ended_sessions WHERE token_hash = $1 \
        UNION ALL SELECT 'expired' FROM sessions WHERE token_hash = $1");
    /// In this and the next five, $1 is the reason and $2 the time.
    RECORD_SESSION = both("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, $1, $2, device_id FROM sessions WHERE id = $3 ON CONFLICT (token_hash) DO NOTHING");
    RECORD_SUCCESSOR = both("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, $1, $2, device_id FROM sessions WHERE replaces = $3 AND device_id = $4 \
        ON CONFLICT (token_hash) DO NOTHING");
    RECORD_PAIR = both("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, $1, $2, device_id FROM sessions WHERE device_id = $3 \
        AND (id = $4 OR replaces = $4 OR id = (SELECT pair.replaces FROM sessions pair WHERE pair.id = $4)) \
        ON CONFLICT (token_hash) DO NOTHING");
    /// Those that [`DELETE_OLDER_SESSIONS`] deletes.
    RECORD_OLDER_SESSIONS = both("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, $1, $2, device_id FROM sessions WHERE device_id = $3 AND id NOT IN \
        (SELECT id FROM sessions WHERE device_id = $3 ORDER BY created_at DESC, id DESC LIMIT $4) \
        ON CONFLICT (token_hash) DO NOTHING");
    RECORD_SESSIONS_OF_DEVICE = both("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, $1, $2, device_id FROM sessions WHERE device_id = $3 ON CONFLICT (token_hash) DO NOTHING");
    RECORD_SESSIONS_OF_USER = both("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, $1, $2, device_id FROM sessions \
        WHERE device_id IN (SELECT id FROM devices WHERE user_id = $3) ON CONFLICT (token_hash) DO NOTHING");
    /// Replaces the reasons of earlier sessions. $1 is the reason, $2 the time.
    UPDATE_ENDED_OF_DEVICE = both("UPDATE ended_sessions SET reason = $1, ended_at = $2 WHERE device_id = $3");
    UPDATE_ENDED_OF_USER = both("UPDATE ended_sessions SET reason = $1, ended_at = $2 \
        WHERE device_id IN (SELECT id FROM devices WHERE user_id = $3)");
    /// Deletes all but the newest $2 of a device.
    DELETE_OLDER_ENDED = both("DELETE FROM ended_sessions WHERE device_id = $1 AND token_hash NOT IN \
        (SELECT token_hash FROM ended_sessions WHERE device_id = $1 ORDER BY ended_at DESC LIMIT $2)");

    // Devices

    ACTIVE_DEVICES = both("SELECT id, device_name, registration_id, created_at, last_seen FROM devices \
        WHERE user_id = $1 AND NOT revoked ORDER BY created_at, id");
    /// When the device $1 was created, if that was after $2 and the user $3 has an active published device from before.
    YOUNGER_THAN_OLD_DEVICE = both("SELECT created_at FROM devices WHERE id = $1 AND created_at > $2 \
        AND EXISTS (SELECT 1 FROM devices older JOIN identity_keys ON identity_keys.device_id = older.id \
        WHERE older.user_id = $3 AND NOT older.revoked AND older.created_at <= $2)");
    INSERT_DEVICE = both("INSERT INTO devices (id, user_id, device_name, registration_id, created_at) \
        VALUES ($1, $2, $3, $4, $5)");
    RENAME_DEVICE = both("UPDATE devices SET device_name = $3 WHERE id = $1 AND user_id = $2 AND NOT revoked");
    REVOKE_DEVICE = both("UPDATE devices SET revoked = TRUE WHERE id = $1 AND user_id = $2 AND NOT revoked \
        RETURNING device_name");
    /// Records when devices were last seen, given as rows of device and time, unless they were seen later. On PostgreSQL
    /// the rows are locked in order of the devices' ids.
    TOUCH_DEVICES = per_dialect(
        "UPDATE devices SET last_seen = seen.at \
        FROM (SELECT unhex(value ->> 0) AS device, value ->> 1 AS at FROM json_each($1)) AS seen \
        WHERE devices.id = seen.device AND (last_seen IS NULL OR last_seen < seen.at)",
        "WITH seen AS MATERIALIZED (SELECT device, at FROM UNNEST($1::UUID[], $2::TIMESTAMPTZ[]) AS seen (device, at) \
        JOIN devices ON devices.id = device WHERE last_seen IS NULL OR last_seen < at \
        ORDER BY device FOR NO KEY UPDATE OF devices) \
        UPDATE devices SET last_seen = seen.at FROM seen \
        WHERE devices.id = seen.device AND (last_seen IS NULL OR last_seen < seen.at)");
    /// Those of the given devices that were last seen at $3 or before.
    TOUCH_CONNECTED = per_dialect(
        "UPDATE devices SET last_seen = $2 WHERE id IN (SELECT unhex(value) FROM json_each($1)) AND last_seen <= $3",
        "UPDATE devices SET last_seen = $2 WHERE id = ANY($1) AND last_seen <= $3");

    // Connections

    /// Increments the epochs of devices, given as rows of place, device and session, each device once. Only of those whose
    /// session is valid at the time $2. Then reads their epochs, whether a request of the user waits for an approval, and
    /// what [`STATUS_OF_MANY`](super::keys::STATUS_OF_MANY) does. In between no other connection increments an epoch,
    /// and a session that is still valid was valid before.
    OPEN_CONNECTIONS_AT_ONCE = sqlite(concat!(
        "UPDATE devices SET conn_epoch = conn_epoch + 1, last_seen = $2 \
        FROM (SELECT unhex(value ->> 1) AS device, unhex(value ->> 2) AS session FROM json_each($1)) AS wanted \
        WHERE devices.id = wanted.device AND NOT revoked AND EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = wanted.session AND sessions.device_id = wanted.device AND expires_at > $2); \
        SELECT json_group_array(json_array(conn_epoch, json(iif(EXISTS (SELECT 1 FROM approvals \
        WHERE approvals.user_id = devices.user_id AND state = 'pending'), 'true', 'false')), json_array(",
        status_columns!(), "))) ", status_source!()));
    /// Increments the epochs of devices, given as rows of device and session, each device once. Only of those whose
    /// session is valid at the time $3. The rows are locked in order of the devices' ids. Returns the new epoch, and
    /// whether a request of the user waits for an approval.
    OPEN_CONNECTIONS = postgres(
        "WITH wanted AS MATERIALIZED (SELECT device, session FROM UNNEST($1::UUID[], $2::UUID[]) AS wanted (device, session) \
        JOIN devices ON devices.id = device ORDER BY device FOR NO KEY UPDATE OF devices) \
        UPDATE devices SET conn_epoch = conn_epoch + 1, last_seen = $3 FROM wanted \
        WHERE devices.id = wanted.device AND NOT revoked AND EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = wanted.session AND sessions.device_id = wanted.device AND expires_at > $3) \
        RETURNING devices.id, conn_epoch, \
        EXISTS (SELECT 1 FROM approvals WHERE approvals.user_id = devices.user_id AND state = 'pending')");
    /// The state of connections, given as rows of index, device and session; the last parameter is the time.
    CHECK_CONNECTIONS = per_dialect(
        "SELECT connection.value ->> 0, conn_epoch, revoked, EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = unhex(connection.value ->> 2) AND sessions.device_id = devices.id AND expires_at > $2), \
        next_seq - 1 FROM json_each($1) AS connection \
        CROSS JOIN devices ON devices.id = unhex(connection.value ->> 1) \
        JOIN mailboxes ON mailboxes.device_id = devices.id",
        "SELECT place, conn_epoch, revoked, EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = session AND sessions.device_id = device AND expires_at > $4), next_seq - 1 \
        FROM UNNEST($1::BIGINT[], $2::UUID[], $3::UUID[]) AS connection (place, device, session) \
        JOIN devices ON devices.id = device JOIN mailboxes ON mailboxes.device_id = device");
}

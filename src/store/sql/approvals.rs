//! The lock of an account and the requests that wait for an approval.

use super::{Sql, both, per_dialect};

statements! {
    // The lock

    LOCK = both("SELECT recovery_key_hash, lock_wait_s FROM users WHERE id = $1");
    /// NULL and NULL unlock the account.
    SET_LOCK = both("UPDATE users SET recovery_key_hash = $2, lock_wait_s = $3 WHERE id = $1");
    DEVICE_CREATED_AT = both("SELECT created_at FROM devices WHERE id = $1");

    // Requests

    INSERT_APPROVAL = both("INSERT INTO approvals (id, user_id, kind, challenge_id, device_name, client_network, \
        created_at, decides_at, existing_device, registration_id, replace_device_id, email, known_network) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)");
    APPROVAL = both("SELECT user_id, state, device_name, created_at, decides_at, existing_device, \
        registration_id, replace_device_id, email, known_network FROM approvals WHERE id = $1");
    APPROVAL_OF_CHALLENGE =
        both("SELECT id, decides_at FROM approvals WHERE challenge_id = $1 AND user_id = $2");
    /// The requests of a user that are pending, oldest first.
    PENDING_OF = both("SELECT id, kind, device_name, client_network, created_at, decides_at FROM approvals \
        WHERE user_id = $1 AND state = 'pending' ORDER BY created_at, id");
    /// When each request of a user after $2 was made, newest first.
    REQUESTED_SINCE = both("SELECT created_at FROM approvals WHERE user_id = $1 AND created_at > $2 \
        ORDER BY created_at DESC");
    SET_DECISION = both("UPDATE approvals SET state = $2, decided_at = $3 WHERE id = $1 AND state = 'pending'");
    /// Denies the pending requests of new devices of a user.
    DENY_DEVICES_OF = both("UPDATE approvals SET state = 'denied', decided_at = $2 \
        WHERE user_id = $1 AND kind = 'device' AND state = 'pending'");
    DENY_OF_CHALLENGE = both("UPDATE approvals SET state = 'denied', decided_at = $2 \
        WHERE challenge_id = $1 AND state = 'pending'");
    /// The published devices of a user that are older than $2.
    OLDER_DEVICES = both("SELECT devices.id FROM devices JOIN identity_keys ON device_id = devices.id \
        WHERE user_id = $1 AND NOT revoked AND devices.created_at < $2");
    /// The session that an approval opened, unless its token was presented or it ended.
    APPROVED_SESSION = both("SELECT sessions.id, sessions.user_id, device_id, expires_at, users.created_at FROM sessions \
        JOIN devices ON devices.id = device_id JOIN users ON users.id = sessions.user_id WHERE approval_id = $1 AND expires_at > $2 AND NOT revoked");
    SET_SESSION_APPROVAL = both("UPDATE sessions SET approval_id = $2 WHERE id = $1");
    /// Requests whose time has come, by the time $1 and on PostgreSQL by the clock of the database too, after the
    /// request with time $2 and id $3. Without those that wait because their user has $4 other devices.
    DUE = per_dialect(
        "SELECT id, decides_at, client_network FROM approvals WHERE state = 'pending' AND decides_at <= $1 \
        AND (decides_at, id) > ($2, $3) AND (kind <> 'device' OR existing_device IS NOT NULL OR $4 > \
        (SELECT COUNT(*) FROM devices WHERE devices.user_id = approvals.user_id AND NOT revoked \
        AND devices.id IS NOT replace_device_id)) ORDER BY decides_at, id LIMIT 100",
        "SELECT id, decides_at, client_network FROM approvals WHERE state = 'pending' AND decides_at <= LEAST($1, NOW()) \
        AND (decides_at, id) > ($2, $3) AND (kind <> 'device' OR existing_device IS NOT NULL OR $4 > \
        (SELECT COUNT(*) FROM devices WHERE devices.user_id = approvals.user_id AND NOT revoked \
        AND devices.id IS DISTINCT FROM replace_device_id)) ORDER BY decides_at, id LIMIT 100");
    /// Whether the time of a request has come: see [`DUE`].
    IS_DUE = per_dialect(
        "SELECT 1 FROM approvals WHERE id = $2 AND state = 'pending' AND decides_at <= $1",
        "SELECT 1 FROM approvals WHERE id = $2 AND state = 'pending' AND decides_at <= LEAST($1, NOW())");
    SET_MAILED = both("UPDATE approvals SET mailed_at = $2 WHERE id = $1");
    /// Marks as mailed at $1 up to 100 pending requests whose last mail is older than $2 or newer than $4, or that were made
    /// before $3 and not mailed.
    TAKE_REMINDERS = per_dialect(
        "UPDATE approvals SET mailed_at = $1 WHERE id IN (SELECT id FROM approvals WHERE state = 'pending' \
        AND (mailed_at <= $2 OR mailed_at > $4 OR (mailed_at IS NULL AND created_at <= $3)) \
        LIMIT 100) RETURNING id, user_id",
        "UPDATE approvals SET mailed_at = $1 WHERE id IN (SELECT id FROM approvals WHERE state = 'pending' \
        AND (mailed_at <= $2 OR mailed_at > $4 OR (mailed_at IS NULL AND created_at <= $3)) \
        LIMIT 100 FOR UPDATE SKIP LOCKED) \
        RETURNING id, user_id");
}

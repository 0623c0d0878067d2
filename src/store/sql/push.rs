//! Push targets, and wake-ups that are due.

use super::{Sql, both, per_dialect};

statements! {
    TARGET = both("SELECT id, kind, address, p256dh, auth, topic, sandbox, active FROM push_targets \
        WHERE device_id = $1");
    /// Replaces the target of a device by an unconfirmed one.
    SET_TARGET = both("INSERT INTO push_targets \
        (device_id, id, kind, address, p256dh, auth, topic, sandbox, registered_at, nonce_hash, nonce_expires_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) \
        ON CONFLICT (device_id) DO UPDATE SET id = excluded.id, kind = excluded.kind, address = excluded.address, \
        p256dh = excluded.p256dh, auth = excluded.auth, topic = excluded.topic, sandbox = excluded.sandbox, \
        registered_at = excluded.registered_at, active = FALSE, nonce_hash = excluded.nonce_hash, \
        nonce_expires_at = excluded.nonce_expires_at, failing_since = NULL, failures = 0");
    /// Confirms the target of the device $1 by the nonce with the hash $2, unless it is past its time.
    CONFIRM_TARGET = both("UPDATE push_targets SET active = TRUE \
        WHERE device_id = $1 AND nonce_hash = $2 AND (active OR nonce_expires_at > $3)");
    DELETE_TARGET = both("DELETE FROM push_targets WHERE device_id = $1");
    /// Sets whether the device $1 has an active target, and ends its wake-up.
    SET_HAS_PUSH = both("UPDATE mailboxes SET has_push = $2, wake_at = NULL, woken = FALSE WHERE device_id = $1");

    // Wake-ups

    IS_ANY_DUE = both("SELECT 1 FROM mailboxes WHERE wake_at <= $1 LIMIT 1");
    /// Takes at most $2 wake-ups that are due at $1, and makes them due again at $3, in case that this node dies. On
    /// PostgreSQL it skips mailboxes that others have locked, so that it never waits.
    TAKE_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = $3 WHERE device_id IN \
        (SELECT device_id FROM mailboxes WHERE wake_at <= $1 ORDER BY wake_at LIMIT $2) RETURNING device_id",
        "WITH due AS MATERIALIZED (SELECT device_id FROM mailboxes WHERE wake_at <= $1 ORDER BY wake_at LIMIT $2 \
        FOR NO KEY UPDATE SKIP LOCKED) \
        UPDATE mailboxes SET wake_at = $3 FROM due WHERE mailboxes.device_id = due.device_id \
        RETURNING mailboxes.device_id");
    /// The active targets of these devices, each with its failures and whether an urgent envelope waits at $2.
    TARGETS_OF_MANY = per_dialect(
        "SELECT device_id, id, kind, address, p256dh, auth, topic, sandbox, failing_since, failures, \
        EXISTS (SELECT 1 FROM messages WHERE messages.device_id = push_targets.device_id AND urgent \
        AND expires_at > $2) \
        FROM push_targets WHERE device_id IN (SELECT unhex(value) FROM json_each($1)) AND active",
        "SELECT device_id, id, kind, address, p256dh, auth, topic, sandbox, failing_since, failures, \
        EXISTS (SELECT 1 FROM messages WHERE messages.device_id = push_targets.device_id AND urgent \
        AND expires_at > $2) \
        FROM push_targets WHERE device_id = ANY($1) AND active");
    /// Ends the wake-ups of these devices that were taken until $2. One is due at once, at $3, if an urgent envelope has
    /// arrived since it was taken.
    END_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = CASE WHEN has_push AND EXISTS (SELECT 1 FROM messages \
        WHERE messages.device_id = mailboxes.device_id AND urgent AND expires_at > $3) THEN $3 END \
        WHERE device_id IN (SELECT unhex(value) FROM json_each($1)) AND wake_at = $2",
        "UPDATE mailboxes SET wake_at = CASE WHEN has_push AND EXISTS (SELECT 1 FROM messages \
        WHERE messages.device_id = mailboxes.device_id AND urgent AND expires_at > $3) THEN $3 END \
        WHERE device_id = ANY($1) AND wake_at = $2");
    /// Takes rows of device, the time until which its wake-up was taken, the time at which the next one is due, and whether
    /// the device was woken. Mailboxes that have changed since are left alone.
    SETTLE_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = settled.next, woken = settled.woken FROM \
        (SELECT unhex(value ->> 0) AS device, value ->> 1 AS taken, value ->> 2 AS next, value ->> 3 AS woken \
        FROM json_each($1)) AS settled \
        WHERE device_id = settled.device AND wake_at = settled.taken",
        "UPDATE mailboxes SET wake_at = settled.next, woken = settled.woken <> 0 \
        FROM UNNEST($1::UUID[], $2::TIMESTAMPTZ[], $3::TIMESTAMPTZ[], $4::BIGINT[]) \
        AS settled (device, taken, next, woken) WHERE device_id = settled.device AND wake_at = settled.taken");
    /// The failures of the registration $2 of the device $1.
    SET_FAILURES = both("UPDATE push_targets SET failing_since = $3, failures = $4 WHERE device_id = $1 AND id = $2");
}

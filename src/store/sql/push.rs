//! Push targets, and wake-ups that are due.

use super::{Sql, both, per_dialect};

macro_rules! targets_with_urgent_mail {
    ($devices:literal) => {
        concat!(
            "SELECT device_id, id, kind, address, p256dh, auth, topic, sandbox, failing_since, failures, not_before \
            FROM push_targets WHERE active AND ",
            $devices,
            // Counted first, by an index: a mailbox may hold many messages of which none is urgent.
            " AND CASE WHEN (SELECT count FROM mailboxes WHERE mailboxes.device_id = push_targets.device_id) > \
            (SELECT COUNT(*) FROM messages WHERE messages.device_id = push_targets.device_id AND NOT urgent) \
            THEN EXISTS (SELECT 1 FROM messages WHERE messages.device_id = push_targets.device_id AND urgent \
            AND expires_at > $2) ELSE FALSE END"
        )
    };
}

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
        nonce_expires_at = excluded.nonce_expires_at, failing_since = NULL, failures = 0, not_before = NULL");
    /// Confirms the target of the device $1 by the nonce with the hash $2, unless it is past its time.
    CONFIRM_TARGET = both("UPDATE push_targets SET active = TRUE \
        WHERE device_id = $1 AND nonce_hash = $2 AND (active OR nonce_expires_at > $3)");
    DELETE_TARGET = both("DELETE FROM push_targets WHERE device_id = $1");
    /// The device $1 has an active target. If it had none, a wake-up for what waits is due at $2; it ends if that is not
    /// urgent.
    START_WAKE_UPS = per_dialect(
        "UPDATE mailboxes SET has_push = TRUE, \
        push_kind = (SELECT kind FROM push_targets WHERE push_targets.device_id = $1), \
        wake_at = CASE WHEN count > 0 THEN $2 END, wake_state = 0 WHERE device_id = $1 AND NOT has_push",
        "UPDATE mailboxes SET has_push = TRUE, \
        push_kind = (SELECT kind FROM push_targets WHERE push_targets.device_id = $1), \
        wake_at = CASE WHEN count > 0 THEN $2::TIMESTAMPTZ END, wake_state = 0 \
        WHERE device_id = $1 AND NOT has_push");
    /// The device $1 has no active target.
    END_WAKE_UPS = both("UPDATE mailboxes SET has_push = FALSE, wake_at = NULL, wake_state = 0 WHERE device_id = $1");

    // Wake-ups

    IS_ANY_DUE = both("SELECT 1 FROM mailboxes WHERE push_kind = $2 AND wake_at <= $1 LIMIT 1");
    /// When the oldest wake-up of the kind $2 became due, if any is due at $1.
    OLDEST_DUE = both("SELECT MIN(wake_at) FROM mailboxes WHERE push_kind = $2 AND wake_at <= $1");
    /// Takes at most $2 wake-ups of the kind $4 that are due at $1, and makes them due again at $3, in case that this node dies. On
    /// PostgreSQL it skips mailboxes that others have locked, so that it never waits.
    TAKE_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = $3 WHERE device_id IN \
        (SELECT device_id FROM mailboxes WHERE push_kind = $4 AND wake_at <= $1 ORDER BY wake_at LIMIT $2) \
        RETURNING device_id",
        "WITH due AS MATERIALIZED (SELECT device_id FROM mailboxes WHERE push_kind = $4 AND wake_at <= $1 \
        ORDER BY wake_at LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED) \
        UPDATE mailboxes SET wake_at = $3 FROM due WHERE mailboxes.device_id = due.device_id \
        RETURNING mailboxes.device_id");
    /// The active targets of these devices for which an urgent envelope waits at $2, each with its failures, and when it may
    /// be used again after them.
    TARGETS_OF_MANY = per_dialect(
        targets_with_urgent_mail!("device_id IN (SELECT unhex(value) FROM json_each($1))"),
        targets_with_urgent_mail!("device_id = ANY($1)"));
    /// Ends the wake-ups of these devices.
    END_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = NULL, wake_state = 0 \
        WHERE device_id IN (SELECT unhex(value) FROM json_each($1))",
        "UPDATE mailboxes SET wake_at = NULL, wake_state = 0 WHERE device_id = ANY($1)");
    /// Takes rows of device, and the time at which its wake-up is due instead.
    POSTPONE_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = later.due_at FROM \
        (SELECT unhex(value ->> 0) AS device, value ->> 1 AS due_at FROM json_each($1)) AS later \
        WHERE device_id = later.device",
        "UPDATE mailboxes SET wake_at = later.due_at FROM UNNEST($1::UUID[], $2::TIMESTAMPTZ[]) AS later (device, due_at) \
        WHERE device_id = later.device");
    /// Takes rows of device, the time until which its wake-up was taken, the time at which the next one is due, and whether
    /// the device was woken. Mailboxes that have changed since are left alone.
    SETTLE_DUE = per_dialect(
        "UPDATE mailboxes SET wake_at = settled.next, wake_state = settled.woken FROM \
        (SELECT unhex(value ->> 0) AS device, value ->> 1 AS taken, value ->> 2 AS next, value ->> 3 AS woken \
        FROM json_each($1)) AS settled \
        WHERE device_id = settled.device AND wake_at = settled.taken",
        "UPDATE mailboxes SET wake_at = settled.next, wake_state = settled.woken \
        FROM UNNEST($1::UUID[], $2::TIMESTAMPTZ[], $3::TIMESTAMPTZ[], $4::BIGINT[]) \
        AS settled (device, taken, next, woken) WHERE device_id = settled.device AND wake_at = settled.taken");
    /// Takes rows of device, registration, when pushes to it began to fail, how many did, and until when it is not used
    /// after a failure.
    SETTLE_TARGETS = per_dialect(
        "UPDATE push_targets SET failing_since = settled.since, failures = settled.failures, \
        not_before = settled.not_before FROM \
        (SELECT unhex(value ->> 0) AS device, unhex(value ->> 1) AS registration, value ->> 2 AS since, \
        value ->> 3 AS failures, value ->> 4 AS not_before FROM json_each($1)) AS settled \
        WHERE device_id = settled.device AND id = settled.registration",
        "UPDATE push_targets SET failing_since = settled.since, failures = settled.failures, \
        not_before = settled.not_before \
        FROM UNNEST($1::UUID[], $2::UUID[], $3::TIMESTAMPTZ[], $4::BIGINT[], $5::TIMESTAMPTZ[]) \
        AS settled (device, registration, since, failures, not_before) \
        WHERE device_id = settled.device AND id = settled.registration");
}

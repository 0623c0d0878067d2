//! Mailboxes, their envelopes, and remembered sends.

use super::{Sql, both, per_dialect, postgres};

/// What is read of a mailbox once it is locked.
macro_rules! mailbox_columns {
    () => {
        "SELECT mailboxes.device_id, next_seq, count, bytes, stranger_count, stranger_bytes, expired_total, \
        counted_seq, counted_count, has_push, wake_at, wake_state FROM "
    };
}

/// The mailboxes of rows of device and owning user. A device of another user has none. The owner of a device never
/// changes, so it need not be locked.
macro_rules! mailboxes_of_owners {
    ($skip:literal) => {
        per_dialect(
            concat!(
                mailbox_columns!(),
                "json_each($1) AS wanted \
                CROSS JOIN devices ON devices.id = unhex(wanted.value ->> 0) AND user_id = unhex(wanted.value ->> 1) \
                CROSS JOIN mailboxes ON mailboxes.device_id = devices.id"
            ),
            concat!(
                mailbox_columns!(),
                "UNNEST($1::UUID[], $2::UUID[]) AS wanted (device, owner) \
                JOIN devices ON devices.id = wanted.device AND devices.user_id = wanted.owner \
                JOIN mailboxes ON mailboxes.device_id = wanted.device \
                ORDER BY mailboxes.device_id FOR NO KEY UPDATE OF mailboxes",
                $skip
            ),
        )
    };
}

statements! {
    INSERT_MAILBOX = both("INSERT INTO mailboxes (device_id) VALUES ($1)");
    /// The envelopes and bytes in all mailboxes.
    BACKLOG = both("SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) \
        FROM mailboxes");
    EMPTY_MAILBOX = both("UPDATE mailboxes SET count = 0, bytes = 0, stranger_count = 0, stranger_bytes = 0, \
        counted_seq = NULL, counted_count = NULL, \
        has_push = FALSE, wake_at = NULL, wake_state = 0 WHERE device_id = $1");
    DELETE_SHARES = both("DELETE FROM mailbox_shares WHERE device_id = $1");
    DELETE_MESSAGES = both("DELETE FROM messages WHERE device_id = $1");
    /// The oldest envelopes after $2 up to $3: at most $5 of them, and none after the one with which they reach $6
    /// bytes.
    PAGE = both("SELECT seq, message_id, sender_user, sender_device, type, content, accepted_at FROM \
        (SELECT page.*, SUM(OCTET_LENGTH(content)) OVER (ORDER BY seq) AS total FROM \
        (SELECT * FROM messages WHERE device_id = $1 AND seq > $2 AND seq <= $3 AND expires_at > $4 \
        ORDER BY seq LIMIT $5) AS page) AS sized \
        WHERE total - OCTET_LENGTH(content) < $6 ORDER BY seq");
    OLDEST = both("SELECT device_id, seq FROM messages WHERE device_id = $1 ORDER BY seq LIMIT $2");
    EXPIRED = both("SELECT device_id, seq FROM messages WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2");
    /// Whether this transaction may delete expired envelopes. On PostgreSQL, no other may until it ends.
    TAKE_EXPIRY = per_dialect("SELECT TRUE", "SELECT pg_try_advisory_xact_lock(7166182912861)");

    // What a batch locks and reads

    /// Locks these mailboxes in order of their ids, and reads them.
    LOCK_MAILBOXES = per_dialect(
        concat!(mailbox_columns!(), "mailboxes WHERE device_id IN (SELECT unhex(value) FROM json_each($1))"),
        concat!(mailbox_columns!(), "mailboxes WHERE device_id = ANY($1) ORDER BY device_id FOR NO KEY UPDATE"));
    /// The same for mailboxes that are given as rows of device and owning user.
    LOCK_MAILBOXES_OF_OWNERS = mailboxes_of_owners!("");
    /// The same without those that another transaction has locked.
    LOCK_FREE_MAILBOXES_OF_OWNERS = mailboxes_of_owners!(" SKIP LOCKED");
    /// Locks these mailboxes in order of their ids.
    LOCK_ONLY = postgres("SELECT 1 FROM mailboxes WHERE device_id = ANY($1) ORDER BY device_id FOR NO KEY UPDATE");
    /// The active devices of these users that have published, each with the expiry of its signed prekey, the access
    /// settings of its user and that user's number of blocks. Of users that refuse strangers only if $2.
    RECIPIENTS_OF_MANY = per_dialect(
        "SELECT user_id, devices.id, signed_prekeys.expires_at, access_key, strangers, block_count \
        FROM devices JOIN users ON users.id = devices.user_id \
        JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        WHERE user_id IN (SELECT unhex(value) FROM json_each($1)) AND NOT revoked \
        AND (strangers <> 'refuse' OR $2)",
        "SELECT user_id, devices.id, signed_prekeys.expires_at, access_key, strangers, block_count \
        FROM devices JOIN users ON users.id = devices.user_id \
        JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        WHERE user_id = ANY($1) AND NOT revoked AND (strangers <> 'refuse' OR $2)");
    /// Remembered sends, given as rows of sending device and message id.
    SENDS_OF_MANY = per_dialect(
        "SELECT sender_device, message_id, recipient, accepted_at, outcome, dropped \
        FROM json_each($1) AS wanted CROSS JOIN sends \
        ON sender_device = unhex(wanted.value ->> 0) AND message_id = unhex(wanted.value ->> 1)",
        "SELECT sender_device, sends.message_id, recipient, accepted_at, outcome, dropped \
        FROM UNNEST($1::UUID[], $2::UUID[]) AS wanted (device, message) \
        JOIN sends ON sender_device = wanted.device AND sends.message_id = wanted.message");
    /// The counted shares of sending users in mailboxes, given as rows of device and sending user.
    COUNTED_SHARES = per_dialect(
        "SELECT device_id, sender_user, count, bytes FROM json_each($1) AS wanted CROSS JOIN mailbox_shares \
        ON device_id = unhex(wanted.value ->> 0) AND sender_user = unhex(wanted.value ->> 1)",
        "SELECT device_id, sender_user, count, bytes FROM UNNEST($1::UUID[], $2::UUID[]) AS wanted (device, sender) \
        JOIN mailbox_shares ON device_id = wanted.device AND sender_user = wanted.sender");
    /// Counts the envelopes and bytes of sending users in mailboxes, given as rows of device and sending user.
    COUNT_SHARES = per_dialect(
        "SELECT device_id, sender_user, COUNT(*), SUM(OCTET_LENGTH(content)) \
        FROM json_each($1) AS wanted CROSS JOIN messages \
        ON device_id = unhex(wanted.value ->> 0) AND sender_user = unhex(wanted.value ->> 1) \
        GROUP BY device_id, sender_user",
        "SELECT device_id, sender_user, COUNT(*), SUM(OCTET_LENGTH(content)) \
        FROM UNNEST($1::UUID[], $2::UUID[]) AS wanted (device, sender) \
        JOIN messages ON device_id = wanted.device AND sender_user = wanted.sender GROUP BY device_id, sender_user");

    // What a batch writes

    /// Takes rows of device and envelope number. Returns the deleted ones, each with its sending user, its content size in
    /// bytes and whether it is from a stranger.
    DELETE_ENVELOPES = per_dialect(
        "DELETE FROM messages WHERE (device_id, seq) IN \
        (SELECT unhex(value ->> 0), value ->> 1 FROM json_each($1)) \
        RETURNING device_id, seq, sender_user, OCTET_LENGTH(content), from_stranger",
        "DELETE FROM messages USING UNNEST($1::UUID[], $2::BIGINT[]) AS gone (device, number) \
        WHERE device_id = gone.device AND seq = gone.number \
        RETURNING device_id, seq, sender_user, OCTET_LENGTH(content)::BIGINT, from_stranger");
    INSERT_ENVELOPES = per_dialect(
        "INSERT INTO messages \
        (device_id, seq, message_id, sender_user, sender_device, type, content, accepted_at, expires_at, \
        from_stranger, urgent) \
        SELECT unhex(value ->> 0), value ->> 1, unhex(value ->> 2), unhex(value ->> 3), unhex(value ->> 4), \
        value ->> 5, substr($2, (value ->> 6) + 1, value ->> 7), value ->> 8, value ->> 9, value ->> 10, value ->> 11 \
        FROM json_each($1)",
        "INSERT INTO messages \
        (device_id, seq, message_id, sender_user, sender_device, type, content, accepted_at, expires_at, \
        from_stranger, urgent) \
        SELECT device, seq, message, sender, from_device, type, content, accepted_at, expires_at, stranger <> 0, \
        is_urgent <> 0 \
        FROM UNNEST($1::UUID[], $2::BIGINT[], $3::UUID[], $4::UUID[], $5::UUID[], $6::BIGINT[], $7::BYTEA[], \
        $8::TIMESTAMPTZ[], $9::TIMESTAMPTZ[], $10::BIGINT[], $11::BIGINT[]) AS new \
        (device, seq, message, sender, from_device, type, content, accepted_at, expires_at, stranger, is_urgent)");
    UPDATE_MAILBOXES = per_dialect(
        "UPDATE mailboxes \
        SET next_seq = now.next_seq, count = now.count, bytes = now.bytes, expired_total = now.expired_total, \
        stranger_count = now.stranger_count, stranger_bytes = now.stranger_bytes, \
        counted_seq = CASE WHEN now.counted THEN now.next_seq END, \
        counted_count = CASE WHEN now.counted THEN now.count END, \
        wake_at = now.wake_at, wake_state = now.wake_state \
        FROM (SELECT unhex(value ->> 0) AS device, value ->> 1 AS next_seq, value ->> 2 AS count, \
        value ->> 3 AS bytes, value ->> 4 AS expired_total, value ->> 5 AS stranger_count, \
        value ->> 6 AS stranger_bytes, value ->> 7 <> 0 AS counted, value ->> 8 AS wake_at, \
        value ->> 9 AS wake_state FROM json_each($1)) AS now \
        WHERE device_id = now.device",
        "UPDATE mailboxes \
        SET next_seq = now.next_seq, count = now.count, bytes = now.bytes, expired_total = now.expired_total, \
        stranger_count = now.stranger_count, stranger_bytes = now.stranger_bytes, \
        counted_seq = CASE WHEN now.counted <> 0 THEN now.next_seq END, \
        counted_count = CASE WHEN now.counted <> 0 THEN now.count END, \
        wake_at = now.wake_at, wake_state = now.wake_state \
        FROM UNNEST($1::UUID[], $2::BIGINT[], $3::BIGINT[], $4::BIGINT[], $5::BIGINT[], $6::BIGINT[], $7::BIGINT[], \
        $8::BIGINT[], $9::TIMESTAMPTZ[], $10::BIGINT[]) AS now \
        (device, next_seq, count, bytes, expired_total, stranger_count, stranger_bytes, counted, wake_at, wake_state) \
        WHERE device_id = now.device");
    /// Takes rows of device, sending user, envelopes and bytes.
    WRITE_SHARES = per_dialect(
        "INSERT INTO mailbox_shares (device_id, sender_user, count, bytes) \
        SELECT unhex(value ->> 0), unhex(value ->> 1), value ->> 2, value ->> 3 FROM json_each($1) WHERE TRUE \
        ON CONFLICT (device_id, sender_user) DO UPDATE SET count = excluded.count, bytes = excluded.bytes",
        "INSERT INTO mailbox_shares (device_id, sender_user, count, bytes) \
        SELECT device, sender, held, size \
        FROM UNNEST($1::UUID[], $2::UUID[], $3::BIGINT[], $4::BIGINT[]) AS new (device, sender, held, size) \
        ON CONFLICT (device_id, sender_user) DO UPDATE SET count = excluded.count, bytes = excluded.bytes");
    /// Takes rows of device, sending user, and the envelopes and bytes that were deleted.
    LOWER_SHARES = per_dialect(
        "UPDATE mailbox_shares SET count = mailbox_shares.count - gone.count, bytes = mailbox_shares.bytes - gone.bytes \
        FROM (SELECT unhex(value ->> 0) AS device, unhex(value ->> 1) AS sender, value ->> 2 AS count, \
        value ->> 3 AS bytes FROM json_each($1)) AS gone \
        WHERE device_id = gone.device AND sender_user = gone.sender",
        "UPDATE mailbox_shares SET count = mailbox_shares.count - gone.count, bytes = mailbox_shares.bytes - gone.bytes \
        FROM UNNEST($1::UUID[], $2::UUID[], $3::BIGINT[], $4::BIGINT[]) AS gone (device, sender, count, bytes) \
        WHERE device_id = gone.device AND sender_user = gone.sender");
    /// Deletes the shares of these mailboxes in which nothing is left.
    DELETE_EMPTY_SHARES = per_dialect(
        "DELETE FROM mailbox_shares WHERE device_id IN (SELECT unhex(value) FROM json_each($1)) AND count <= 0",
        "DELETE FROM mailbox_shares WHERE device_id = ANY($1) AND count <= 0");
    /// Deletes all shares of these mailboxes.
    DELETE_SHARES_OF_MANY = per_dialect(
        "DELETE FROM mailbox_shares WHERE device_id IN (SELECT unhex(value) FROM json_each($1))",
        "DELETE FROM mailbox_shares WHERE device_id = ANY($1)");
    INSERT_SENDS = per_dialect(
        "INSERT INTO sends (sender_device, message_id, recipient, accepted_at, outcome, dropped) \
        SELECT unhex(value ->> 0), unhex(value ->> 1), unhex(value ->> 2), value ->> 3, \
        COALESCE(substr($2, (value ->> 4) + 1, value ->> 5), x''), value ->> 6 FROM json_each($1)",
        "INSERT INTO sends (sender_device, message_id, recipient, accepted_at, outcome, dropped) \
        SELECT device, message, receiver, at, result, is_dropped <> 0 \
        FROM UNNEST($1::UUID[], $2::UUID[], $3::UUID[], $4::TIMESTAMPTZ[], $5::BYTEA[], $6::BIGINT[]) \
        AS new (device, message, receiver, at, result, is_dropped)");
    UPDATE_SEND = both("UPDATE sends SET outcome = $3, dropped = $4 WHERE sender_device = $1 AND message_id = $2");
    DELETE_SEND = both("DELETE FROM sends WHERE sender_device = $1 AND message_id = $2");
}

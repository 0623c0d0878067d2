//! Deletes or clears rows that are past their retention time. Each statement handles the rows whose time is at or before
//! $1, at most $2 of them.

use super::{Sql, both, per_dialect, sqlite};

statements! {
    /// On SQLite, records the expired sessions that [`SESSIONS`] deletes next.
    RECORD_SESSIONS = sqlite("INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, 'expired', $1, device_id FROM sessions WHERE id IN \
        (SELECT id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at, id LIMIT $2) \
        ON CONFLICT (token_hash) DO NOTHING");
    /// Deletes expired sessions. On PostgreSQL it also records them: one statement for both locks the sessions before
    /// their devices, which the insert locks by its foreign key. `store/locks.rs` defines the order.
    SESSIONS = per_dialect(
        "DELETE FROM sessions WHERE id IN \
        (SELECT id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at, id LIMIT $2)",
        "WITH expired AS (DELETE FROM sessions WHERE id IN \
        (SELECT id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at, id LIMIT $2) \
        RETURNING token_hash, device_id) \
        INSERT INTO ended_sessions (token_hash, reason, ended_at, device_id) \
        SELECT token_hash, 'expired', $1, device_id FROM expired ON CONFLICT (token_hash) DO NOTHING");
    ENDED_SESSIONS = both("DELETE FROM ended_sessions WHERE ended_at <= $1 AND token_hash IN \
        (SELECT token_hash FROM ended_sessions WHERE ended_at <= $1 ORDER BY ended_at LIMIT $2)");
    APPROVALS = both("DELETE FROM approvals WHERE id IN \
        (SELECT id FROM approvals WHERE decided_at <= $1 ORDER BY decided_at LIMIT $2)");
    CHALLENGES = both("DELETE FROM email_otps WHERE id IN \
        (SELECT id FROM email_otps WHERE created_at <= $1 ORDER BY created_at LIMIT $2)");
    SPENT_PROOFS = both("DELETE FROM spent_proofs WHERE salt IN \
        (SELECT salt FROM spent_proofs WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)");
    KNOWN_NETWORKS = both("DELETE FROM known_networks WHERE (user_id, network) IN \
        (SELECT user_id, network FROM known_networks WHERE signed_in_at <= $1 ORDER BY signed_in_at LIMIT $2)");
    WRONG_GUESSES = both("DELETE FROM wrong_guesses WHERE id IN \
        (SELECT id FROM wrong_guesses WHERE guessed_at <= $1 ORDER BY guessed_at LIMIT $2)");
    NETWORK_GUESSES = both("DELETE FROM network_guesses WHERE (guess_id, network) IN \
        (SELECT guess_id, network FROM network_guesses WHERE guessed_at <= $1 ORDER BY guessed_at LIMIT $2)");
    GUESS_NOTICES = both("DELETE FROM guess_notices WHERE counted_as IN \
        (SELECT counted_as FROM guess_notices WHERE mailed_at <= $1 ORDER BY mailed_at LIMIT $2)");
    CLAIMS = both("UPDATE one_time_prekeys SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL \
        WHERE id IN (SELECT id FROM one_time_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)");
    PQ_CLAIMS = both("UPDATE pq_prekeys \
        SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL, public_key = NULL, signature = NULL \
        WHERE id IN (SELECT id FROM pq_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)");
    /// On PostgreSQL it skips rows that claims have locked, so that it never waits: claims lock in another order.
    STRANGER_CLAIMS = per_dialect(
        "DELETE FROM stranger_claims WHERE device_id IN \
        (SELECT device_id FROM stranger_claims WHERE last_at <= $1 ORDER BY last_at LIMIT $2)",
        "DELETE FROM stranger_claims WHERE device_id IN \
        (SELECT device_id FROM stranger_claims WHERE last_at <= $1 ORDER BY last_at LIMIT $2 FOR UPDATE SKIP LOCKED)");
    SENDS = both("DELETE FROM sends WHERE (sender_device, message_id) IN \
        (SELECT sender_device, message_id FROM sends WHERE accepted_at <= $1 ORDER BY accepted_at LIMIT $2)");

    // Records from the future: the rows whose time is after $1, at most $2 of them.

    ENDED_SESSIONS_AHEAD = both("DELETE FROM ended_sessions WHERE ended_at > $1 AND token_hash IN \
        (SELECT token_hash FROM ended_sessions WHERE ended_at > $1 ORDER BY ended_at LIMIT $2)");
    APPROVALS_AHEAD = both("DELETE FROM approvals WHERE id IN \
        (SELECT id FROM approvals WHERE decided_at > $1 ORDER BY decided_at LIMIT $2)");
    PENDING_APPROVALS_AHEAD = both("DELETE FROM approvals WHERE id IN \
        (SELECT id FROM approvals WHERE state = 'pending' AND created_at > $1 LIMIT $2)");
    /// The last of a number of users, or of devices, in the order of their ids.
    USERS_WINDOW = both("SELECT id FROM users WHERE id > $1 ORDER BY id LIMIT 1 OFFSET $2");
    DEVICES_WINDOW = both("SELECT id FROM devices WHERE id > $1 ORDER BY id LIMIT 1 OFFSET $2");
    /// How many of those after $1 and up to $2 have times after $3.
    USERS_AHEAD = both("SELECT COUNT(*) FROM users WHERE id > $1 AND id <= $2 AND created_at > $3");
    DEVICES_AHEAD = both("SELECT COUNT(*) FROM devices WHERE id > $1 AND id <= $2 \
        AND (created_at > $3 OR last_seen > $3)");
    /// Sets these times to $4.
    LOWER_USERS = both("UPDATE users SET created_at = $4 WHERE id > $1 AND id <= $2 AND created_at > $3");
    LOWER_DEVICES = both("UPDATE devices SET created_at = CASE WHEN created_at > $3 THEN $4 ELSE created_at END, \
        last_seen = CASE WHEN last_seen > $3 THEN $4 ELSE last_seen END \
        WHERE id > $1 AND id <= $2 AND (created_at > $3 OR last_seen > $3)");
    SPENT_PROOFS_AHEAD = both("DELETE FROM spent_proofs WHERE salt IN \
        (SELECT salt FROM spent_proofs WHERE expires_at > $1 ORDER BY expires_at LIMIT $2)");
    CHALLENGES_AHEAD = both("DELETE FROM email_otps WHERE id IN \
        (SELECT id FROM email_otps WHERE created_at > $1 ORDER BY created_at LIMIT $2)");
    KNOWN_NETWORKS_AHEAD = both("DELETE FROM known_networks WHERE (user_id, network) IN \
        (SELECT user_id, network FROM known_networks WHERE signed_in_at > $1 ORDER BY signed_in_at LIMIT $2)");
    WRONG_GUESSES_AHEAD = both("DELETE FROM wrong_guesses WHERE id IN \
        (SELECT id FROM wrong_guesses WHERE guessed_at > $1 ORDER BY guessed_at LIMIT $2)");
    NETWORK_GUESSES_AHEAD = both("DELETE FROM network_guesses WHERE (guess_id, network) IN \
        (SELECT guess_id, network FROM network_guesses WHERE guessed_at > $1 ORDER BY guessed_at LIMIT $2)");
    GUESS_NOTICES_AHEAD = both("DELETE FROM guess_notices WHERE counted_as IN \
        (SELECT counted_as FROM guess_notices WHERE mailed_at > $1 ORDER BY mailed_at LIMIT $2)");
    CLAIMS_AHEAD = both("UPDATE one_time_prekeys SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL \
        WHERE id IN (SELECT id FROM one_time_prekeys WHERE claim_id IS NOT NULL AND claimed_at > $1 LIMIT $2)");
    PQ_CLAIMS_AHEAD = both("UPDATE pq_prekeys \
        SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL, public_key = NULL, signature = NULL \
        WHERE id IN (SELECT id FROM pq_prekeys WHERE claim_id IS NOT NULL AND claimed_at > $1 LIMIT $2)");
    STRANGER_CLAIMS_AHEAD = per_dialect(
        "DELETE FROM stranger_claims WHERE device_id IN \
        (SELECT device_id FROM stranger_claims WHERE last_at > $1 ORDER BY last_at LIMIT $2)",
        "DELETE FROM stranger_claims WHERE device_id IN \
        (SELECT device_id FROM stranger_claims WHERE last_at > $1 ORDER BY last_at LIMIT $2 FOR UPDATE SKIP LOCKED)");
    SENDS_AHEAD = both("DELETE FROM sends WHERE (sender_device, message_id) IN \
        (SELECT sender_device, message_id FROM sends WHERE accepted_at > $1 ORDER BY accepted_at LIMIT $2)");
}

//! Sweeps: delete or clear rows past their retention time. Each handles at most $2 rows whose time is at or before $1.

use super::{Sql, both};

statements! {
    SESSIONS = both("DELETE FROM sessions WHERE id IN \
        (SELECT id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)");
    CHALLENGES = both("DELETE FROM email_otps WHERE id IN \
        (SELECT id FROM email_otps WHERE created_at <= $1 ORDER BY created_at LIMIT $2)");
    CLAIMS = both("UPDATE one_time_prekeys SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL \
        WHERE id IN (SELECT id FROM one_time_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)");
    PQ_CLAIMS = both("UPDATE pq_prekeys \
        SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL, public_key = NULL, signature = NULL \
        WHERE id IN (SELECT id FROM pq_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)");
    SENDS = both("DELETE FROM sends WHERE (sender_device, message_id) IN \
        (SELECT sender_device, message_id FROM sends WHERE accepted_at <= $1 ORDER BY accepted_at LIMIT $2)");
}

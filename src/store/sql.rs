//! Every SQL text. Each is written once, in the subset that SQLite and PostgreSQL share: `$n` parameters, `RETURNING`,
//! `ON CONFLICT`, partial indexes, times as parameters. An operation whose form must differ stands here as a pair.

// Challenges

pub const CHALLENGES_OF: &str = "SELECT created_at, network FROM email_otps \
    WHERE email = $1 AND created_at > $2 ORDER BY created_at DESC LIMIT 1000";
pub const INSERT_CHALLENGE: &str = "INSERT INTO email_otps (id, email, otp_hash, expires_at, created_at, network) \
    VALUES ($1, $2, $3, $4, $5, $6)";
pub const CHALLENGE: &str = "SELECT used, expires_at, attempts FROM email_otps WHERE id = $1 AND email = $2";
pub const COUNT_ATTEMPT: &str = "UPDATE email_otps SET attempts = attempts + 1 \
    WHERE id = $1 AND NOT used AND expires_at > $2 AND attempts < $3 RETURNING otp_hash";
pub const USE_CHALLENGE: &str = "UPDATE email_otps SET used = TRUE WHERE id = $1 AND NOT used";
pub const REFUND_ATTEMPT: &str = "UPDATE email_otps SET used = FALSE, attempts = attempts - 1 WHERE id = $1";

// Users and devices

pub const USER_BY_EMAIL: &str = "SELECT id FROM users WHERE email = $1";
pub const USER_EXISTS: &str = "SELECT 1 FROM users WHERE id = $1";
pub const INSERT_USER: &str = "INSERT INTO users (id, email, email_verified, created_at) VALUES ($1, $2, TRUE, $3)";
pub const DELETE_USER: &str = "DELETE FROM users WHERE id = $1";
pub const ACTIVE_DEVICES: &str = "SELECT id, device_name, registration_id, created_at, last_seen FROM devices \
    WHERE user_id = $1 AND NOT revoked ORDER BY created_at, id";
pub const INSERT_DEVICE: &str = "INSERT INTO devices (id, user_id, device_name, registration_id, created_at) \
    VALUES ($1, $2, $3, $4, $5)";
pub const RENAME_DEVICE: &str = "UPDATE devices SET device_name = $3 WHERE id = $1 AND user_id = $2 AND NOT revoked";
pub const REVOKE_DEVICE: &str = "UPDATE devices SET revoked = TRUE WHERE id = $1 AND user_id = $2 AND NOT revoked";
pub const DELETE_SESSIONS_OF_DEVICE: &str = "DELETE FROM sessions WHERE device_id = $1";
pub const DELETE_SIGNED_PREKEYS: &str = "DELETE FROM signed_prekeys WHERE device_id = $1";
pub const DELETE_UNISSUED: &str = "DELETE FROM one_time_prekeys WHERE device_id = $1 AND NOT used";
pub const DELETE_UNISSUED_PQ: &str = "DELETE FROM pq_prekeys WHERE device_id = $1 AND NOT used";
pub const DEVICE_REVOKED: &str = "SELECT revoked FROM devices WHERE id = $1 AND user_id = $2";
pub const OPEN_CONNECTION: &str = "UPDATE devices SET conn_epoch = conn_epoch + 1, last_seen = $3 \
    WHERE id = $1 AND NOT revoked \
    AND EXISTS (SELECT 1 FROM sessions WHERE sessions.id = $2 AND device_id = $1 AND expires_at > $3) \
    RETURNING conn_epoch";
pub const TOUCH_DEVICE: &str = "UPDATE devices SET last_seen = $2 WHERE id = $1 AND last_seen < $2";

// Sessions

pub const INSERT_SESSION: &str = "INSERT INTO sessions \
    (id, user_id, device_id, token_hash, expires_at, created_at, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7)";
pub const SESSION_BY_TOKEN: &str = "SELECT sessions.id, sessions.user_id, sessions.device_id, expires_at, replaces \
    FROM sessions JOIN devices ON devices.id = sessions.device_id \
    WHERE token_hash = $1 AND expires_at > $2 AND NOT revoked";
pub const AUTHORIZE: &str = "SELECT replaces FROM sessions JOIN devices ON devices.id = sessions.device_id \
    WHERE sessions.id = $1 AND sessions.device_id = $2 AND expires_at > $3 AND NOT revoked";
pub const SETTLE_SESSION: &str = "UPDATE sessions SET replaces = NULL WHERE id = $1 AND replaces IS NOT NULL";
pub const DELETE_SESSION: &str = "DELETE FROM sessions WHERE id = $1";
pub const SESSION_LIVES: &str = "SELECT 1 FROM sessions WHERE id = $1 AND expires_at > $2";
pub const DELETE_SUCCESSOR: &str = "DELETE FROM sessions WHERE replaces = $1 AND device_id = $2";
pub const DELETE_PAIR: &str = "DELETE FROM sessions WHERE device_id = $1 \
    AND (id = $2 OR replaces = $2 OR id = (SELECT pair.replaces FROM sessions pair WHERE pair.id = $2)) RETURNING id";

// Keys

pub const IDENTITY: &str = "SELECT suite, public_key FROM identity_keys WHERE device_id = $1";
pub const INSERT_IDENTITY: &str = "INSERT INTO identity_keys (device_id, public_key, created_at, suite) \
    VALUES ($1, $2, $3, $4)";
pub const SIGNED_PREKEY_STATUS: &str = "SELECT key_id, expires_at FROM signed_prekeys WHERE device_id = $1";
pub const INSERT_SIGNED_PREKEY: &str = "INSERT INTO signed_prekeys \
    (id, device_id, public_key, signature, created_at, expires_at, key_id) VALUES ($1, $2, $3, $4, $5, $6, $7)";
pub const LAST_RESORT: &str =
    "SELECT key_id, public_key, signature FROM pq_prekeys WHERE device_id = $1 AND last_resort";
pub const LAST_RESORT_STATUS: &str = "SELECT key_id FROM pq_prekeys WHERE device_id = $1 AND last_resort";
pub const DELETE_LAST_RESORT: &str = "DELETE FROM pq_prekeys WHERE device_id = $1 AND last_resort";
pub const INSERT_PQ: &str = "INSERT INTO pq_prekeys (id, device_id, last_resort, key_id, public_key, signature, created_at) \
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (device_id, last_resort, key_id) DO NOTHING";
pub const INSERT_ONE_TIME: &str = "INSERT INTO one_time_prekeys (id, device_id, public_key, created_at, key_id) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (device_id, key_id) DO NOTHING";
pub const ONE_TIME_BY_KEY_ID: &str =
    "SELECT used, public_key FROM one_time_prekeys WHERE device_id = $1 AND key_id = $2";
pub const PQ_BY_KEY_ID: &str = "SELECT used, public_key FROM pq_prekeys \
    WHERE device_id = $1 AND key_id = $2 AND NOT last_resort";
/// Counts no further than $2.
pub const COUNT_ONE_TIME: &str = "SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys \
    WHERE device_id = $1 AND NOT used LIMIT $2) AS pool";
/// Counts no further than $2.
pub const COUNT_PQ: &str = "SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys \
    WHERE device_id = $1 AND NOT used AND NOT last_resort LIMIT $2) AS pool";
pub const BUMP_POOL_VERSION: &str = "UPDATE devices SET pool_version = pool_version + 1 WHERE id = $1";
pub const POOL_VERSION: &str = "SELECT pool_version FROM devices WHERE id = $1";
/// A publish re-arms the levels that the pool rose above.
pub const REARM_ONE_TIME: &str = "UPDATE devices SET one_time_depth = $2 WHERE id = $1 AND one_time_depth > $2";
pub const REARM_PQ: &str = "UPDATE devices SET pq_depth = $2 WHERE id = $1 AND pq_depth > $2";
/// Whoever makes the depth grow announces it.
pub const ANNOUNCE_ONE_TIME: &str = "UPDATE devices SET one_time_depth = $2 \
    WHERE id = $1 AND one_time_depth < $2 RETURNING pool_version";
pub const ANNOUNCE_PQ: &str = "UPDATE devices SET pq_depth = $2 WHERE id = $1 AND pq_depth < $2 RETURNING pool_version";

/// All active devices of a user with their signed parts; the keys are NULL for one that has not published.
pub const TARGETS: &str = "SELECT devices.id, registration_id, identity_keys.suite, identity_keys.public_key, \
    signed_prekeys.key_id, signed_prekeys.public_key, signed_prekeys.signature, signed_prekeys.expires_at \
    FROM devices LEFT JOIN identity_keys ON identity_keys.device_id = devices.id \
    LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
    WHERE user_id = $1 AND NOT revoked ORDER BY devices.created_at, devices.id";

pub const CLAIMED_ONE_TIME: &str = "SELECT key_id, public_key FROM one_time_prekeys \
    WHERE claimed_by = $1 AND claim_id = $2 AND device_id = $3";
pub const CLAIMED_PQ: &str = "SELECT key_id, public_key, signature FROM pq_prekeys \
    WHERE claimed_by = $1 AND claim_id = $2 AND device_id = $3";
pub const CLAIM_ONE_TIME: &str = "UPDATE one_time_prekeys \
    SET used = TRUE, claimed_by = $2, claim_id = $3, claimed_at = $4 \
    WHERE id = (SELECT id FROM one_time_prekeys WHERE device_id = $1 AND NOT used ORDER BY created_at, key_id LIMIT 1) \
    RETURNING key_id, public_key";
pub const CLAIM_PQ: &str = "UPDATE pq_prekeys SET used = TRUE, claimed_by = $2, claim_id = $3, claimed_at = $4 \
    WHERE id = (SELECT id FROM pq_prekeys WHERE device_id = $1 AND NOT used AND NOT last_resort \
    ORDER BY created_at, key_id LIMIT 1) RETURNING key_id, public_key, signature";

// Sweeps, each in steps of $2 rows

pub const SWEEP_SESSIONS: &str = "DELETE FROM sessions WHERE id IN \
    (SELECT id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)";
pub const SWEEP_CHALLENGES: &str = "DELETE FROM email_otps WHERE id IN \
    (SELECT id FROM email_otps WHERE created_at <= $1 ORDER BY created_at LIMIT $2)";
pub const SWEEP_CLAIMS: &str = "UPDATE one_time_prekeys SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL \
    WHERE id IN (SELECT id FROM one_time_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)";
pub const SWEEP_PQ_CLAIMS: &str = "UPDATE pq_prekeys \
    SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL, public_key = NULL, signature = NULL \
    WHERE id IN (SELECT id FROM pq_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)";

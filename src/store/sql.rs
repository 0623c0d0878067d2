//! Every SQL text. Each is written once, in the subset that SQLite and PostgreSQL share: `$n` parameters, `RETURNING`,
//! `ON CONFLICT`, partial indexes, times as parameters. An operation whose form must differ stands here as a pair.
//!
//! A test prepares every text on the engines it is for.

use super::Store;

macro_rules! texts {
    ($(#[$list_doc:meta])* $list:ident: $($(#[$doc:meta])* $name:ident = $text:expr;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*
        $(#[$list_doc])*
        pub const $list: &[(&str, &str)] = &[$((stringify!($name), $name),)*];
    };
}

pub mod claims;
pub mod mailbox;
pub mod many;

/// One operation in two dialects.
#[derive(Clone, Copy)]
pub struct Pair<T = Option<&'static str>> {
    sqlite: T,
    postgres: T,
}

impl<T> Pair<T> {
    /// The text for the store's engine; `None` where it needs nothing.
    #[must_use]
    pub fn on(self, store: &Store) -> T {
        match store {
            Store::Sqlite(_) => self.sqlite,
            Store::Postgres(_) => self.postgres,
        }
    }
}

texts! {
    /// Texts for both engines.
    SHARED:

    PING = "SELECT 1";
    MIGRATIONS = "SELECT version, success, checksum FROM _sqlx_migrations";

    // Challenges

    CHALLENGES_OF = "SELECT created_at, network FROM email_otps \
        WHERE email = $1 AND created_at > $2 ORDER BY created_at DESC LIMIT 1000";
    INSERT_CHALLENGE = "INSERT INTO email_otps (id, email, otp_hash, expires_at, created_at, network) \
        VALUES ($1, $2, $3, $4, $5, $6)";
    CHALLENGE = "SELECT used, expires_at, attempts FROM email_otps WHERE id = $1 AND email = $2";
    COUNT_ATTEMPT = "UPDATE email_otps SET attempts = attempts + 1 \
        WHERE id = $1 AND NOT used AND expires_at > $2 AND attempts < $3 RETURNING otp_hash";
    USE_CHALLENGE = "UPDATE email_otps SET used = TRUE WHERE id = $1 AND NOT used";
    REFUND_ATTEMPT = "UPDATE email_otps SET used = FALSE, attempts = attempts - 1 WHERE id = $1";

    // Users and devices

    USER_BY_EMAIL = "SELECT id FROM users WHERE email = $1";
    USER_EXISTS = "SELECT 1 FROM users WHERE id = $1";
    /// Takes the user's row, making it when it is new.
    UPSERT_USER = "INSERT INTO users (id, email, email_verified, created_at) VALUES ($1, $2, TRUE, $3) \
        ON CONFLICT (email) DO UPDATE SET email_verified = TRUE RETURNING id";
    DELETE_USER = "DELETE FROM users WHERE id = $1";
    ACTIVE_DEVICES = "SELECT id, device_name, registration_id, created_at, last_seen FROM devices \
        WHERE user_id = $1 AND NOT revoked ORDER BY created_at, id";
    INSERT_DEVICE = "INSERT INTO devices (id, user_id, device_name, registration_id, created_at) \
        VALUES ($1, $2, $3, $4, $5)";
    RENAME_DEVICE = "UPDATE devices SET device_name = $3 WHERE id = $1 AND user_id = $2 AND NOT revoked";
    REVOKE_DEVICE = "UPDATE devices SET revoked = TRUE WHERE id = $1 AND user_id = $2 AND NOT revoked";
    DELETE_SESSIONS_OF_DEVICE = "DELETE FROM sessions WHERE device_id = $1";
    DELETE_SIGNED_PREKEYS = "DELETE FROM signed_prekeys WHERE device_id = $1";
    DELETE_UNISSUED = "DELETE FROM one_time_prekeys WHERE device_id = $1 AND NOT used";
    DELETE_UNISSUED_PQ = "DELETE FROM pq_prekeys WHERE device_id = $1 AND NOT used";
    DEVICE_REVOKED = "SELECT revoked FROM devices WHERE id = $1 AND user_id = $2";
    OPEN_CONNECTION = "UPDATE devices SET conn_epoch = conn_epoch + 1, last_seen = $3 \
        WHERE id = $1 AND NOT revoked \
        AND EXISTS (SELECT 1 FROM sessions WHERE sessions.id = $2 AND device_id = $1 AND expires_at > $3) \
        RETURNING conn_epoch";
    /// How a connection stands: the device's newest epoch, whether it is revoked, whether $2 holds, the newest envelope.
    SURVEY = "SELECT conn_epoch, revoked, EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = $2 AND sessions.device_id = devices.id AND expires_at > $3), next_seq - 1 \
        FROM devices JOIN mailboxes ON device_id = devices.id WHERE devices.id = $1";
    TOUCH_DEVICE = "UPDATE devices SET last_seen = $2 WHERE id = $1 AND (last_seen IS NULL OR last_seen < $2)";

    // Sessions

    INSERT_SESSION = "INSERT INTO sessions \
        (id, user_id, device_id, token_hash, expires_at, created_at, replaces) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    SESSION_BY_TOKEN = "SELECT sessions.id, sessions.user_id, sessions.device_id, expires_at, replaces \
        FROM sessions JOIN devices ON devices.id = sessions.device_id \
        WHERE token_hash = $1 AND expires_at > $2 AND NOT revoked";
    AUTHORIZE = "SELECT replaces FROM sessions JOIN devices ON devices.id = sessions.device_id \
        WHERE sessions.id = $1 AND sessions.device_id = $2 AND expires_at > $3 AND NOT revoked";
    SETTLE_SESSION = "UPDATE sessions SET replaces = NULL WHERE id = $1 AND replaces IS NOT NULL";
    DELETE_SESSION = "DELETE FROM sessions WHERE id = $1";
    SESSION_LIVES = "SELECT 1 FROM sessions WHERE id = $1 AND expires_at > $2";
    DELETE_SUCCESSOR = "DELETE FROM sessions WHERE replaces = $1 AND device_id = $2";
    DELETE_PAIR = "DELETE FROM sessions WHERE device_id = $1 \
        AND (id = $2 OR replaces = $2 OR id = (SELECT pair.replaces FROM sessions pair WHERE pair.id = $2)) RETURNING id";

    // Keys

    IDENTITY = "SELECT suite, public_key FROM identity_keys WHERE device_id = $1";
    INSERT_IDENTITY = "INSERT INTO identity_keys (device_id, public_key, created_at, suite) \
        VALUES ($1, $2, $3, $4)";
    SIGNED_PREKEY_STATUS = "SELECT key_id, expires_at FROM signed_prekeys WHERE device_id = $1";
    INSERT_SIGNED_PREKEY = "INSERT INTO signed_prekeys \
        (id, device_id, public_key, signature, created_at, expires_at, key_id) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    LAST_RESORT =
        "SELECT key_id, public_key, signature FROM pq_prekeys WHERE device_id = $1 AND last_resort";
    LAST_RESORT_STATUS = "SELECT key_id FROM pq_prekeys WHERE device_id = $1 AND last_resort";
    DELETE_LAST_RESORT = "DELETE FROM pq_prekeys WHERE device_id = $1 AND last_resort";
    INSERT_PQ = "INSERT INTO pq_prekeys (id, device_id, last_resort, key_id, public_key, signature, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (device_id, last_resort, key_id) DO NOTHING";
    INSERT_ONE_TIME = "INSERT INTO one_time_prekeys (id, device_id, public_key, created_at, key_id) \
        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (device_id, key_id) DO NOTHING";
    ONE_TIME_BY_KEY_ID =
        "SELECT used, public_key FROM one_time_prekeys WHERE device_id = $1 AND key_id = $2";
    PQ_BY_KEY_ID = "SELECT used, public_key FROM pq_prekeys \
        WHERE device_id = $1 AND key_id = $2 AND NOT last_resort";
    /// Counts no further than $2, and no tombstones: SQLite takes both columns of an index for `used = FALSE` only.
    COUNT_ONE_TIME = "SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys \
        WHERE device_id = $1 AND used = FALSE LIMIT $2) AS pool";
    /// Counts no further than $2.
    COUNT_PQ = "SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys \
        WHERE device_id = $1 AND NOT used AND NOT last_resort LIMIT $2) AS pool";
    BUMP_POOL_VERSION = "UPDATE devices SET pool_version = pool_version + 1 WHERE id = $1";
    POOL_VERSION = "SELECT pool_version FROM devices WHERE id = $1";
    /// A publish re-arms the levels that the pool rose above.
    REARM_ONE_TIME = "UPDATE devices SET one_time_depth = $2 WHERE id = $1 AND one_time_depth > $2";
    REARM_PQ = "UPDATE devices SET pq_depth = $2 WHERE id = $1 AND pq_depth > $2";

    /// All active devices of a user with their signed parts; the keys are NULL for one that has not published.
    TARGETS = "SELECT devices.id, registration_id, identity_keys.suite, identity_keys.public_key, \
        signed_prekeys.key_id, signed_prekeys.public_key, signed_prekeys.signature, signed_prekeys.expires_at \
        FROM devices LEFT JOIN identity_keys ON identity_keys.device_id = devices.id \
        LEFT JOIN signed_prekeys ON signed_prekeys.device_id = devices.id \
        WHERE user_id = $1 AND NOT revoked ORDER BY devices.created_at, devices.id";

    // Sweeps, each in steps of $2 rows

    SWEEP_SESSIONS = "DELETE FROM sessions WHERE id IN \
        (SELECT id FROM sessions WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2)";
    SWEEP_CHALLENGES = "DELETE FROM email_otps WHERE id IN \
        (SELECT id FROM email_otps WHERE created_at <= $1 ORDER BY created_at LIMIT $2)";
    SWEEP_CLAIMS = "UPDATE one_time_prekeys SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL \
        WHERE id IN (SELECT id FROM one_time_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)";
    SWEEP_PQ_CLAIMS = "UPDATE pq_prekeys \
        SET claimed_by = NULL, claim_id = NULL, claimed_at = NULL, public_key = NULL, signature = NULL \
        WHERE id IN (SELECT id FROM pq_prekeys WHERE claim_id IS NOT NULL AND claimed_at <= $1 LIMIT $2)";
}

texts! {
    /// Texts of SQLite alone.
    SQLITE:

    HAS_MIGRATIONS = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations')";
    /// Writes a page that nobody reads.
    TRY_TO_WRITE = "PRAGMA user_version = 0";
}

texts! {
    /// Texts of PostgreSQL alone: row locks and the like.
    POSTGRES:

    HAS_MIGRATIONS_TABLE = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    NO_TIMEOUTS = "SELECT set_config('lock_timeout', '0', FALSE), set_config('statement_timeout', '0', FALSE)";

    /// Whether the role may make the extension, and whether it is there already.
    MAY_MIGRATE = "SELECT has_database_privilege(current_database(), 'CREATE'), \
        EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'uuid-ossp')";

    // Locks, in the order users, sessions, devices, mailboxes; each by id

    CHALLENGE_LOCKED = "SELECT used, expires_at, attempts FROM email_otps WHERE id = $1 AND email = $2 FOR UPDATE";
    LOCK_EMAIL = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    LOCK_OWN_SESSIONS = "SELECT id FROM sessions WHERE device_id = $1 ORDER BY id FOR NO KEY UPDATE";
    LOCK_OWN_DEVICE = "SELECT id FROM devices WHERE id = $1 FOR NO KEY UPDATE";
    LOCK_USER = "SELECT id FROM users WHERE id = $1 FOR NO KEY UPDATE";
    LOCK_USER_SESSIONS = "SELECT id FROM sessions WHERE device_id IN (SELECT id FROM devices WHERE user_id = $1) \
        ORDER BY id FOR UPDATE";
    LOCK_USER_DEVICES = "SELECT id FROM devices WHERE user_id = $1 ORDER BY id FOR UPDATE";

    LOCK_USER_MAILBOXES = "SELECT device_id FROM mailboxes WHERE device_id IN (SELECT id FROM devices WHERE user_id = $1) \
        ORDER BY device_id FOR UPDATE";

    // Many at once

    SURVEY_OF_MANY = "SELECT place, conn_epoch, revoked, EXISTS (SELECT 1 FROM sessions \
        WHERE sessions.id = session AND sessions.device_id = device AND expires_at > $4), next_seq - 1 \
        FROM UNNEST($1::INT[], $2::UUID[], $3::UUID[]) AS connection (place, device, session) \
        JOIN devices ON devices.id = device JOIN mailboxes ON mailboxes.device_id = device";
}

/// The challenge whose guesses are counted. Parallel ones come one after another.
pub const CHALLENGE_FOR_UPDATE: Pair<&str> = Pair { sqlite: CHALLENGE, postgres: CHALLENGE_LOCKED };
/// Counting an address's challenges and adding one is one step. SQLite's writer is alone anyhow, here and below.
pub const SERIALIZE_EMAIL: Pair = Pair { sqlite: None, postgres: Some(LOCK_EMAIL) };
/// What changes a device's own rows comes one after another.
pub const SERIALIZE_DEVICE: [Pair; 2] =
    [Pair { sqlite: None, postgres: Some(LOCK_OWN_SESSIONS) }, Pair { sqlite: None, postgres: Some(LOCK_OWN_DEVICE) }];
/// What changes several devices of a user comes one after another.
pub const SERIALIZE_USER: [Pair; 3] = [
    Pair { sqlite: None, postgres: Some(LOCK_USER) },
    Pair { sqlite: None, postgres: Some(LOCK_USER_SESSIONS) },
    Pair { sqlite: None, postgres: Some(LOCK_USER_DEVICES) },
];
/// What is under way to a user's mailboxes arrives before they are deleted.
pub const SERIALIZE_MAILBOXES: Pair = Pair { sqlite: None, postgres: Some(LOCK_USER_MAILBOXES) };

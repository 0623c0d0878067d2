-- Hashes in lower-case hexadecimal and keys in base64, as clients see them, instead of bytes; ids and times of creation by
-- default; plain index names. SQLite cannot change a column, so each table is made anew and filled from the old one.
--
-- This needs a connection that does not enforce foreign keys: otherwise dropping a table would delete what refers to it.
-- The setting cannot be changed inside a transaction, so the server opens such a connection for its migrations.

-- SQLite has no base64. Three hexadecimal digits are two of its characters.
CREATE TEMP TABLE base64_pairs (digits TEXT NOT NULL PRIMARY KEY, pair TEXT NOT NULL) WITHOUT ROWID;
WITH RECURSIVE
    numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 4095),
    alphabet (letters) AS (SELECT 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/')
INSERT INTO base64_pairs
SELECT printf('%03X', n), substr(letters, n / 64 + 1, 1) || substr(letters, n % 64 + 1, 1) FROM numbers, alphabet;

-- Every key and signature that was published, with its base64. Bytes that do not fill the last group of three are padded.
CREATE TEMP TABLE base64_texts (bytes BLOB NOT NULL PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
WITH RECURSIVE
    published (bytes) AS (
        SELECT public_key FROM identity_keys UNION SELECT public_key FROM signed_prekeys
        UNION SELECT signature FROM signed_prekeys UNION SELECT public_key FROM one_time_prekeys
    ),
    encoded (bytes, digits, at, text) AS (
        SELECT bytes, hex(bytes) || CASE length(bytes) % 3 WHEN 1 THEN '0' WHEN 2 THEN '00' ELSE '' END, 1, ''
        FROM published
        UNION ALL
        SELECT bytes, encoded.digits, at + 3, text || pair
        FROM encoded JOIN base64_pairs ON base64_pairs.digits = substr(encoded.digits, at, 3)
    )
INSERT INTO base64_texts
SELECT bytes, CASE length(bytes) % 3 WHEN 1 THEN text || '==' WHEN 2 THEN substr(text, 1, length(text) - 1) || '='
    ELSE text END
FROM encoded WHERE at > length(digits);

CREATE TABLE new_users (
    id             BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    email          TEXT      NOT NULL UNIQUE,
    email_verified BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at     TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now'))
);
INSERT INTO new_users (id, email, email_verified, created_at) SELECT id, email, email_verified, created_at FROM users;
DROP TABLE users;
ALTER TABLE new_users RENAME TO users;

CREATE TABLE new_devices (
    id              BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    user_id         BLOB      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    device_name     TEXT,
    revoked         BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at      TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    last_seen       TIMESTAMP,
    registration_id BIGINT    NOT NULL,
    -- Grows with every connection; the newest wins.
    conn_epoch      BIGINT    NOT NULL DEFAULT 0,
    -- Grows with every publish that changed a pool.
    pool_version    BIGINT    NOT NULL DEFAULT 0,
    -- How many low-water levels have been announced; a new pool was never above any: 4.
    one_time_depth  INTEGER   NOT NULL DEFAULT 4,
    pq_depth        INTEGER   NOT NULL DEFAULT 4
);
INSERT INTO new_devices (id, user_id, device_name, revoked, created_at, last_seen, registration_id, conn_epoch,
    pool_version, one_time_depth, pq_depth)
SELECT id, user_id, device_name, revoked, created_at, last_seen, registration_id, conn_epoch, pool_version,
    one_time_depth, pq_depth FROM devices;
DROP TABLE devices;
ALTER TABLE new_devices RENAME TO devices;
CREATE INDEX idx_devices_user_id ON devices (user_id);

CREATE TABLE new_sessions (
    id         BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    user_id    BLOB      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    device_id  BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    token_hash TEXT      NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    -- The session that ends when this one's token is first presented; NULL once it was.
    replaces   BLOB
);
INSERT INTO new_sessions (id, user_id, device_id, token_hash, expires_at, created_at, replaces)
SELECT id, user_id, device_id, lower(hex(token_hash)), expires_at, created_at, replaces FROM sessions;
DROP TABLE sessions;
ALTER TABLE new_sessions RENAME TO sessions;
CREATE INDEX idx_sessions_token_hash ON sessions (token_hash);
CREATE INDEX idx_sessions_device_id ON sessions (device_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE new_email_otps (
    id         BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    email      TEXT      NOT NULL,
    otp_hash   TEXT      NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    attempts   INTEGER   NOT NULL DEFAULT 0 CHECK (attempts <= 5),
    used       BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    -- Keyed hash of the client's network, for the limit per address and network.
    network    BLOB      NOT NULL
);
INSERT INTO new_email_otps (id, email, otp_hash, expires_at, attempts, used, created_at, network)
SELECT id, email, lower(hex(otp_hash)), expires_at, attempts, used, created_at, network FROM email_otps;
DROP TABLE email_otps;
ALTER TABLE new_email_otps RENAME TO email_otps;
CREATE INDEX idx_email_otps_email_created ON email_otps (email, created_at DESC);
CREATE INDEX email_otps_age ON email_otps (created_at);

CREATE TABLE new_identity_keys (
    device_id  BLOB      NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    public_key TEXT      NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    suite      TEXT      NOT NULL
);
INSERT INTO new_identity_keys (device_id, public_key, created_at, suite)
SELECT device_id, text, created_at, suite FROM identity_keys JOIN base64_texts ON bytes = public_key;
DROP TABLE identity_keys;
ALTER TABLE new_identity_keys RENAME TO identity_keys;

CREATE TABLE new_signed_prekeys (
    id         BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    device_id  BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    public_key TEXT      NOT NULL,
    signature  TEXT      NOT NULL,
    created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    expires_at TIMESTAMP NOT NULL,
    key_id     BIGINT    NOT NULL
);
INSERT INTO new_signed_prekeys (id, device_id, public_key, signature, created_at, expires_at, key_id)
SELECT id, device_id, keys.text, signatures.text, created_at, expires_at, key_id FROM signed_prekeys
JOIN base64_texts AS keys ON keys.bytes = public_key JOIN base64_texts AS signatures ON signatures.bytes = signature;
DROP TABLE signed_prekeys;
ALTER TABLE new_signed_prekeys RENAME TO signed_prekeys;
CREATE INDEX idx_signed_prekeys_device ON signed_prekeys (device_id);

-- An issued key's row stays as its tombstone. For 24 hours it is also the claim's memory.
CREATE TABLE new_one_time_prekeys (
    id         BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    device_id  BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    public_key TEXT      NOT NULL,
    used       BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at TIMESTAMP NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%f+00:00', 'now')),
    key_id     BIGINT    NOT NULL,
    claimed_by BLOB,
    claim_id   BLOB,
    claimed_at TIMESTAMP,
    UNIQUE (device_id, key_id)
);
INSERT INTO new_one_time_prekeys (id, device_id, public_key, used, created_at, key_id, claimed_by, claim_id, claimed_at)
SELECT id, device_id, text, used, created_at, key_id, claimed_by, claim_id, claimed_at
FROM one_time_prekeys JOIN base64_texts ON bytes = public_key;
DROP TABLE one_time_prekeys;
ALTER TABLE new_one_time_prekeys RENAME TO one_time_prekeys;
CREATE INDEX idx_ot_prekeys_device_used ON one_time_prekeys (device_id, used);
CREATE INDEX one_time_prekeys_fifo ON one_time_prekeys (device_id, created_at, key_id) WHERE NOT used;
CREATE UNIQUE INDEX one_time_prekeys_claim ON one_time_prekeys (claimed_by, claim_id, device_id) WHERE claim_id IS NOT NULL;
CREATE INDEX one_time_prekeys_claimed_at ON one_time_prekeys (claimed_at) WHERE claim_id IS NOT NULL;

DROP TABLE base64_texts;
DROP TABLE base64_pairs;

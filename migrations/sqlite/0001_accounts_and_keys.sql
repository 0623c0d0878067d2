-- Identifiers are 16-byte BLOBs, times RFC 3339 text in UTC to the microsecond (text order is time order).

CREATE TABLE users (
    id             BLOB      NOT NULL PRIMARY KEY DEFAULT (randomblob(16)),
    email          TEXT      NOT NULL UNIQUE,
    email_verified BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at     TIMESTAMP NOT NULL
);

CREATE TABLE devices (
    id              BLOB      NOT NULL PRIMARY KEY,
    user_id         BLOB      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    device_name     TEXT,
    revoked         BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at      TIMESTAMP NOT NULL,
    last_seen       TIMESTAMP,
    registration_id BIGINT    NOT NULL,
    -- Grows with every connection; the newest wins.
    conn_epoch      BIGINT    NOT NULL DEFAULT 0,
    -- Grows with every publish that changed a pool.
    pool_version    BIGINT    NOT NULL DEFAULT 0,
    -- How many low-water levels the owner has been told of, or was never above: 4 is all of them.
    one_time_depth  INTEGER   NOT NULL DEFAULT 4,
    pq_depth        INTEGER   NOT NULL DEFAULT 4
);
CREATE INDEX devices_user ON devices (user_id);

CREATE TABLE sessions (
    id         BLOB      NOT NULL PRIMARY KEY,
    user_id    BLOB      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    device_id  BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    token_hash BLOB      NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    created_at TIMESTAMP NOT NULL,
    -- The session that ends when this one's token is first presented; NULL once it was.
    replaces   BLOB
);
CREATE INDEX sessions_token ON sessions (token_hash);
CREATE INDEX sessions_device ON sessions (device_id);
CREATE INDEX sessions_expiry ON sessions (expires_at);

CREATE TABLE email_otps (
    id         BLOB      NOT NULL PRIMARY KEY,
    email      TEXT      NOT NULL,
    otp_hash   BLOB      NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    attempts   INTEGER   NOT NULL DEFAULT 0 CHECK (attempts <= 5),
    used       BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at TIMESTAMP NOT NULL,
    -- Keyed hash of the client's network, for the limit per address and network.
    network    BLOB      NOT NULL
);
CREATE INDEX email_otps_email ON email_otps (email, created_at DESC);
CREATE INDEX email_otps_age ON email_otps (created_at);

CREATE TABLE identity_keys (
    device_id  BLOB      NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    public_key BLOB      NOT NULL,
    created_at TIMESTAMP NOT NULL,
    suite      TEXT      NOT NULL
);

CREATE TABLE signed_prekeys (
    id         BLOB      NOT NULL PRIMARY KEY,
    device_id  BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    public_key BLOB      NOT NULL,
    signature  BLOB      NOT NULL,
    created_at TIMESTAMP NOT NULL,
    expires_at TIMESTAMP NOT NULL,
    key_id     BIGINT    NOT NULL
);
CREATE INDEX signed_prekeys_device ON signed_prekeys (device_id);

-- An issued key's row stays as its tombstone. For 24 hours it is also the claim's memory.
CREATE TABLE one_time_prekeys (
    id         BLOB      NOT NULL PRIMARY KEY,
    device_id  BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    public_key BLOB      NOT NULL,
    used       BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at TIMESTAMP NOT NULL,
    key_id     BIGINT    NOT NULL,
    claimed_by BLOB,
    claim_id   BLOB,
    claimed_at TIMESTAMP,
    UNIQUE (device_id, key_id)
);
CREATE INDEX one_time_prekeys_pool ON one_time_prekeys (device_id, used);
CREATE INDEX one_time_prekeys_fifo ON one_time_prekeys (device_id, created_at, key_id) WHERE NOT used;
CREATE UNIQUE INDEX one_time_prekeys_claim ON one_time_prekeys (claimed_by, claim_id, device_id) WHERE claim_id IS NOT NULL;
CREATE INDEX one_time_prekeys_claimed_at ON one_time_prekeys (claimed_at) WHERE claim_id IS NOT NULL;

-- Last-resort keys are never used up; their ids are separate from those of one-time keys.
CREATE TABLE pq_prekeys (
    id          BLOB      NOT NULL PRIMARY KEY,
    device_id   BLOB      NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    last_resort BOOLEAN   NOT NULL,
    key_id      BIGINT    NOT NULL,
    -- NULL once the key was issued more than 24 hours ago.
    public_key  BLOB,
    signature   BLOB,
    used        BOOLEAN   NOT NULL DEFAULT FALSE,
    created_at  TIMESTAMP NOT NULL,
    claimed_by  BLOB,
    claim_id    BLOB,
    claimed_at  TIMESTAMP,
    UNIQUE (device_id, last_resort, key_id)
);
CREATE UNIQUE INDEX pq_prekeys_last_resort ON pq_prekeys (device_id) WHERE last_resort;
CREATE INDEX pq_prekeys_fifo ON pq_prekeys (device_id, created_at, key_id) WHERE NOT used AND NOT last_resort;
CREATE UNIQUE INDEX pq_prekeys_claim ON pq_prekeys (claimed_by, claim_id, device_id) WHERE claim_id IS NOT NULL;
CREATE INDEX pq_prekeys_claimed_at ON pq_prekeys (claimed_at) WHERE claim_id IS NOT NULL;

-- Why a token no longer holds: its hash and the reason, for 30 days. The device is known only while its account exists, so
-- that a later revocation replaces an earlier reason.
CREATE TABLE ended_sessions (
    token_hash TEXT      NOT NULL PRIMARY KEY,
    reason     TEXT      NOT NULL,
    ended_at   TIMESTAMP NOT NULL,
    device_id  BLOB      REFERENCES devices (id) ON DELETE SET NULL
);
CREATE INDEX ended_sessions_device ON ended_sessions (device_id, ended_at);
CREATE INDEX ended_sessions_age ON ended_sessions (ended_at);

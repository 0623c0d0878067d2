-- Ended sessions, for 30 days: the hash of the token and why it is no longer valid. The device is set as long as its user
-- exists, so that a revocation or deletion can replace an earlier reason.
CREATE TABLE ended_sessions (
    token_hash TEXT      NOT NULL PRIMARY KEY,
    reason     TEXT      NOT NULL,
    ended_at   TIMESTAMP NOT NULL,
    device_id  BLOB      REFERENCES devices (id) ON DELETE SET NULL
);
CREATE INDEX ended_sessions_device ON ended_sessions (device_id, ended_at);
CREATE INDEX ended_sessions_age ON ended_sessions (ended_at);

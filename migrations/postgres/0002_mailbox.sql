-- Ciphertext that waits for its device. An envelope stays until its device acks it or its time is up.

CREATE TABLE mailboxes (
    device_id     UUID   NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    -- The number that the next envelope gets. Taken with this row locked, so that their order is the order of commits.
    next_seq      BIGINT NOT NULL DEFAULT 1,
    -- What is stored now: envelopes, and bytes of their content.
    count         BIGINT NOT NULL DEFAULT 0,
    bytes         BIGINT NOT NULL DEFAULT 0,
    -- Envelopes that ever timed out undelivered.
    expired_total BIGINT NOT NULL DEFAULT 0
);
INSERT INTO mailboxes (device_id) SELECT id FROM devices;

-- The sender may be gone by the time that its messages are read, so nothing refers to it.
CREATE TABLE messages (
    device_id     UUID   NOT NULL REFERENCES mailboxes (device_id) ON DELETE CASCADE,
    seq           BIGINT NOT NULL,
    message_id    UUID   NOT NULL,
    sender_user   UUID   NOT NULL,
    sender_device UUID   NOT NULL,
    type          INTEGER NOT NULL,
    content       BYTEA  NOT NULL,
    accepted_at   TIMESTAMPTZ NOT NULL,
    expires_at    TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (device_id, seq)
);
CREATE INDEX messages_sender ON messages (device_id, sender_user);
CREATE INDEX messages_expiry ON messages (expires_at);

-- For 24 hours, what each message id was sent as, so that a repeat stores nothing twice.
CREATE TABLE sends (
    sender_device UUID   NOT NULL,
    message_id    UUID   NOT NULL,
    recipient     UUID   NOT NULL,
    accepted_at   TIMESTAMPTZ NOT NULL,
    -- Each device with the hash of what it was sent and whether that was stored.
    outcome       BYTEA  NOT NULL,
    PRIMARY KEY (sender_device, message_id)
);
CREATE INDEX sends_age ON sends (accepted_at);

-- Ciphertext does not compress, and rows of these tables live briefly.
ALTER TABLE messages ALTER COLUMN content SET STORAGE EXTERNAL;
ALTER TABLE messages SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05);
ALTER TABLE sends SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE mailboxes SET (autovacuum_vacuum_scale_factor = 0.05, fillfactor = 50);

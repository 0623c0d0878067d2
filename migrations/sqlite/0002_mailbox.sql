-- Ciphertext that waits for its device. An envelope stays until its device acks it or its time is up.

CREATE TABLE mailboxes (
    device_id     BLOB   NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
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
    device_id     BLOB   NOT NULL REFERENCES mailboxes (device_id) ON DELETE CASCADE,
    seq           BIGINT NOT NULL,
    message_id    BLOB   NOT NULL,
    sender_user   BLOB   NOT NULL,
    sender_device BLOB   NOT NULL,
    type          INTEGER NOT NULL,
    content       BLOB   NOT NULL,
    accepted_at   TIMESTAMP NOT NULL,
    expires_at    TIMESTAMP NOT NULL,
    PRIMARY KEY (device_id, seq)
);
CREATE INDEX messages_sender ON messages (device_id, sender_user);
CREATE INDEX messages_expiry ON messages (expires_at);

-- For 24 hours, what each message id was sent as, so that a repeat stores nothing twice.
CREATE TABLE sends (
    sender_device BLOB   NOT NULL,
    message_id    BLOB   NOT NULL,
    recipient     BLOB   NOT NULL,
    accepted_at   TIMESTAMP NOT NULL,
    -- Each device with the hash of what it was sent and whether that was stored.
    outcome       BLOB   NOT NULL,
    PRIMARY KEY (sender_device, message_id)
);
CREATE INDEX sends_age ON sends (accepted_at);

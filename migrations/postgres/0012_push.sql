-- Where pushes for a device are sent: at most one target for each device.
CREATE TABLE push_targets (
    device_id        UUID        NOT NULL PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    -- Another one for each registration, so that the answer to an old push does not delete a new target.
    id               UUID        NOT NULL,
    -- webpush, apns or fcm.
    kind             TEXT        NOT NULL,
    -- The endpoint, or the token. A secret.
    address          TEXT        NOT NULL,
    -- Web Push: public key and secret of the subscription.
    p256dh           TEXT,
    auth             TEXT,
    -- APNs.
    topic            TEXT,
    sandbox          BOOLEAN     NOT NULL DEFAULT FALSE,
    registered_at    TIMESTAMPTZ NOT NULL,
    -- Whether the device has confirmed the target.
    active           BOOLEAN     NOT NULL DEFAULT FALSE,
    -- The hash of the nonce that confirms it.
    nonce_hash       BYTEA       NOT NULL,
    nonce_expires_at TIMESTAMPTZ NOT NULL,
    -- Failed pushes since the last one that succeeded.
    failing_since    TIMESTAMPTZ,
    failures         INTEGER     NOT NULL DEFAULT 0,
    -- After a failure: no push before this time.
    not_before       TIMESTAMPTZ
);

ALTER TABLE mailboxes
    -- Whether the device has an active push target.
    ADD COLUMN has_push BOOLEAN NOT NULL DEFAULT FALSE,
    -- The kind of the target that the device confirmed last. A node takes only wake-ups of kinds that it can send.
    ADD COLUMN push_kind TEXT,
    -- When the device is to be woken, if it is.
    ADD COLUMN wake_at  TIMESTAMPTZ,
    -- 0: not woken since the mailbox was empty; 1: woken, and nothing was acked since; 2: woken, and something was.
    ADD COLUMN wake_state INTEGER NOT NULL DEFAULT 0;
CREATE INDEX mailboxes_wake ON mailboxes (push_kind, wake_at) WHERE wake_at IS NOT NULL;

-- Whether the message is worth waking the device for.
ALTER TABLE messages ADD COLUMN urgent BOOLEAN NOT NULL DEFAULT TRUE;
-- Tells without reading them whether all messages of a mailbox are like that.
CREATE INDEX messages_not_urgent ON messages (device_id) WHERE NOT urgent;

-- Who may reach a user: access settings, blocks, and what strangers have used.

ALTER TABLE users
    ADD COLUMN access_key  BYTEA,
    -- What strangers may do: allow, limit or refuse.
    ADD COLUMN strangers   TEXT    NOT NULL DEFAULT 'limit',
    -- Whether the user accepts mail from sealed senders.
    ADD COLUMN sealed      BOOLEAN NOT NULL DEFAULT FALSE,
    -- The number of its rows in blocks.
    ADD COLUMN block_count BIGINT  NOT NULL DEFAULT 0;

-- Users whose messages are dropped. They need not exist.
CREATE TABLE blocks (
    user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    blocked UUID NOT NULL,
    PRIMARY KEY (user_id, blocked)
);

-- Whether the sender was a stranger to the recipient when the message was stored.
ALTER TABLE messages ADD COLUMN from_stranger BOOLEAN NOT NULL DEFAULT FALSE;
-- What is stored now of strangers: envelopes, and bytes of their content.
ALTER TABLE mailboxes
    ADD COLUMN stranger_count BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN stranger_bytes BIGINT NOT NULL DEFAULT 0;
-- Whether a part of the message was dropped because the recipient had blocked the sender.
ALTER TABLE sends ADD COLUMN dropped BOOLEAN NOT NULL DEFAULT FALSE;

-- The newest claims of strangers that took keys of a device. Nothing refers to the device, so that a claim locks no row
-- of another table.
CREATE TABLE stranger_claims (
    device_id UUID        NOT NULL PRIMARY KEY,
    -- Their times in ascending order, each as eight bytes: microseconds since 1970, big-endian.
    taken     BYTEA       NOT NULL,
    last_at   TIMESTAMPTZ NOT NULL
);
CREATE INDEX stranger_claims_age ON stranger_claims (last_at);

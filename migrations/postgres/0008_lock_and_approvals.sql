-- The lock of an account: SHA-256 of the recovery key, in lower-case hexadecimal, and the seconds after which a request is
-- approved unless a device denies it. Both are NULL if the account is not locked.
ALTER TABLE users
    ADD COLUMN recovery_key_hash TEXT,
    ADD COLUMN lock_wait_s       BIGINT;

-- Requests under a lock: at most three of a user are pending, and ten are made in a day. Decided ones stay for seven days.
CREATE TABLE approvals (
    id                UUID        NOT NULL PRIMARY KEY,
    user_id           UUID        NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- 'device' or 'change_email'.
    kind              TEXT        NOT NULL,
    -- 'pending', 'approved' or 'denied'.
    state             TEXT        NOT NULL DEFAULT 'pending',
    -- The challenge whose code made the request. A repeat finds the request by it.
    challenge_id      UUID        NOT NULL UNIQUE,
    device_name       TEXT,
    client_network    TEXT,
    created_at        TIMESTAMPTZ NOT NULL,
    decides_at        TIMESTAMPTZ NOT NULL,
    decided_at        TIMESTAMPTZ,
    -- When the last mail about it was sent; NULL until the first.
    mailed_at         TIMESTAMPTZ,
    -- kind 'device': the device that signs in, if it exists already, and what a new one gets.
    existing_device   UUID,
    registration_id   BIGINT,
    replace_device_id UUID,
    -- kind 'change_email': the new address.
    email             TEXT
);
CREATE INDEX approvals_user ON approvals (user_id, created_at);
CREATE INDEX approvals_pending ON approvals (decides_at) WHERE state = 'pending';
CREATE INDEX approvals_decided ON approvals (decided_at) WHERE decided_at IS NOT NULL;

-- The approval that opened the session; NULL once the session's token was presented.
ALTER TABLE sessions ADD COLUMN approval_id UUID;
CREATE INDEX sessions_approval ON sessions (approval_id) WHERE approval_id IS NOT NULL;

-- Counters of what sending users have in mailboxes, so that a message to a crowded mailbox counts no rows.

-- Only for mailboxes that hold more than one sender may have there, and only for senders that have sent to them since.
CREATE TABLE mailbox_shares (
    device_id   UUID   NOT NULL REFERENCES mailboxes (device_id) ON DELETE CASCADE,
    sender_user UUID   NOT NULL,
    -- Envelopes, and bytes of their content.
    count       BIGINT NOT NULL,
    bytes       BIGINT NOT NULL,
    PRIMARY KEY (device_id, sender_user)
);
ALTER TABLE mailbox_shares SET (autovacuum_vacuum_scale_factor = 0.05, fillfactor = 50);

-- next_seq and count when the mailbox's shares were last correct; NULL if it has none. They differ from the mailbox's if a node of
-- the previous version, which does not maintain the shares, has changed it since.
ALTER TABLE mailboxes
    ADD COLUMN counted_seq   BIGINT,
    ADD COLUMN counted_count BIGINT;

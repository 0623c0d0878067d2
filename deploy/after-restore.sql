-- Run this once on a database restored from a backup, before the first node starts. For SQLite and PostgreSQL.
-- docs/operations.md explains it under "Backup and restore".
BEGIN;

-- Any of these keys may have been issued since the backup, so none may be issued again. Their owners find their pools
-- empty at their next connect, and refill them.
UPDATE one_time_prekeys SET used = TRUE WHERE NOT used;
UPDATE pq_prekeys SET used = TRUE WHERE NOT used AND NOT last_resort;
UPDATE devices SET pool_version = pool_version + 1000000000;

-- Devices identify envelopes by their sequence numbers, so no number used since the backup may be used again.
UPDATE mailboxes SET next_seq = next_seq + 1000000000;

-- Sessions that ended and codes that were used since the backup must not work again.
DELETE FROM sessions;
DELETE FROM email_otps;

COMMIT;

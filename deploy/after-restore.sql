-- To be run once on a database that was restored from a backup, before the first node starts on it. The same for SQLite
-- and PostgreSQL. docs/operations.md says when and why: "Backup and restore".
BEGIN;

-- Which of these keys were handed out since the backup is not known any more, so none may be handed out. Their owners
-- find their pools empty at their next connect and fill them.
UPDATE one_time_prekeys SET used = TRUE WHERE NOT used;
UPDATE pq_prekeys SET used = TRUE WHERE NOT used AND NOT last_resort;
UPDATE devices SET pool_version = pool_version + 1000000000;

-- Devices know envelopes by their numbers: none that was given since the backup may be given again.
UPDATE mailboxes SET next_seq = next_seq + 1000000000;

-- Sessions that were ended since the backup, and codes that were used since, must not work again.
DELETE FROM sessions;
DELETE FROM email_otps;

COMMIT;

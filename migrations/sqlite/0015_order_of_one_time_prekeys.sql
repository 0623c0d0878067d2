-- Claims take the unissued key of a device that has the smallest row number, which the index on (device_id, used) finds. So a
-- claim need not also write an index by time. Row numbers grow in the order of publishing; where they do not follow the
-- times and key ids, as after a key was replaced, the unissued keys of the device get new ones.
UPDATE one_time_prekeys SET rowid = moved.number
FROM (
    SELECT unissued.rowid AS old_number,
        (SELECT MAX(rowid) FROM one_time_prekeys) + ROW_NUMBER() OVER (ORDER BY device_id, created_at, key_id) AS number
    FROM one_time_prekeys AS unissued
    WHERE NOT used AND device_id IN (
        SELECT device_id FROM (
            SELECT device_id, rowid AS number,
                LAG(rowid) OVER (PARTITION BY device_id ORDER BY created_at, key_id) AS previous
            FROM one_time_prekeys WHERE NOT used
        ) WHERE number < previous
    )
) AS moved
WHERE one_time_prekeys.rowid = moved.old_number;
DROP INDEX one_time_prekeys_fifo;

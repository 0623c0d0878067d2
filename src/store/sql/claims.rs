//! Claims of one-time keys. Statements over many claims take rows of claimer, claim id and device. RETURNING has no
//! defined order, so each returned row starts with the three ids of its claim.

use super::{Sql, both, per_dialect, postgres};

/// Issues the oldest unissued keys of a table to many claims at once, one key each.
macro_rules! take_on_postgres {
    ($table:literal, unissued: $unissued:literal, key: $key:literal) => {
        concat!(
            "WITH wanted AS (SELECT claimer, claim, device, \
            ROW_NUMBER() OVER (PARTITION BY device ORDER BY turn) AS place \
            FROM UNNEST($1::UUID[], $2::UUID[], $3::UUID[]) WITH ORDINALITY AS item (claimer, claim, device, turn)), \
            demand AS (SELECT device, COUNT(*) AS keys FROM wanted GROUP BY device), \
            oldest AS (SELECT demand.device, pool.id, \
            ROW_NUMBER() OVER (PARTITION BY demand.device ORDER BY pool.created_at, pool.key_id) AS place \
            FROM demand CROSS JOIN LATERAL (SELECT id, created_at, key_id FROM ",
            $table,
            " WHERE device_id = demand.device AND ",
            $unissued,
            " ORDER BY created_at, key_id LIMIT demand.keys FOR UPDATE SKIP LOCKED) AS pool) UPDATE ",
            $table,
            " SET used = TRUE, claimed_by = wanted.claimer, claim_id = wanted.claim, claimed_at = $4 \
            FROM oldest JOIN wanted ON wanted.device = oldest.device AND wanted.place = oldest.place WHERE ",
            $table,
            ".id = oldest.id RETURNING claimed_by, claim_id, device_id, key_id, ",
            $key
        )
    };
}

/// The same for SQLite. It has no LATERAL, so the needed number of oldest keys of each pool is found by stepping along an
/// index, each key from the one before. `oldest` are those keys: device, number wanted, place, row number and what the next
/// step needs.
macro_rules! take_on_sqlite {
    ($table:literal, oldest: $oldest:literal, key: $key:literal) => {
        concat!(
            "WITH RECURSIVE wanted AS MATERIALIZED (SELECT unhex(value ->> 0) AS claimer, \
            unhex(value ->> 1) AS claim, unhex(value ->> 2) AS device, \
            ROW_NUMBER() OVER (PARTITION BY value ->> 2 ORDER BY key) AS place FROM json_each($1)), \
            demand AS (SELECT device, COUNT(*) AS keys FROM wanted GROUP BY device), ",
            $oldest,
            " UPDATE ",
            $table,
            " SET used = TRUE, claimed_by = wanted.claimer, claim_id = wanted.claim, claimed_at = $2 \
            FROM oldest JOIN wanted ON wanted.device = oldest.device AND wanted.place = oldest.place WHERE ",
            $table,
            ".rowid = oldest.number RETURNING claimed_by, claim_id, device_id, key_id, ",
            $key
        )
    };
}

/// Issues one-time prekeys on SQLite, whose row numbers grow in the order of publishing.
const TAKE_ONE_TIME_ON_SQLITE: &str = take_on_sqlite!(
    "one_time_prekeys",
    oldest: "oldest (device, keys, place, number) AS (SELECT device, keys, 0, 0 FROM demand UNION ALL \
        SELECT device, keys, place + 1, (SELECT pool.rowid FROM one_time_prekeys AS pool \
        WHERE pool.device_id = last.device AND pool.used = FALSE AND pool.rowid > last.number ORDER BY pool.rowid LIMIT 1) \
        FROM oldest AS last WHERE place < keys AND number IS NOT NULL)",
    key: "public_key"
);

/// Issues post-quantum keys on SQLite, of which an index has the order. The `+` removes column affinity; with it, SQLite would
/// use only half of the index.
const TAKE_PQ_ON_SQLITE: &str = take_on_sqlite!(
    "pq_prekeys",
    oldest: "oldest (device, keys, place, number, created_at, key_id) AS (\
        SELECT device, keys, 0, NULL, '', -1 FROM demand UNION ALL \
        SELECT device, keys, place + 1, next.rowid, next.created_at, next.key_id \
        FROM oldest AS last CROSS JOIN pq_prekeys AS next ON next.rowid = (SELECT pool.rowid FROM pq_prekeys AS pool \
        WHERE pool.device_id = last.device AND NOT pool.used AND NOT pool.last_resort \
        AND (pool.created_at, pool.key_id) > (+last.created_at, +last.key_id) \
        ORDER BY pool.created_at, pool.key_id LIMIT 1) WHERE place < keys)",
    key: "public_key, signature"
);

statements! {
    /// The keys that earlier runs of these claims took.
    CLAIMED_ONE_TIME = per_dialect(
        "SELECT claimed_by, claim_id, device_id, key_id, public_key \
        FROM json_each($1) AS wanted CROSS JOIN one_time_prekeys ON claimed_by = unhex(wanted.value ->> 0) \
        AND claim_id = unhex(wanted.value ->> 1) AND device_id = unhex(wanted.value ->> 2)",
        "SELECT claimed_by, claim_id, device_id, key_id, public_key \
        FROM UNNEST($1::UUID[], $2::UUID[], $3::UUID[]) AS wanted (claimer, claim, device) \
        JOIN one_time_prekeys ON claimed_by = wanted.claimer AND claim_id = wanted.claim \
        AND device_id = wanted.device");
    CLAIMED_PQ = per_dialect(
        "SELECT claimed_by, claim_id, device_id, key_id, public_key, signature \
        FROM json_each($1) AS wanted CROSS JOIN pq_prekeys ON claimed_by = unhex(wanted.value ->> 0) \
        AND claim_id = unhex(wanted.value ->> 1) AND device_id = unhex(wanted.value ->> 2)",
        "SELECT claimed_by, claim_id, device_id, key_id, public_key, signature \
        FROM UNNEST($1::UUID[], $2::UUID[], $3::UUID[]) AS wanted (claimer, claim, device) \
        JOIN pq_prekeys ON claimed_by = wanted.claimer AND claim_id = wanted.claim AND device_id = wanted.device");
    CLAIM_ONE_TIME = per_dialect(
        TAKE_ONE_TIME_ON_SQLITE,
        take_on_postgres!("one_time_prekeys", unissued: "NOT used", key: "public_key"));
    CLAIM_PQ = per_dialect(
        TAKE_PQ_ON_SQLITE,
        take_on_postgres!("pq_prekeys", unissued: "NOT used AND NOT last_resort", key: "public_key, signature"));

    // What strangers have taken

    /// Locks the rows of these devices in order of their ids, and reads them. A missing row is inserted, with the time $2.
    LOCK_STRANGER_CLAIMS = per_dialect(
        "INSERT INTO stranger_claims (device_id, taken, last_at) \
        SELECT unhex(value), x'', $2 FROM json_each($1) WHERE TRUE \
        ON CONFLICT (device_id) DO UPDATE SET taken = stranger_claims.taken RETURNING device_id, taken",
        "INSERT INTO stranger_claims (device_id, taken, last_at) \
        SELECT device, ''::BYTEA, $2 FROM UNNEST($1::UUID[]) AS wanted (device) ORDER BY device \
        ON CONFLICT (device_id) DO UPDATE SET taken = stranger_claims.taken RETURNING device_id, taken");
    UPDATE_STRANGER_CLAIMS = per_dialect(
        "UPDATE stranger_claims SET taken = now.taken, last_at = now.last_at \
        FROM (SELECT unhex(value ->> 0) AS device, substr($2, (value ->> 1) + 1, value ->> 2) AS taken, \
        value ->> 3 AS last_at FROM json_each($1)) AS now WHERE device_id = now.device",
        "UPDATE stranger_claims SET taken = now.taken, last_at = now.last_at \
        FROM UNNEST($1::UUID[], $2::BYTEA[], $3::TIMESTAMPTZ[]) AS now (device, taken, last_at) \
        WHERE device_id = now.device");

    // Low-water levels

    /// Those of the given pools that have at most $2 unissued keys, with their counts.
    LOW_ONE_TIME = per_dialect(
        "WITH pools AS MATERIALIZED (SELECT unhex(pool.value) AS device, \
        (SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys \
        WHERE device_id = unhex(pool.value) AND used = FALSE LIMIT $2 + 1)) AS remaining FROM json_each($1) AS pool) \
        SELECT devices.id, remaining, pool_version, one_time_depth FROM pools CROSS JOIN devices \
        ON devices.id = pools.device JOIN identity_keys ON identity_keys.device_id = pools.device \
        WHERE remaining <= $2",
        "SELECT device, remaining, pool_version, one_time_depth FROM (SELECT pool.device, \
        (SELECT COUNT(*) FROM (SELECT 1 FROM one_time_prekeys WHERE device_id = pool.device AND NOT used LIMIT $2 + 1) \
        AS counted) AS remaining FROM UNNEST($1::UUID[]) AS pool (device)) AS pools \
        JOIN devices ON devices.id = device JOIN identity_keys ON identity_keys.device_id = device \
        WHERE remaining <= $2");
    LOW_PQ = per_dialect(
        "WITH pools AS MATERIALIZED (SELECT unhex(pool.value) AS device, \
        (SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys \
        WHERE device_id = unhex(pool.value) AND NOT used AND NOT last_resort LIMIT $2 + 1)) AS remaining \
        FROM json_each($1) AS pool) \
        SELECT devices.id, remaining, pool_version, pq_depth FROM pools CROSS JOIN devices \
        ON devices.id = pools.device JOIN identity_keys ON identity_keys.device_id = pools.device \
        WHERE remaining <= $2 AND suite = 'signal-pqxdh'",
        "SELECT device, remaining, pool_version, pq_depth FROM (SELECT pool.device, \
        (SELECT COUNT(*) FROM (SELECT 1 FROM pq_prekeys WHERE device_id = pool.device AND NOT used AND NOT last_resort \
        LIMIT $2 + 1) AS counted) AS remaining FROM UNNEST($1::UUID[]) AS pool (device)) AS pools \
        JOIN devices ON devices.id = device JOIN identity_keys ON identity_keys.device_id = device \
        WHERE remaining <= $2 AND suite = 'signal-pqxdh'");
    /// Raises the number of announced levels to $2, unless another node has done so or the pool has another version
    /// than $3. The node that gets a row announces the level.
    ANNOUNCE_ONE_TIME = both("UPDATE devices SET one_time_depth = $2 \
        WHERE id = $1 AND one_time_depth < $2 AND pool_version = $3 RETURNING id");
    ANNOUNCE_PQ = both("UPDATE devices SET pq_depth = $2 \
        WHERE id = $1 AND pq_depth < $2 AND pool_version = $3 RETURNING id");

    // Claims that wait for keys which other transactions have locked

    /// Those of the given pools that have an unissued key, locked or not.
    UNISSUED_ONE_TIME = postgres("SELECT pool.device FROM UNNEST($1::UUID[]) AS pool (device) \
        WHERE EXISTS (SELECT 1 FROM one_time_prekeys WHERE device_id = pool.device AND NOT used)");
    UNISSUED_PQ = postgres("SELECT pool.device FROM UNNEST($1::UUID[]) AS pool (device) \
        WHERE EXISTS (SELECT 1 FROM pq_prekeys WHERE device_id = pool.device AND NOT used AND NOT last_resort)");
    /// Waits for the transaction that has locked the oldest key. No row means that it issued this key; there may be
    /// others.
    WAIT_FOR_ONE_TIME = postgres("UPDATE one_time_prekeys \
        SET used = TRUE, claimed_by = $2, claim_id = $3, claimed_at = $4 \
        WHERE id = (SELECT id FROM one_time_prekeys WHERE device_id = $1 AND NOT used \
        ORDER BY created_at, key_id LIMIT 1 FOR UPDATE) \
        RETURNING claimed_by, claim_id, device_id, key_id, public_key");
    WAIT_FOR_PQ = postgres("UPDATE pq_prekeys \
        SET used = TRUE, claimed_by = $2, claim_id = $3, claimed_at = $4 \
        WHERE id = (SELECT id FROM pq_prekeys WHERE device_id = $1 AND NOT used AND NOT last_resort \
        ORDER BY created_at, key_id LIMIT 1 FOR UPDATE) \
        RETURNING claimed_by, claim_id, device_id, key_id, public_key, signature");
}

//! Access settings and blocks.

use super::{Sql, both, per_dialect};

statements! {
    SET_ACCESS = both("UPDATE users SET access_key = $2, strangers = $3, sealed = $4 WHERE id = $1");
    /// The user with address $1, unless it refuses strangers and is not the user $2. A stranger cannot tell one from an
    /// address without a user, not even by the work.
    FIND_USER = both("SELECT id FROM users WHERE email = $1 AND (strangers <> 'refuse' OR id = $2)");

    // Blocks

    /// Changes the number of blocks of the user $1 by $2, unless it would then exceed $3.
    COUNT_BLOCKS = both("UPDATE users SET block_count = block_count + $2 WHERE id = $1 AND block_count + $2 <= $3");
    INSERT_BLOCK = both("INSERT INTO blocks (user_id, blocked) VALUES ($1, $2) ON CONFLICT DO NOTHING");
    DELETE_BLOCK = both("DELETE FROM blocks WHERE user_id = $1 AND blocked = $2");
    BLOCKS = both("SELECT blocked FROM blocks WHERE user_id = $1 ORDER BY blocked");
    /// Those of the given rows of recipient and sender whose recipient has blocked the sender.
    BLOCKS_OF_MANY = per_dialect(
        "SELECT user_id, blocked FROM json_each($1) AS wanted CROSS JOIN blocks \
        ON user_id = unhex(wanted.value ->> 0) AND blocked = unhex(wanted.value ->> 1)",
        "SELECT user_id, blocks.blocked FROM UNNEST($1::UUID[], $2::UUID[]) AS wanted (recipient, sender) \
        JOIN blocks ON user_id = wanted.recipient AND blocks.blocked = wanted.sender");
}

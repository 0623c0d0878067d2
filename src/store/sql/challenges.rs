//! Challenges, the limits on codes, known networks and spent proofs.

use super::{Sql, both, per_dialect};

statements! {
    /// The challenges of a budget after $2: of the addresses that count as $1, and trusted if $3. Rows of nodes of the
    /// previous version name only the address itself.
    CHALLENGES_OF = both("SELECT created_at, network, paid FROM email_otps \
        WHERE (counted_as = $1 OR (counted_as IS NULL AND email = $1)) AND created_at > $2 AND trusted = $3 \
        ORDER BY created_at DESC LIMIT 1000");
    PAID_CODES = both("SELECT COUNT(*) FROM email_otps \
        WHERE counted_as = $1 AND created_at > $2 AND created_at <= $3 AND paid");
    INSERT_CHALLENGE = both("INSERT INTO email_otps \
        (id, email, otp_hash, expires_at, created_at, network, purpose, counted_as, trusted, paid) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");
    /// Reads a challenge before an attempt is counted. On PostgreSQL, parallel attempts wait for each other.
    CHALLENGE_FOR_UPDATE = per_dialect(
        "SELECT used, expires_at, attempts FROM email_otps WHERE id = $1 AND email = $2 AND purpose = $3",
        "SELECT used, expires_at, attempts FROM email_otps WHERE id = $1 AND email = $2 AND purpose = $3 FOR UPDATE");
    COUNT_ATTEMPT = both("UPDATE email_otps SET attempts = attempts + 1 \
        WHERE id = $1 AND NOT used AND expires_at > $2 AND attempts < $3 RETURNING otp_hash");
    WITHDRAW_CHALLENGE = both("DELETE FROM email_otps WHERE id = $1 AND attempts = 0 AND NOT used \
        AND NOT EXISTS (SELECT 1 FROM approvals WHERE challenge_id = $1)");
    USE_CHALLENGE = both("UPDATE email_otps SET used = TRUE WHERE id = $1 AND NOT used");
    /// The code stays usable, and the attempt stays counted.
    RELEASE_CHALLENGE = both("UPDATE email_otps SET used = FALSE WHERE id = $1");
    REFUND_ATTEMPT = both("UPDATE email_otps SET used = FALSE, attempts = attempts - 1 WHERE id = $1");

    SPEND_PROOF = both("INSERT INTO spent_proofs (salt, expires_at) VALUES ($1, $2) ON CONFLICT (salt) DO NOTHING");

    /// Whether the token $1 is valid at $2 and belongs to the user with the address $3.
    TOKEN_OF_ADDRESS = both("SELECT 1 FROM sessions JOIN devices ON devices.id = sessions.device_id \
        JOIN users ON users.id = sessions.user_id \
        WHERE token_hash = $1 AND expires_at > $2 AND NOT revoked AND email = $3");
    /// Whether the user with the address $1 signed in from the network $2 after $3 and not after $4.
    IS_KNOWN_NETWORK = both("SELECT 1 FROM users JOIN known_networks ON user_id = users.id \
        WHERE email = $1 AND network = $2 AND signed_in_at > $3 AND signed_in_at <= $4");
    KNOW_NETWORK = both("INSERT INTO known_networks (user_id, network, signed_in_at) VALUES ($1, $2, $3) \
        ON CONFLICT (user_id, network) DO UPDATE SET signed_in_at = excluded.signed_in_at");
    /// Deletes all but the newest $2 of a user.
    FORGET_OLDER_NETWORKS = both("DELETE FROM known_networks WHERE user_id = $1 AND network NOT IN \
        (SELECT network FROM known_networks WHERE user_id = $1 ORDER BY signed_in_at DESC, network LIMIT $2)");

    /// The newest wrong guesses at the codes of the addresses that count as $1 after $2 and not after $4, at most $3.
    WRONG_GUESSES = both("SELECT guessed_at FROM wrong_guesses WHERE counted_as = $1 AND guessed_at > $2 \
        AND guessed_at <= $4 ORDER BY guessed_at DESC LIMIT $3");
    INSERT_GUESS = both("INSERT INTO wrong_guesses (id, counted_as, guessed_at) VALUES ($1, $2, $3)");
    DELETE_GUESS = both("DELETE FROM wrong_guesses WHERE id = $1");
    RESET_GUESSES = both("DELETE FROM wrong_guesses WHERE counted_as = $1");
    INSERT_NETWORK_GUESS =
        both("INSERT INTO network_guesses (guess_id, network, guessed_at) VALUES ($1, $2, $3)");
    DELETE_NETWORK_GUESS = both("DELETE FROM network_guesses WHERE guess_id = $1");
    /// The wrong guess of a network after $2 before which it made $3 newer ones, not counting those after $4.
    NETWORK_GUESS = both("SELECT guessed_at FROM network_guesses WHERE network = $1 AND guessed_at > $2 \
        AND guessed_at <= $4 ORDER BY guessed_at DESC LIMIT 1 OFFSET $3");
    /// The addresses of at most $3 users whose address without its tag is $1: first $2 and $1 themselves. The expression is that
    /// of the index `users_untagged`.
    OWNERS_OF = per_dialect(
        "SELECT email FROM users WHERE CASE WHEN instr(email, '+') = 0 THEN email \
        ELSE substr(email, 1, instr(email, '+') - 1) || substr(email, instr(email, '@')) END = $1 \
        ORDER BY email <> $2, email <> $1, created_at LIMIT $3",
        "SELECT email FROM users WHERE CASE WHEN strpos(email, '+') = 0 THEN email \
        ELSE substr(email, 1, strpos(email, '+') - 1) || substr(email, strpos(email, '@')) END = $1 \
        ORDER BY email <> $2, email <> $1, created_at LIMIT $3");
    /// Notes that the owner of the addresses that count as $1 is mailed at $2, unless one was after $3 and not after $4.
    NOTE_NOTICE = both("INSERT INTO guess_notices (counted_as, mailed_at) VALUES ($1, $2) \
        ON CONFLICT (counted_as) DO UPDATE SET mailed_at = $2 \
        WHERE guess_notices.mailed_at <= $3 OR guess_notices.mailed_at > $4");
    RESET_NOTICE = both("DELETE FROM guess_notices WHERE counted_as = $1");
}

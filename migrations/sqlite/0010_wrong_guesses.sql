-- Wrong guesses of the last 30 days since the owner signed in. A guess stands here while its code is compared, too.
CREATE TABLE wrong_guesses (
    id         BLOB      NOT NULL PRIMARY KEY,
    -- The address without its tag.
    counted_as TEXT      NOT NULL,
    guessed_at TIMESTAMP NOT NULL
);
CREATE INDEX wrong_guesses_address ON wrong_guesses (counted_as, guessed_at DESC);
CREATE INDEX wrong_guesses_age ON wrong_guesses (guessed_at);

-- The networks of wrong guesses that no proof of work paid for, as keyed hashes: one row for each width, for a day.
CREATE TABLE network_guesses (
    guess_id   BLOB      NOT NULL,
    network    BLOB      NOT NULL,
    guessed_at TIMESTAMP NOT NULL,
    PRIMARY KEY (guess_id, network)
);
CREATE INDEX network_guesses_network ON network_guesses (network, guessed_at DESC);
CREATE INDEX network_guesses_age ON network_guesses (guessed_at);

-- When the owner of an address was last mailed about wrong guesses.
CREATE TABLE guess_notices (
    counted_as TEXT      NOT NULL PRIMARY KEY,
    mailed_at  TIMESTAMP NOT NULL
);
CREATE INDEX guess_notices_age ON guess_notices (mailed_at);

-- The address without its tag, by which limits count; NULL in rows of nodes of the previous version.
ALTER TABLE email_otps ADD COLUMN counted_as TEXT;
-- Whether the request counts towards the budget of the owner: it came from a known network or showed a valid token.
ALTER TABLE email_otps ADD COLUMN trusted BOOLEAN NOT NULL DEFAULT FALSE;
-- Whether a proof of work let the request exceed a limit.
ALTER TABLE email_otps ADD COLUMN paid BOOLEAN NOT NULL DEFAULT FALSE;
CREATE INDEX email_otps_counted_as ON email_otps (counted_as, created_at DESC);

-- Salts of proofs of work that were spent. A proof is accepted for five minutes.
CREATE TABLE spent_proofs (
    salt       BLOB      NOT NULL PRIMARY KEY,
    expires_at TIMESTAMP NOT NULL
);
CREATE INDEX spent_proofs_expiry ON spent_proofs (expires_at);

-- The networks from which a user signed in during the last 90 days, as keyed hashes that also cover the address.
CREATE TABLE known_networks (
    user_id      BLOB      NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    network      BLOB      NOT NULL,
    signed_in_at TIMESTAMP NOT NULL,
    PRIMARY KEY (user_id, network)
);
CREATE INDEX known_networks_age ON known_networks (signed_in_at);

-- The network of the request, as in known_networks.
ALTER TABLE approvals ADD COLUMN known_network BLOB;

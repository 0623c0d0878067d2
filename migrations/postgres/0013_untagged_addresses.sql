-- Finds the users whose address differs from another one by the tag at most. Limits on codes and guesses count by the address
-- without its tag.
CREATE INDEX users_untagged ON users ((CASE WHEN strpos(email, '+') = 0 THEN email
    ELSE substr(email, 1, strpos(email, '+') - 1) || substr(email, strpos(email, '@')) END));

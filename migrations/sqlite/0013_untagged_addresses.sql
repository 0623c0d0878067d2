-- Finds the users whose address differs from another one by the tag at most. Limits on codes and guesses count by the address
-- without its tag.
CREATE INDEX users_untagged ON users ((CASE WHEN instr(email, '+') = 0 THEN email
    ELSE substr(email, 1, instr(email, '+') - 1) || substr(email, instr(email, '@')) END));

-- Envelopes are stored only in mailboxes that their transaction has locked, so the foreign key was checked in vain, with a query for
-- each envelope. What it also did, deleting the envelopes of deleted mailboxes, a trigger does for all mailboxes of a statement.
ALTER TABLE messages DROP CONSTRAINT messages_device_id_fkey;

CREATE FUNCTION delete_messages_of_mailboxes() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM messages USING deleted WHERE messages.device_id = deleted.device_id;
    RETURN NULL;
END
$$;

CREATE TRIGGER mailboxes_deleted AFTER DELETE ON mailboxes REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION delete_messages_of_mailboxes();

-- Hashes in lower-case hexadecimal and keys in base64, as clients see them, instead of bytes; ids and times of creation by
-- default; plain index names. Not rolling: stop all nodes first. Each ALTER TABLE rewrites its table once.
--
-- ENCODE(…, 'base64') breaks lines after 76 characters; TRANSLATE takes the line feeds out again.

ALTER TABLE users
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER TABLE devices
    ALTER COLUMN id SET DEFAULT uuid_generate_v4(),
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER TABLE sessions
    ALTER COLUMN id SET DEFAULT uuid_generate_v4(),
    ALTER COLUMN token_hash TYPE TEXT USING ENCODE(token_hash, 'hex'),
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER TABLE email_otps
    ALTER COLUMN id SET DEFAULT uuid_generate_v4(),
    ALTER COLUMN otp_hash TYPE TEXT USING ENCODE(otp_hash, 'hex'),
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER TABLE identity_keys
    ALTER COLUMN public_key TYPE TEXT USING TRANSLATE(ENCODE(public_key, 'base64'), E'\n', ''),
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER TABLE signed_prekeys
    ALTER COLUMN id SET DEFAULT uuid_generate_v4(),
    ALTER COLUMN public_key TYPE TEXT USING TRANSLATE(ENCODE(public_key, 'base64'), E'\n', ''),
    ALTER COLUMN signature TYPE TEXT USING TRANSLATE(ENCODE(signature, 'base64'), E'\n', ''),
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER TABLE one_time_prekeys
    ALTER COLUMN id SET DEFAULT uuid_generate_v4(),
    ALTER COLUMN public_key TYPE TEXT USING TRANSLATE(ENCODE(public_key, 'base64'), E'\n', ''),
    ALTER COLUMN created_at SET DEFAULT NOW();

ALTER INDEX devices_user RENAME TO idx_devices_user_id;
ALTER INDEX sessions_token RENAME TO idx_sessions_token_hash;
ALTER INDEX sessions_device RENAME TO idx_sessions_device_id;
ALTER INDEX email_otps_email RENAME TO idx_email_otps_email_created;
ALTER INDEX signed_prekeys_device RENAME TO idx_signed_prekeys_device;
ALTER INDEX one_time_prekeys_pool RENAME TO idx_ot_prekeys_device_used;

-- What a code is for. Nodes of the previous version write codes that sign in.
ALTER TABLE email_otps ADD COLUMN purpose TEXT NOT NULL DEFAULT 'sign_in';

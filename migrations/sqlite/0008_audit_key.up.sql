-- What was done with one key, newest first: the first question when a key has leaked. Changes at the command line
-- and by the gateway itself are made with none.
CREATE INDEX audit_key ON audit (key_id, id) WHERE key_id IS NOT NULL;

DROP TRIGGER modules_changed ON modules;
DROP TRIGGER api_keys_changed ON api_keys;
DROP TRIGGER users_changed ON users;
DROP FUNCTION wasmwiz_changed();
ALTER TABLE modules DROP COLUMN stopped_at;
DROP TABLE key_rotations;
ALTER TABLE api_keys DROP COLUMN scopes;
ALTER TABLE users DROP COLUMN tier;

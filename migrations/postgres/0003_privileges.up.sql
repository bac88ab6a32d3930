-- What a user and a key may do, which key took over from which, which modules are stopped, and word of each
-- such change to the gateways, which remember what they read.

-- The tier of the user's new keys.
ALTER TABLE users
    ADD COLUMN tier TEXT NOT NULL DEFAULT 'free' CHECK (tier IN ('free', 'basic', 'pro', 'enterprise'));

UPDATE users u
SET tier = (SELECT k.tier
            FROM api_keys k
            WHERE k.user_id = u.id AND k.revoked_at IS NULL
            ORDER BY CASE k.tier WHEN 'enterprise' THEN 3 WHEN 'pro' THEN 2 WHEN 'basic' THEN 1 ELSE 0 END DESC
            LIMIT 1)
WHERE EXISTS (SELECT 1 FROM api_keys k WHERE k.user_id = u.id AND k.revoked_at IS NULL);

-- The sum of: 1 execute, 2 modules:read, 4 modules:write, 8 keys, 16 admin. A key made by a program that does not
-- know scopes gets all but the last.
ALTER TABLE api_keys ADD COLUMN scopes SMALLINT NOT NULL DEFAULT 15 CHECK (scopes BETWEEN 1 AND 31);

-- Keys that are there keep what their user's role lets them do.
UPDATE api_keys SET scopes = 31 WHERE user_id IN (SELECT id FROM users WHERE role <> 'user');

-- A key that another one takes the place of; the primary key lets that happen once.
CREATE TABLE key_rotations (
    old_id     UUID        NOT NULL PRIMARY KEY REFERENCES api_keys (id) ON DELETE RESTRICT,
    new_id     UUID        NOT NULL REFERENCES api_keys (id) ON DELETE RESTRICT,
    rotated_at TIMESTAMPTZ NOT NULL
);

-- Which key a key took over from; asked by the foreign key too.
CREATE UNIQUE INDEX key_rotations_new_id ON key_rotations (new_id);

-- Since when nobody may run a module.
ALTER TABLE modules ADD COLUMN stopped_at TIMESTAMPTZ;

-- Gateways listen on this channel. The payload is a kind and an id. It is sent when the transaction commits.
CREATE FUNCTION wasmwiz_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('wasmwiz_changes', TG_ARGV[0] || ' ' || COALESCE(NEW.id, OLD.id));
    RETURN NULL;
END
$$;

CREATE TRIGGER users_changed
    AFTER DELETE OR UPDATE OF role, tier, disabled_at ON users
    FOR EACH ROW EXECUTE FUNCTION wasmwiz_changed('user');

-- Not at a use: that would send one for every key every few seconds.
CREATE TRIGGER api_keys_changed
    AFTER DELETE OR UPDATE OF tier, scopes, expires_at, revoked_at ON api_keys
    FOR EACH ROW EXECUTE FUNCTION wasmwiz_changed('key');

CREATE TRIGGER modules_changed
    AFTER DELETE OR UPDATE OF stopped_at ON modules
    FOR EACH ROW EXECUTE FUNCTION wasmwiz_changed('module');

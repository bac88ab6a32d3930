-- What a user and a key may do, which key took over from which, which modules are stopped, and word of each
-- such change to the gateways, which remember what they read.

-- The tier of the user's new keys.
ALTER TABLE users
    ADD COLUMN tier TEXT NOT NULL DEFAULT 'free' CHECK (tier IN ('free', 'basic', 'pro', 'enterprise'));

UPDATE users
SET tier = (SELECT k.tier
            FROM api_keys k
            WHERE k.user_id = users.id AND k.revoked_at IS NULL
            ORDER BY CASE k.tier WHEN 'enterprise' THEN 3 WHEN 'pro' THEN 2 WHEN 'basic' THEN 1 ELSE 0 END DESC
            LIMIT 1)
WHERE EXISTS (SELECT 1 FROM api_keys k WHERE k.user_id = users.id AND k.revoked_at IS NULL);

-- The sum of: 1 execute, 2 modules:read, 4 modules:write, 8 keys, 16 admin. A key made by a program that does not
-- know scopes gets all but the last.
ALTER TABLE api_keys ADD COLUMN scopes INTEGER NOT NULL DEFAULT 15 CHECK (scopes BETWEEN 1 AND 31);

-- Keys that are there keep what their user's role lets them do.
UPDATE api_keys SET scopes = 31 WHERE user_id IN (SELECT id FROM users WHERE role <> 'user');

-- A key that another one takes the place of; the primary key lets that happen once.
CREATE TABLE key_rotations (
    old_id     BLOB    NOT NULL PRIMARY KEY REFERENCES api_keys (id) ON DELETE RESTRICT,
    new_id     BLOB    NOT NULL REFERENCES api_keys (id) ON DELETE RESTRICT,
    rotated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Which key a key took over from; asked by the foreign key too.
CREATE UNIQUE INDEX key_rotations_new_id ON key_rotations (new_id);

-- Since when nobody may run a module.
ALTER TABLE modules ADD COLUMN stopped_at INTEGER;

-- The last changes, in order. A gateway looks here when another program has written to the file. Only the newest are
-- kept; who missed some, which the gap in the numbers tells, forgets all it remembers. The newest row always stays, so
-- that no number is given twice.
CREATE TABLE changes (
    number INTEGER NOT NULL PRIMARY KEY,
    kind   TEXT    NOT NULL CHECK (kind IN ('user', 'key', 'module')),
    id     BLOB    NOT NULL CHECK (length(id) = 16)
) STRICT;

CREATE TRIGGER changes_trimmed AFTER INSERT ON changes BEGIN
    DELETE FROM changes WHERE number <= NEW.number - 1000;
END;

CREATE TRIGGER users_changed AFTER UPDATE OF role, tier, disabled_at ON users BEGIN
    INSERT INTO changes (kind, id) VALUES ('user', NEW.id);
END;

CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN
    INSERT INTO changes (kind, id) VALUES ('user', OLD.id);
END;

-- Not at a use: that would be one for every key every few seconds.
CREATE TRIGGER api_keys_changed AFTER UPDATE OF tier, scopes, expires_at, revoked_at ON api_keys BEGIN
    INSERT INTO changes (kind, id) VALUES ('key', NEW.id);
END;

CREATE TRIGGER api_keys_deleted AFTER DELETE ON api_keys BEGIN
    INSERT INTO changes (kind, id) VALUES ('key', OLD.id);
END;

CREATE TRIGGER modules_changed AFTER UPDATE OF stopped_at ON modules BEGIN
    INSERT INTO changes (kind, id) VALUES ('module', NEW.id);
END;

CREATE TRIGGER modules_deleted AFTER DELETE ON modules BEGIN
    INSERT INTO changes (kind, id) VALUES ('module', OLD.id);
END;

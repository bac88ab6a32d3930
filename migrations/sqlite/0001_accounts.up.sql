-- Users and their API keys. The same tables, in PostgreSQL's types, are in ../postgres/.
--
-- Ids are the 16 bytes of a UUID. Times are microseconds since 1970-01-01 UTC; to read one:
-- datetime(created_at / 1e6, 'unixepoch'). Booleans are 0 and 1.

CREATE TABLE users (
    id          BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    email       TEXT    NOT NULL CHECK (length(CAST(email AS BLOB)) BETWEEN 3 AND 254),
    -- The email in lower case as the program writes it: lower() depends on database and locale.
    email_key   TEXT    NOT NULL,
    role        TEXT    NOT NULL CHECK (role IN ('user', 'support', 'admin')),
    created_at  INTEGER NOT NULL,
    disabled_at INTEGER
) STRICT, WITHOUT ROWID;

-- Decides which of two concurrent sign-ups wins, and finds a user by email.
CREATE UNIQUE INDEX users_email_key ON users (email_key);

CREATE TABLE api_keys (
    id           BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    user_id      BLOB    NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    name         TEXT    NOT NULL CHECK (length(CAST(name AS BLOB)) <= 255),
    prefix       TEXT    NOT NULL CHECK (length(CAST(prefix AS BLOB)) <= 32),
    -- HMAC-SHA-256 of the key; the key itself is stored nowhere.
    hash         BLOB    NOT NULL CHECK (length(hash) = 32),
    tier         TEXT    NOT NULL CHECK (tier IN ('free', 'basic', 'pro', 'enterprise')),
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;

-- The look-up of authentication: one probe, however many keys there are.
CREATE UNIQUE INDEX api_keys_hash ON api_keys (hash);

-- A user's keys, newest first (ids are UUIDv7, so they sort by time).
CREATE INDEX api_keys_user_id ON api_keys (user_id, id);

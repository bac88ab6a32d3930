-- Users and their API keys. The same tables, in SQLite's types, are in ../sqlite/.

CREATE TABLE users (
    id          UUID        NOT NULL PRIMARY KEY,
    email       TEXT        NOT NULL CHECK (octet_length(email) BETWEEN 3 AND 254),
    -- The email in lower case as the program writes it: lower() depends on database and locale.
    email_key   TEXT        NOT NULL COLLATE "C",
    role        TEXT        NOT NULL CHECK (role IN ('user', 'support', 'admin')),
    created_at  TIMESTAMPTZ NOT NULL,
    disabled_at TIMESTAMPTZ
);

-- Decides which of two concurrent sign-ups wins, and finds a user by email.
CREATE UNIQUE INDEX users_email_key ON users (email_key);

CREATE TABLE api_keys (
    id           UUID        NOT NULL PRIMARY KEY,
    user_id      UUID        NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    name         TEXT        NOT NULL CHECK (octet_length(name) <= 255),
    prefix       TEXT        NOT NULL CHECK (octet_length(prefix) <= 32),
    -- HMAC-SHA-256 of the key; the key itself is stored nowhere.
    hash         BYTEA       NOT NULL CHECK (octet_length(hash) = 32),
    tier         TEXT        NOT NULL CHECK (tier IN ('free', 'basic', 'pro', 'enterprise')),
    created_at   TIMESTAMPTZ NOT NULL,
    expires_at   TIMESTAMPTZ,
    revoked_at   TIMESTAMPTZ,
    -- In no index, so that noting a use stays a heap-only update.
    last_used_at TIMESTAMPTZ
);

-- The look-up of authentication: one probe, however many keys there are.
CREATE UNIQUE INDEX api_keys_hash ON api_keys (hash);

-- A user's keys, newest first (ids are UUIDv7, so they sort by time).
CREATE INDEX api_keys_user_id ON api_keys (user_id, id);

-- Families of refresh tokens. The same table, in PostgreSQL's types, is in ../postgres/.

-- A family begins when a key asks for tokens, and each refresh replaces its one refresh token. Tokens
-- that were replaced need no rows: they prove by themselves that they were issued (see
-- src/auth/tokens/refresh.rs), so that one that is not the current one is known to be used again.
CREATE TABLE token_families (
    id         BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    -- Tokens die with the key they were got with.
    key_id     BLOB    NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    -- HMAC-SHA-256 of the current refresh token; the token itself is stored nowhere.
    hash       BLOB    NOT NULL CHECK (length(hash) = 32),
    -- What the tokens may do, where the key may: as of api_keys.
    scopes     INTEGER NOT NULL CHECK (scopes BETWEEN 1 AND 31),
    created_at INTEGER NOT NULL,
    rotated_at INTEGER NOT NULL,
    -- When the current refresh token ends, and when the whole family does.
    expires_at INTEGER NOT NULL,
    ends_at    INTEGER NOT NULL CHECK (ends_at >= expires_at),
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

-- A key's families, oldest first (ids are UUIDv7, so they sort by time): the oldest of too many go, and
-- so do all of a key that is deleted.
CREATE INDEX token_families_key_id ON token_families (key_id, id);

-- What was revoked of late, asked for every second; partial, because most families are not.
CREATE INDEX token_families_revoked_at ON token_families (revoked_at) WHERE revoked_at IS NOT NULL;

-- What has ended, for the clean-up.
CREATE INDEX token_families_expires_at ON token_families (expires_at);

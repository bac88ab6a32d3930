-- Families of refresh tokens. The same table, in SQLite's types, is in ../sqlite/.

-- A family begins when a key asks for tokens, and each refresh replaces its one refresh token. Tokens
-- that were replaced need no rows: they prove by themselves that they were issued (see
-- src/auth/tokens/refresh.rs), so that one that is not the current one is known to be used again.
CREATE TABLE token_families (
    id         UUID        NOT NULL PRIMARY KEY,
    -- Tokens die with the key they were got with.
    key_id     UUID        NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    -- HMAC-SHA-256 of the current refresh token; the token itself is stored nowhere.
    hash       BYTEA       NOT NULL CHECK (octet_length(hash) = 32),
    -- What the tokens may do, where the key may: as of api_keys.
    scopes     SMALLINT    NOT NULL CHECK (scopes BETWEEN 1 AND 31),
    created_at TIMESTAMPTZ NOT NULL,
    rotated_at TIMESTAMPTZ NOT NULL,
    -- When the current refresh token ends, and when the whole family does.
    expires_at TIMESTAMPTZ NOT NULL,
    ends_at    TIMESTAMPTZ NOT NULL CHECK (ends_at >= expires_at),
    revoked_at TIMESTAMPTZ
);

-- A key's families, oldest first (ids are UUIDv7, so they sort by time): the oldest of too many go, and
-- so do all of a key that is deleted.
CREATE INDEX token_families_key_id ON token_families (key_id, id);

-- What was revoked of late, asked for every second; partial, because most families are not.
CREATE INDEX token_families_revoked_at ON token_families (revoked_at) WHERE revoked_at IS NOT NULL;

-- What has ended, for the clean-up.
CREATE INDEX token_families_expires_at ON token_families (expires_at);

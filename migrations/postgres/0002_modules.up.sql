-- Modules: a row per upload, one blob per SHA-256 however many owners it has.

CREATE TABLE module_blobs (
    -- SHA-256 of the bytes.
    hash       BYTEA       NOT NULL PRIMARY KEY CHECK (octet_length(hash) = 32),
    wasm       BYTEA       NOT NULL,
    size_bytes BIGINT      NOT NULL CHECK (size_bytes = octet_length(wasm)),
    created_at TIMESTAMPTZ NOT NULL
);

-- A module is read whole and compiled: compressing it in the database would only cost time.
ALTER TABLE module_blobs ALTER COLUMN wasm SET STORAGE EXTERNAL;

-- A name an owner uses. It counts the versions, so that a number is not given twice while any
-- version of the name is left.
CREATE TABLE module_names (
    owner_id     UUID   NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    name         TEXT   NOT NULL COLLATE "C" CHECK (octet_length(name) BETWEEN 1 AND 255),
    last_version BIGINT NOT NULL CHECK (last_version >= 1),
    PRIMARY KEY (owner_id, name)
);

CREATE TABLE modules (
    id               UUID        NOT NULL PRIMARY KEY,
    owner_id         UUID        NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    name             TEXT        NOT NULL COLLATE "C",
    version          BIGINT      NOT NULL CHECK (version >= 1),
    description      TEXT        NOT NULL CHECK (octet_length(description) <= 65536),
    hash             BYTEA       NOT NULL REFERENCES module_blobs (hash) ON DELETE RESTRICT,
    size_bytes       BIGINT      NOT NULL CHECK (size_bytes >= 0),
    is_public        BOOLEAN     NOT NULL,
    uploaded_at      TIMESTAMPTZ NOT NULL,
    execution_count  BIGINT      NOT NULL DEFAULT 0 CHECK (execution_count >= 0),
    last_executed_at TIMESTAMPTZ,
    FOREIGN KEY (owner_id, name) REFERENCES module_names (owner_id, name) ON DELETE RESTRICT
);

-- One row per version; also answers whether a name has any version left.
CREATE UNIQUE INDEX modules_version ON modules (owner_id, name, version);

-- An owner's modules, newest first (ids are UUIDv7, so they sort by time), page by page.
CREATE INDEX modules_owner_id ON modules (owner_id, id);

-- Everyone's public modules; partial, because most modules are private.
CREATE INDEX modules_public ON modules (id) WHERE is_public;

-- Whether a blob is still used, asked at every delete (by us and by the foreign key).
CREATE INDEX modules_hash ON modules (hash);

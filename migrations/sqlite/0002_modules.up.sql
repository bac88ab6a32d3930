-- Modules: a row per upload, one blob per SHA-256 however many owners it has.

-- Not WITHOUT ROWID: the blobs are large, and such a table keeps them inside its key tree.
CREATE TABLE module_blobs (
    -- SHA-256 of the bytes.
    hash       BLOB    NOT NULL PRIMARY KEY CHECK (length(hash) = 32),
    wasm       BLOB    NOT NULL,
    size_bytes INTEGER NOT NULL CHECK (size_bytes = length(wasm)),
    created_at INTEGER NOT NULL
) STRICT;

-- A name an owner uses. It counts the versions, so that a number is not given twice while any
-- version of the name is left.
CREATE TABLE module_names (
    owner_id     BLOB    NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    name         TEXT    NOT NULL CHECK (length(CAST(name AS BLOB)) BETWEEN 1 AND 255),
    last_version INTEGER NOT NULL CHECK (last_version >= 1),
    PRIMARY KEY (owner_id, name)
) STRICT, WITHOUT ROWID;

-- Not WITHOUT ROWID: a description may be 64 KiB.
CREATE TABLE modules (
    id               BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    owner_id         BLOB    NOT NULL REFERENCES users (id) ON DELETE RESTRICT,
    name             TEXT    NOT NULL,
    version          INTEGER NOT NULL CHECK (version >= 1),
    description      TEXT    NOT NULL CHECK (length(CAST(description AS BLOB)) <= 65536),
    hash             BLOB    NOT NULL REFERENCES module_blobs (hash) ON DELETE RESTRICT,
    size_bytes       INTEGER NOT NULL CHECK (size_bytes >= 0),
    is_public        INTEGER NOT NULL CHECK (is_public IN (0, 1)),
    uploaded_at      INTEGER NOT NULL,
    execution_count  INTEGER NOT NULL DEFAULT 0 CHECK (execution_count >= 0),
    last_executed_at INTEGER,
    FOREIGN KEY (owner_id, name) REFERENCES module_names (owner_id, name) ON DELETE RESTRICT
) STRICT;

-- One row per version; also answers whether a name has any version left.
CREATE UNIQUE INDEX modules_version ON modules (owner_id, name, version);

-- An owner's modules, newest first (ids are UUIDv7, so they sort by time), page by page.
CREATE INDEX modules_owner_id ON modules (owner_id, id);

-- Everyone's public modules; partial, because most modules are private.
CREATE INDEX modules_public ON modules (id) WHERE is_public;

-- Whether a blob is still used, asked at every delete (by us and by the foreign key).
CREATE INDEX modules_hash ON modules (hash);

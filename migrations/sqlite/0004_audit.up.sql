-- Who changed what: a row per change, written in the transaction that makes the change.

CREATE TABLE audit (
    -- UUIDv7, so in the order of time.
    id         BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    at         INTEGER NOT NULL,
    actor      TEXT    NOT NULL CHECK (actor IN ('user', 'operator', 'system')),
    -- No foreign keys from here: what was done stays told when who did it, or what it was done to, is gone.
    user_id    BLOB    CHECK (length(user_id) = 16),
    key_id     BLOB    CHECK (length(key_id) = 16),
    -- The operator's name on the machine whose command line was used.
    operator   TEXT    CHECK (length(CAST(operator AS BLOB)) <= 255),
    address    TEXT    CHECK (length(CAST(address AS BLOB)) <= 64),
    request_id TEXT    CHECK (length(CAST(request_id AS BLOB)) <= 255),
    action     TEXT    NOT NULL CHECK (action GLOB '[a-z]*.[a-z]*'),
    subject_id BLOB    CHECK (length(subject_id) = 16),
    -- What the change touched, as it was and as it is; never a secret.
    before     TEXT    CHECK (before IS NULL OR json_valid(before)),
    after      TEXT    CHECK (after IS NULL OR json_valid(after))
) STRICT;

-- What happened to one user, key or module, newest first.
CREATE INDEX audit_subject ON audit (subject_id, id);

-- What one user did, newest first.
CREATE INDEX audit_user ON audit (user_id, id);

-- Rows are added and never changed or taken away.
CREATE TRIGGER audit_never_changes BEFORE UPDATE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit table is append-only');
END;

CREATE TRIGGER audit_never_shrinks BEFORE DELETE ON audit BEGIN
    SELECT RAISE(ABORT, 'the audit table is append-only');
END;

-- REPLACE deletes without the trigger above.
CREATE TRIGGER audit_never_replaces BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id) BEGIN
    SELECT RAISE(ABORT, 'the audit table is append-only');
END;

-- The modules that nobody may run, which every gateway remembers; partial, because hardly any are.
CREATE INDEX modules_stopped ON modules (id) WHERE stopped_at IS NOT NULL;

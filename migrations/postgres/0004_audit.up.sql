-- Who changed what: a row per change, written in the transaction that makes the change.

CREATE TABLE audit (
    -- UUIDv7, so in the order of time.
    id         UUID        NOT NULL PRIMARY KEY,
    at         TIMESTAMPTZ NOT NULL,
    actor      TEXT        NOT NULL CHECK (actor IN ('user', 'operator', 'system')),
    -- No foreign keys from here: what was done stays told when who did it, or what it was done to, is gone.
    user_id    UUID,
    key_id     UUID,
    -- The operator's name on the machine whose command line was used.
    operator   TEXT        CHECK (octet_length(operator) <= 255),
    address    TEXT        CHECK (octet_length(address) <= 64),
    request_id TEXT        CHECK (octet_length(request_id) <= 255),
    action     TEXT        NOT NULL CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),
    subject_id UUID,
    -- What the change touched, as it was and as it is; never a secret.
    before     JSONB,
    after      JSONB
);

-- What happened to one user, key or module, newest first.
CREATE INDEX audit_subject ON audit (subject_id, id);

-- What one user did, newest first.
CREATE INDEX audit_user ON audit (user_id, id);

-- Rows are added and never changed or taken away. The service's own role should not have the right to either (see
-- docs/DATABASE.md); this holds whatever its rights are.
CREATE FUNCTION wasmwiz_audit_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit table is append-only';
END
$$;

CREATE TRIGGER audit_append_only
    BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION wasmwiz_audit_is_append_only();

-- The modules that nobody may run, which every gateway remembers; partial, because hardly any are.
CREATE INDEX modules_stopped ON modules (id) WHERE stopped_at IS NOT NULL;

-- What executions used. The same tables, in SQLite's types, are in ../sqlite/.
--
-- No foreign keys: a record outlives the key, user and module it speaks of, and comes from a journal that
-- must always be taken, however late.

CREATE TABLE usage (
    -- UUIDv7, made when the execution ended, so that rows lie in the order of time: retention deletes from
    -- one end, and what was delivered twice is known by it.
    id                UUID        NOT NULL PRIMARY KEY,
    at                TIMESTAMPTZ NOT NULL,
    -- Without both, the caller was anonymous.
    user_id           UUID,
    key_id            UUID,
    -- SHA-256; without it the request brought no module that could be compiled.
    module            BYTEA       CHECK (octet_length(module) = 32),
    module_id         UUID,
    -- The route's name; without it the execution came through the API.
    route             TEXT,
    status            TEXT        NOT NULL CHECK (status IN ('success', 'execution_error',
        'time_limit_exceeded', 'memory_limit_exceeded', 'output_limit_exceeded', 'validation_error',
        'rejected', 'cancelled')),
    wall_us           BIGINT      NOT NULL CHECK (wall_us >= 0),
    cpu_us            BIGINT      NOT NULL CHECK (cpu_us >= 0),
    memory_peak_bytes BIGINT      NOT NULL CHECK (memory_peak_bytes >= 0),
    bytes_in          BIGINT      NOT NULL CHECK (bytes_in >= 0),
    bytes_out         BIGINT      NOT NULL CHECK (bytes_out >= 0),
    request_id        TEXT        NOT NULL
);

-- A user's executions, newest first; partial, because anonymous ones are nobody's.
CREATE INDEX usage_user_id ON usage (user_id, id) WHERE user_id IS NOT NULL;

-- Sums by day, kept by the transaction that writes the rows, so that both always agree. The nil UUID and
-- the empty module stand for none: parts of a primary key can't be null.
CREATE TABLE usage_daily (
    user_id           UUID   NOT NULL,
    -- Of UTC.
    day               DATE   NOT NULL,
    key_id            UUID   NOT NULL,
    module            BYTEA  NOT NULL CHECK (octet_length(module) IN (0, 32)),
    status            TEXT   NOT NULL,
    executions        BIGINT NOT NULL CHECK (executions >= 0),
    wall_us           BIGINT NOT NULL CHECK (wall_us >= 0),
    cpu_us            BIGINT NOT NULL CHECK (cpu_us >= 0),
    -- The largest of any.
    memory_peak_bytes BIGINT NOT NULL CHECK (memory_peak_bytes >= 0),
    bytes_in          BIGINT NOT NULL CHECK (bytes_in >= 0),
    bytes_out         BIGINT NOT NULL CHECK (bytes_out >= 0),
    -- In this order, because a user asks for a range of days.
    PRIMARY KEY (user_id, day, key_id, module, status)
);

-- Everybody's days, for operators and for retention.
CREATE INDEX usage_daily_day ON usage_daily (day);

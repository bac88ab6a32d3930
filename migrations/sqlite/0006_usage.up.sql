-- What executions used. The same tables, in PostgreSQL's types, are in ../postgres/.
--
-- No foreign keys: a record outlives the key, user and module it speaks of, and comes from a journal that
-- must always be taken, however late.

CREATE TABLE usage (
    -- UUIDv7, made when the execution ended, so that rows lie in the order of time: retention deletes from
    -- one end, and what was delivered twice is known by it.
    id                BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    at                INTEGER NOT NULL,
    -- Without both, the caller was anonymous.
    user_id           BLOB    CHECK (length(user_id) = 16),
    key_id            BLOB    CHECK (length(key_id) = 16),
    -- SHA-256; without it the request brought no module that could be compiled.
    module            BLOB    CHECK (length(module) = 32),
    module_id         BLOB    CHECK (length(module_id) = 16),
    -- The route's name; without it the execution came through the API.
    route             TEXT,
    status            TEXT    NOT NULL CHECK (status IN ('success', 'execution_error',
        'time_limit_exceeded', 'memory_limit_exceeded', 'output_limit_exceeded', 'validation_error',
        'rejected', 'cancelled')),
    wall_us           INTEGER NOT NULL CHECK (wall_us >= 0),
    cpu_us            INTEGER NOT NULL CHECK (cpu_us >= 0),
    memory_peak_bytes INTEGER NOT NULL CHECK (memory_peak_bytes >= 0),
    bytes_in          INTEGER NOT NULL CHECK (bytes_in >= 0),
    bytes_out         INTEGER NOT NULL CHECK (bytes_out >= 0),
    request_id        TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- A user's executions, newest first; partial, because anonymous ones are nobody's.
CREATE INDEX usage_user_id ON usage (user_id, id) WHERE user_id IS NOT NULL;

-- Sums by day, kept by the transaction that writes the rows, so that both always agree. The nil UUID and
-- the empty module stand for none, as in PostgreSQL, where parts of a primary key can't be null.
CREATE TABLE usage_daily (
    user_id           BLOB    NOT NULL CHECK (length(user_id) = 16),
    -- Of UTC, as 2026-01-31.
    day               TEXT    NOT NULL CHECK (length(day) = 10),
    key_id            BLOB    NOT NULL CHECK (length(key_id) = 16),
    module            BLOB    NOT NULL CHECK (length(module) IN (0, 32)),
    status            TEXT    NOT NULL,
    executions        INTEGER NOT NULL CHECK (executions >= 0),
    wall_us           INTEGER NOT NULL CHECK (wall_us >= 0),
    cpu_us            INTEGER NOT NULL CHECK (cpu_us >= 0),
    -- The largest of any.
    memory_peak_bytes INTEGER NOT NULL CHECK (memory_peak_bytes >= 0),
    bytes_in          INTEGER NOT NULL CHECK (bytes_in >= 0),
    bytes_out         INTEGER NOT NULL CHECK (bytes_out >= 0),
    -- In this order, because a user asks for a range of days.
    PRIMARY KEY (user_id, day, key_id, module, status)
) STRICT, WITHOUT ROWID;

-- Everybody's days, for operators and for retention.
CREATE INDEX usage_daily_day ON usage_daily (day);

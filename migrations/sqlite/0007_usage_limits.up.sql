-- Executions that end at the limit of their stack or tables have statuses of their own.
--
-- A program from before this version can't read a status that it does not know. So `status` keeps saying
-- what it does know, execution_error, and what is exact stands beside it, where it does not look.

ALTER TABLE usage ADD COLUMN exact_status TEXT
    CHECK (exact_status IN ('stack_limit_exceeded', 'table_limit_exceeded'));

-- The sums by day of executions that have an exact status, which is the `status` here. They are in no row of
-- usage_daily: its primary key has the status in it, which the statements of programs from before name.
CREATE TABLE usage_daily_exact (
    user_id           BLOB    NOT NULL CHECK (length(user_id) = 16),
    -- Of UTC, as 2026-01-31.
    day               TEXT    NOT NULL CHECK (length(day) = 10),
    key_id            BLOB    NOT NULL CHECK (length(key_id) = 16),
    module            BLOB    NOT NULL CHECK (length(module) IN (0, 32)),
    status            TEXT    NOT NULL CHECK (status IN ('stack_limit_exceeded', 'table_limit_exceeded')),
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
CREATE INDEX usage_daily_exact_day ON usage_daily_exact (day);

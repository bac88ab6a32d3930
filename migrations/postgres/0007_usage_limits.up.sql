-- Executions that end at the limit of their stack or tables have statuses of their own.
--
-- A program from before this version can't read a status that it does not know. So `status` keeps saying
-- what it does know, execution_error, and what is exact stands beside it, where it does not look.

ALTER TABLE usage ADD COLUMN exact_status TEXT;

-- Not valid only says that no row was looked at: none of them has one yet, and there may be millions.
ALTER TABLE usage ADD CONSTRAINT usage_exact_status_check
    CHECK (exact_status IN ('stack_limit_exceeded', 'table_limit_exceeded')) NOT VALID;

-- The sums by day of executions that have an exact status, which is the `status` here. They are in no row of
-- usage_daily: its primary key has the status in it, which the statements of programs from before name.
CREATE TABLE usage_daily_exact (
    user_id           UUID   NOT NULL,
    -- Of UTC.
    day               DATE   NOT NULL,
    key_id            UUID   NOT NULL,
    module            BYTEA  NOT NULL CHECK (octet_length(module) IN (0, 32)),
    status            TEXT   NOT NULL CHECK (status IN ('stack_limit_exceeded', 'table_limit_exceeded')),
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
CREATE INDEX usage_daily_exact_day ON usage_daily_exact (day);

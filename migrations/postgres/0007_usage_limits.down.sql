-- What ended at its stack or tables is an execution_error again, and is summed with the others.
INSERT INTO usage_daily AS d (user_id, day, key_id, module, status, executions, wall_us, cpu_us,
    memory_peak_bytes, bytes_in, bytes_out)
SELECT user_id, day, key_id, module, 'execution_error', SUM(executions), SUM(wall_us), SUM(cpu_us),
    MAX(memory_peak_bytes), SUM(bytes_in), SUM(bytes_out)
FROM usage_daily_exact
WHERE TRUE
GROUP BY user_id, day, key_id, module
ON CONFLICT (user_id, day, key_id, module, status) DO UPDATE SET
    executions = d.executions + excluded.executions,
    wall_us = d.wall_us + excluded.wall_us,
    cpu_us = d.cpu_us + excluded.cpu_us,
    memory_peak_bytes = GREATEST(d.memory_peak_bytes, excluded.memory_peak_bytes),
    bytes_in = d.bytes_in + excluded.bytes_in,
    bytes_out = d.bytes_out + excluded.bytes_out;

DROP TABLE usage_daily_exact;
ALTER TABLE usage DROP COLUMN exact_status;

DROP INDEX modules_stopped;
DROP TABLE audit;
DROP FUNCTION wasmwiz_audit_is_append_only();

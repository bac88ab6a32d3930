DROP INDEX audit_key;

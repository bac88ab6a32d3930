-- The same check of a status in other words: for a list of more than two values SQLite makes a table of them for each
-- row, which took longer than all else about the row. Nothing that is stored changes, so the text of the constraint is
-- changed where it stands instead of writing a large table anew: https://sqlite.org/lang_altertable.html section 7.

PRAGMA writable_schema = ON;

UPDATE sqlite_schema SET sql = replace(sql,
    'status IN (''success'', ''execution_error'',
        ''time_limit_exceeded'', ''memory_limit_exceeded'', ''output_limit_exceeded'', ''validation_error'',
        ''rejected'', ''cancelled'')',
    'status = ''success'' OR status = ''execution_error''
        OR status = ''time_limit_exceeded'' OR status = ''memory_limit_exceeded''
        OR status = ''output_limit_exceeded'' OR status = ''validation_error''
        OR status = ''rejected'' OR status = ''cancelled''')
    WHERE type = 'table' AND name = 'usage';

-- Any change of the schema tells the connections that are open to read it again.
CREATE TABLE wasm_wizard_schema_changed (unused INTEGER);
DROP TABLE wasm_wizard_schema_changed;

PRAGMA writable_schema = RESET;

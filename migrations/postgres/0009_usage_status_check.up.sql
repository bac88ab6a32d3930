-- In SQLite this version changes how a status is checked. Here the check is a fast one.
SELECT 1;

DROP INDEX modules_stopped;
DROP TABLE audit;

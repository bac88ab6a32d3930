#!/bin/sh
# Makes the database and the roles, on the first start of a new PostgreSQL: the image runs what it finds in
# /docker-entrypoint-initdb.d. Passwords are read from files by psql itself, so they stand in no command line and no log.
set -eu

case "${1:-}" in
  -h | --help)
    echo "Usage: conf/postgres/roles.sh (with PGHOST, PGPORT, POSTGRES_USER of a superuser, and SECRETS_DIR)"
    exit 0
    ;;
esac

secrets=${SECRETS_DIR:-/run/secrets}
for name in database_owner_password database_password postgres_exporter_password; do
  [ -s "$secrets/$name" ] || { echo "roles.sh: $secrets/$name is missing or empty" >&2; exit 1; }
done

psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\set owner_password \`cat '$secrets/database_owner_password'\`
\set database_password \`cat '$secrets/database_password'\`
\set exporter_password \`cat '$secrets/postgres_exporter_password'\`
-- Who migrates: everything in the one database, nothing elsewhere.
SELECT 'CREATE ROLE wasm_wizard_owner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE'
 WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'wasm_wizard_owner') \gexec
ALTER ROLE wasm_wizard_owner PASSWORD :'owner_password';
-- What the gateway may do: what \`wasm-wizard migrate --service-role wasm_wizard\` gives it, which is neither to change the
-- schema nor the audit.
SELECT 'CREATE ROLE wasm_wizard LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE'
 WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'wasm_wizard') \gexec
ALTER ROLE wasm_wizard PASSWORD :'database_password';
SELECT 'CREATE DATABASE wasm_wizard OWNER wasm_wizard_owner'
 WHERE NOT EXISTS (SELECT 1 FROM pg_database WHERE datname = 'wasm_wizard') \gexec
REVOKE ALL ON DATABASE wasm_wizard FROM PUBLIC;
GRANT CONNECT ON DATABASE wasm_wizard TO wasm_wizard;
-- What the exporter may do: read statistics.
SELECT 'CREATE ROLE monitoring LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE IN ROLE pg_monitor'
 WHERE NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'monitoring') \gexec
ALTER ROLE monitoring PASSWORD :'exporter_password';
GRANT CONNECT ON DATABASE wasm_wizard TO monitoring;
SQL

# Base backups come over the network, from where the file that initdb made lets nobody replicate. Read at the next start, which
# the image does when this has ended.
access=${PGDATA:-}/pg_hba.conf
if [ -f "$access" ] && ! grep -q '^host replication postgres ' "$access"; then
  echo 'host replication postgres all scram-sha-256' >> "$access"
fi

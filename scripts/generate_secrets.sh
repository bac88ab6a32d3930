#!/usr/bin/env bash
# Makes the secrets that a production start needs, one file each, readable by their owner alone.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/generate_secrets.sh [--to DIRECTORY] [--compose]

Makes what is missing in DIRECTORY (secrets/ by default, mode 0700), each file with mode 0600. What is there
stays as it is: a new salt would void every API key. No secret is printed.

  api_salt, jwt_secret, artifact_key     of the gateway: API_SALT_FILE, JWT_SECRET_FILE, ARTIFACT_KEY_FILE
  database_password, database_url        of the gateway's own role, and the URL with it
  database_owner_password, database_owner_url   of the role that owns the tables, for migrations
  postgres_password                      of PostgreSQL's superuser
  postgres_exporter_password             of the role that reads statistics
  redis_password, redis_url, redis_exporter_passwords
  grafana_password                       of Grafana's admin
  backup_key                             under which backups are encrypted: keep a copy of it elsewhere
  backup_database_url                    the superuser's, for backups
  alert_webhook_url                      empty: write the address of your chat's webhook into it

  --compose   as root: gives each file to the user whose container reads it (docker-compose.production.yml)
TXT
}

to=secrets
compose=no
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --to) to=${2:?--to needs a directory}; shift 2 ;;
    --compose) compose=yes; shift ;;
    *) usage >&2; exit 2 ;;
  esac
done
if [ "$compose" = yes ] && [ "$(id -u)" -ne 0 ]; then
  echo "generate_secrets.sh: --compose gives files to other users: run it as root" >&2
  exit 1
fi
command -v openssl >/dev/null || { echo "generate_secrets.sh: openssl is missing: apt-get install openssl" >&2; exit 1; }

umask 077
mkdir -p "$to"
chmod 0700 "$to"

# Takes the secret from standard input, so that it stands in no argument. The link fails where the file
# is there already, also when two of us run.
keep() {
  local part
  part=$(mktemp "$to/.$1.XXXXXX")
  cat >"$part"
  if [ -e "$to/$1" ]; then
    rm -f "$part"
  elif ln "$part" "$to/$1"; then
    echo "made $to/$1"
    rm -f "$part"
  else
    rm -f "$part"
  fi
}
random() { openssl rand -hex 32 | tr -d '\n'; }

for name in api_salt jwt_secret artifact_key database_owner_password database_password postgres_password postgres_exporter_password \
  redis_password grafana_password backup_key; do
  random | keep "$name"
done
# printf and $(<…) are the shell's own: nothing of this is an argument of a process.
printf 'postgres://wasm_wizard:%s@postgres:5432/wasm_wizard' "$(<"$to/database_password")" | keep database_url
printf 'postgres://wasm_wizard_owner:%s@postgres:5432/wasm_wizard' "$(<"$to/database_owner_password")" | keep database_owner_url
printf 'postgres://postgres:%s@postgres:5432/wasm_wizard' "$(<"$to/postgres_password")" | keep backup_database_url
printf 'redis://:%s@redis:6379/0' "$(<"$to/redis_password")" | keep redis_url
printf '{"redis://redis:6379":"%s"}' "$(<"$to/redis_password")" | keep redis_exporter_passwords
printf '' | keep alert_webhook_url

# Also of files that came from elsewhere.
find "$to" -maxdepth 1 -type f -exec chmod 0600 {} +
if [ "$compose" = yes ]; then
  give() { local owner=$1; shift; for name in "$@"; do chown "$owner" "$to/$name"; done; }
  give 65532:65532 database_url database_owner_url api_salt jwt_secret artifact_key redis_url
  give 999:999 postgres_password database_owner_password database_password postgres_exporter_password redis_password redis_exporter_passwords \
    backup_key backup_database_url
  give 472:472 grafana_password
  give 65534:65534 alert_webhook_url
fi
echo "generate_secrets.sh: all secrets are in $to, with mode 0600"

#!/usr/bin/env bash
# Not a program: what backup.sh, restore.sh and collect-logs.sh share to find the database and reach it. A password goes
# from a file or the environment into the environment of PostgreSQL's own programs, never into an argument.

die() { echo "${0##*/}: $*" >&2; exit 1; }
say() { echo "${0##*/}: $*"; }
need() { command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"; }

# The value of NAME, or of the file that NAME_FILE names; empty where there is neither.
secret() {
  local file_name="$1_FILE"
  if [ -n "${!1:-}" ]; then
    printf '%s' "${!1}"
  elif [ -n "${!file_name:-}" ]; then
    [ -r "${!file_name}" ] || die "$file_name names ${!file_name}, which can't be read"
    printf '%s' "$(<"${!file_name}")"
  fi
}

# A value of the configuration file: `config_value FILE database url`. Enough for plain values in a mapping.
config_value() {
  [ -f "$1" ] || return 0
  awk -v part="$2:" -v key="$3:" '
    /^[^ #]/ { inside = ($1 == part) }
    inside && $1 == key { sub(/^[^:]*:[ ]*/, ""); sub(/[ ]+#.*$/, ""); gsub(/^["'\'']|["'\'']$/, ""); print; exit }
  ' "$1"
}

# The URL of the database, of the first that is set: BACKUP_DATABASE_URL, DATABASE_URL (each also as _FILE), the
# configuration file, the gateway's default.
database_url() {
  local url
  url=$(secret BACKUP_DATABASE_URL)
  [ -n "$url" ] || url=$(secret DATABASE_URL)
  [ -n "$url" ] || url=$(config_value "${1:-}" database url)
  printf '%s' "${url:-sqlite://data/wasm-wizard.db}"
}

decoded() { local text=${1//+/%2B}; printf '%b' "${text//%/\\x}"; }

# Sets what PostgreSQL's programs go by (PGHOST and the like) from a URL.
use_postgres() {
  local rest=${1#*://} query='' authority name pair
  case "$rest" in *\?*) query=${rest#*\?}; rest=${rest%%\?*} ;; esac
  authority=${rest%%/*}
  case "$rest" in */*) name=${rest#*/} ;; *) name='' ;; esac
  if [[ "$authority" == *@* ]]; then
    local who=${authority%@*}
    authority=${authority##*@}
    PGUSER=$(decoded "${who%%:*}")
    export PGUSER
    if [[ "$who" == *:* ]]; then
      PGPASSWORD=$(decoded "${who#*:}")
      export PGPASSWORD
    fi
  fi
  if [[ "$authority" == \[*\]* ]]; then
    PGHOST=${authority#\[}
    PGHOST=${PGHOST%%\]*}
    authority=${authority##*\]}
  else
    PGHOST=$(decoded "${authority%%:*}")
  fi
  case "$authority" in *:*) PGPORT=${authority##*:}; export PGPORT ;; esac
  [ -n "$PGHOST" ] || unset PGHOST
  [ -z "${PGHOST:-}" ] || export PGHOST
  PGDATABASE=$(decoded "${name:-${PGUSER:-postgres}}")
  export PGDATABASE PGAPPNAME=wasm-wizard-scripts PGCONNECT_TIMEOUT="${PGCONNECT_TIMEOUT:-10}"
  local IFS='&'
  for pair in $query; do
    case "$pair" in
      sslmode=*) export PGSSLMODE="${pair#*=}" ;;
      sslrootcert=*) PGSSLROOTCERT=$(decoded "${pair#*=}"); export PGSSLROOTCERT ;;
      host=*) PGHOST=$(decoded "${pair#*=}"); export PGHOST ;;
      port=*) export PGPORT="${pair#*=}" ;;
      user=*) PGUSER=$(decoded "${pair#*=}"); export PGUSER ;;
      password=*) PGPASSWORD=$(decoded "${pair#*=}"); export PGPASSWORD ;;
    esac
  done
}

# The file of an SQLite URL.
sqlite_file() {
  local path=${1#sqlite:}
  path=${path#//}
  decoded "${path%%\?*}"
}

# Runs SQL in a database and prints what comes, unaligned.
sql() { psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --dbname "$1" --command "$2"; }

literal() { printf "'%s'" "${1//\'/\'\'}"; }
quoted() { printf '"%s"' "${1//\"/\"\"}"; }
has_role() { [ "$(sql postgres "SELECT COUNT(*) FROM pg_roles WHERE rolname = $(literal "$1")")" = 1 ]; }
owner_of() { sql postgres "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $(literal "$1")"; }
# The roles that may connect to a database and are not its owner, one a line; PUBLIC is all of them.
connecting_to() {
  sql postgres "SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END
    FROM pg_database d, aclexplode(COALESCE(d.datacl, acldefault('d', d.datdba))) a
    WHERE d.datname = $(literal "$1") AND a.privilege_type = 'CONNECT' AND a.grantee <> d.datdba ORDER BY 1"
}

# How many rows there are of what must not be lost, on one line. `postgres DATABASE` or `sqlite FILE`.
counts() {
  local query='SELECT (SELECT COUNT(*) FROM users) || chr || (SELECT COUNT(*) FROM api_keys) || chr || (SELECT COUNT(*) FROM modules) || chr || (SELECT COUNT(*) FROM module_blobs)'
  query=${query//chr/"' '"}
  case "$1" in
    postgres) sql "$2" "$query" ;;
    sqlite) sqlite3 -batch "$2" "$query" ;;
  esac
}

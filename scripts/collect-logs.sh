#!/usr/bin/env bash
# Gathers what somebody needs who is to find out what is wrong, in one file, and no secret.
set -euo pipefail
# shellcheck source=scripts/database.sh
source "$(dirname "${BASH_SOURCE[0]}")/database.sh"

usage() {
  cat <<'TXT'
Usage: scripts/collect-logs.sh [--to FILE] [--config FILE] [--admin URL] [--log FILE]... [--unit NAME] [--compose FILE]
                               [--secrets DIRECTORY] [--lines N] [--program FILE]

Writes FILE (wasm-wizard-diagnostics-TIME.tar.gz), mode 0600: versions, the effective configuration, health, metrics, the
last N lines (20000) of the log, and the state of the machine. The log comes from --log FILE, from journald (--unit, wasm-wizard
by default, where there is one), or from Compose (--compose docker-compose.production.yml).

Redacted from all of it: the content of the secrets this script can find (variables and …_FILE as backup.sh has them, the files of
--secrets, data/api_salt), API keys, bearer and JSON web tokens, passwords in URLs and settings, private keys.
Clients' addresses and paths stay in: look through it before you pass it on.
TXT
}

to="wasm-wizard-diagnostics-$(date -u +%Y%m%dT%H%M%SZ).tar.gz"
config='' admin=http://127.0.0.1:9091 logs=() unit=wasm-wizard compose='' secrets=secrets lines=20000 program=wasm-wizard
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --to) to=${2:?--to needs a file}; shift 2 ;;
    --config) config=${2:?--config needs a file}; shift 2 ;;
    --admin) admin=${2:?--admin needs a URL}; admin=${admin%/}; shift 2 ;;
    --log) logs+=("${2:?--log needs a file}"); shift 2 ;;
    --unit) unit=${2:?--unit needs a name}; shift 2 ;;
    --compose) compose=${2:?--compose needs a file}; shift 2 ;;
    --secrets) secrets=${2:?--secrets needs a directory}; shift 2 ;;
    --lines) lines=${2:?--lines needs a number}; shift 2 ;;
    --program) program=${2:?--program needs a file}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done
[[ "$lines" =~ ^[1-9][0-9]*$ ]] || die "--lines: $lines is not a number"

umask 077
work=$(mktemp -d "${TMPDIR:-/tmp}/collect.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
name=wasm-wizard-diagnostics
mkdir "$work/raw" "$work/$name"

# Every secret that can be found, one a line; too short ones would blot out half of the text.
{
  for variable in API_SALT JWT_SECRET ARTIFACT_KEY DATABASE_URL REDIS_URL BACKUP_DATABASE_URL API_KEY; do
    # A file that can't be read has no secret that we could show.
    (secret "$variable" 2>/dev/null) || true
    echo
  done
  for file in data/api_salt data/jwt_secret "$secrets"/* "${BACKUP_KEY_FILE:-}"; do
    if [ -f "$file" ] && [ -r "$file" ] && [ "$(wc -c <"$file")" -le 4096 ]; then cat "$file"; echo; fi
  done
} | awk 'length($0) >= 8' | sort -u >"$work/secrets"

# Replaces first what is known, then whatever looks like a secret.
redact() {
  awk -v list="$work/secrets" '
    BEGIN { while ((getline line < list) > 0) known[++count] = line }
    {
      for (i = 1; i <= count; i++) {
        done = ""; rest = $0
        while ((at = index(rest, known[i])) > 0) {
          done = done substr(rest, 1, at - 1) "[redacted]"
          rest = substr(rest, at + length(known[i]))
        }
        $0 = done rest
      }
      if ($0 ~ /-----BEGIN [A-Z ]*PRIVATE KEY-----/) { print "[redacted private key]"; inside = 1 }
      if (!inside) print
      if ($0 ~ /-----END [A-Z ]*PRIVATE KEY-----/) inside = 0
    }' |
    sed -E \
      -e 's/((authorization|cookie)[[:space:]]*:[[:space:]]*)[^"[:space:]][^"]*/\1[redacted]/gI' \
      -e 's/ww_[A-Za-z0-9_-]{8,}/ww_[redacted]/g' \
      -e 's/eyJ[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*){0,2}/[redacted token]/g' \
      -e 's#(://[^/:@ "]*):[^@/ "]+@#\1:[redacted]@#g' \
      -e 's/([Bb]earer +)[A-Za-z0-9._~+\/=-]+/\1[redacted]/g' \
      -e 's/((password|passwd|secret|salt|token|api[_-]?key|artifact[_-]?key|x-api-key|authorization|cookie)["'\'']?[]]?[[:space:]]*[:=][[:space:]]*)("[^"]*"|'\''[^'\'']*'\''|[^[:space:],;}]+)/\1[redacted]/gI'
}
# A command's output, as one file; what fails says so there.
gather() { # FILE COMMAND…
  local file=$1
  shift
  { "$@" 2>&1 || echo "(${1##*/} exited with $?)"; } | redact >"$work/$name/$file"
}

machine() {
  date -u +%Y-%m-%dT%H:%M:%SZ
  uname -srm
  uptime
  nproc
  free -m
  df -hP
  ulimit -a
  sed -n 1,5p /proc/pressure/cpu /proc/pressure/memory /proc/pressure/io 2>/dev/null || true
}
# The names alone: values may be secrets that nobody here knows.
variables() { env -0 | tr '\n' ' ' | tr '\0' '\n' | cut -d= -f1 | sort; }
processes() { ps -C wasm-wizard,postgres,redis-server -o pid,ppid,user,etimes,rss,pcpu,nlwp,stat,comm; }
journal() {
  if [ ${#logs[@]} -gt 0 ]; then
    local log
    for log in "${logs[@]}"; do
      echo "== $log"
      tail -n "$lines" "$log" || true
    done
  elif [ -n "$compose" ]; then
    docker compose -f "$compose" logs --no-color --tail "$lines"
  elif command -v journalctl >/dev/null; then
    journalctl --unit "$unit" --lines "$lines" --no-pager --output short-iso
  else
    echo '(no log: give --log, --unit or --compose)'
  fi
}
configuration() {
  if command -v "$program" >/dev/null; then
    "$program" --version || true
    if [ -n "$config" ]; then "$program" check --print --config "$config"; else "$program" check --print; fi
  elif [ -n "$config" ]; then
    cat "$config"
  fi
}
ask() { curl --silent --show-error --max-time 10 "$admin$1"; }

gather machine.txt machine
gather variables.txt variables
gather processes.txt processes
gather configuration.txt configuration
gather health.json ask /health
gather metrics.txt ask /metrics
gather log.txt journal
gather files.txt ls -lR --time-style=long-iso data

tar -C "$work" -czf "$work/archive" "$name"
mv "$work/archive" "$to"
chmod 0600 "$to"
say "wrote $to; look through it before you pass it on"

#!/usr/bin/env bash
# Holds a running gateway against its own description: schemathesis makes requests from /api/openapi.json, good ones and bad
# ones, and every answer must be one that is described.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/check_api.sh [--seed N] [--examples N] [--seconds N]

Starts the gateway of target/debug (built before: cargo build) with SQLite, in a directory of its own and on free ports, and
runs schemathesis against it over HTTPS with an admin's key. Exits 0 if every answer was one that the description has.

  --seed N      the seed of what is sent (1); another one sends something else, and a failure names its own
  --examples N  cases of each operation that are random (20), besides all those at the bounds of what is described
  --seconds N   the longest that the whole may take (240)

Needs python3 with venv; schemathesis comes from scripts/requirements.txt. Honours CARGO_TARGET_DIR.
TXT
}

seed=1 examples=20 seconds=240
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) usage; exit 0 ;;
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --examples) examples=${2:?--examples needs a number}; shift 2 ;;
    --seconds) seconds=${2:?--seconds needs a number}; shift 2 ;;
    *) usage >&2; exit 2 ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
tools=$(scripts/tools.sh)
program=${CARGO_TARGET_DIR:-target}/debug/wasm-wizard
[ -x "$program" ] || { echo "scripts/check_api.sh: there is no $program; run: cargo build" >&2; exit 1; }
program=$(cd "$(dirname "$program")" && pwd)/wasm-wizard

umask 077
dir=$(mktemp -d "${TMPDIR:-/tmp}/check-api.XXXXXX")
gateway=''
cleanup() {
  if [ -n "$gateway" ]; then
    kill "$gateway" 2>/dev/null || true
    wait "$gateway" 2>/dev/null || true
  fi
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=https://localhost:$port
cat >"$dir/config.yaml" <<YAML
server:
  https: [{ address: "127.0.0.1:$port", certificates: [{ cert: server.crt, key: server.key, development: true }] }]
  http: []
  admin: null
  upgrade_socket: null
# What is allowed everywhere else would be refused here after the first minute.
auth: { failures_per_minute: 1000000, sign_up: true }
# A random module may loop: none is waited for.
sandbox: { execution_timeout: 500ms }
tiers: { enterprise: { execution_timeout: 500ms } }
logging: { level: warn, access: false }
YAML
(cd "$dir" && exec "$program" serve --config config.yaml >out 2>log) &
gateway=$!
for _ in $(seq 600); do
  curl --silent --fail --output /dev/null --cacert "$dir/server.crt" "$url/health/ready" 2>/dev/null && break
  kill -0 "$gateway" 2>/dev/null || { cat "$dir/log" >&2; exit 1; }
  sleep 0.1
done

# schemathesis reads the key from the environment: it stands on no command line, and in no output.
API_KEY=$(grep -o 'ww_[A-Za-z0-9_-]\{43\}' "$dir/out" | head -n 1)
export API_KEY
# What it must not take from itself: this key and its user.
ids() {
  printf 'header = "Authorization: Bearer %s"\n' "$API_KEY" |
    curl --silent --fail --config - --cacert server.crt "$url$1" | grep -oE '"id":"[0-9a-f-]{36}"' | grep -oE '[0-9a-f-]{36}'
}
cd "$dir"
OWN_IDS="$(ids /api/auth/keys) $(ids /api/admin/users)"
export OWN_IDS GUESTS="$root/examples/guests" SCHEMATHESIS_HOOKS="$root/scripts/check_api.py"
cat >schemathesis.toml <<'TOML'
headers = { Authorization = "Bearer ${API_KEY}" }

# They take no credential in the headers, but the token in the body alone.
[[operations]]
include-path-regex = "^/api/auth/token/(refresh|revoke)$"
headers = {}

# What is as described can still be a module that can't be run, or a name that is taken.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "402", "403", "404", "409", "422", "429", "503"]

# It takes the id of the module of an execution that had none stored for "None".
[phases.stateful.checks.positive_data_acceptance]
enabled = false

# In a form all values are text, and scripts/check_api.py makes good again what of a module is meant to be bad.
[[operations]]
include-operation-id-regex = "^(execute|execute_alias|execute_module|upload)$"
[operations.checks.negative_data_rejection]
enabled = false

# No schema says that a day must not be after another one, or that a time must be to come.
[[operations]]
include-operation-id-regex = "^((all_)?(usage|executions)|create_key(_for)?)$"
[operations.checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "402", "403", "404", "409", "429", "503"]
TOML
status=0
timeout --signal INT "$seconds" "$tools/schemathesis" --config-file schemathesis.toml run \
  --max-examples "$examples" --workers 1 --seed "$seed" --generation-database none --generation-with-security-parameters false \
  --request-timeout 30 --tls-verify "$dir/server.crt" --no-color "$url/api/openapi.json" || status=$?
if [ "$status" != 0 ]; then
  echo "scripts/check_api.sh: schemathesis exited with $status; the gateway's log:" >&2
  tail -n 50 log >&2
  exit 1
fi
kill -0 "$gateway" 2>/dev/null || { echo 'scripts/check_api.sh: the gateway has ended by itself' >&2; exit 1; }

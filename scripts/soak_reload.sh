#!/bin/sh
# Reloads the configuration thousands of times under load. See --help.
set -eu

case "${1:-}" in
  -h | --help)
    cat <<'TXT'
Usage: scripts/soak_reload.sh [SWAPS]

Reloads the configuration SWAPS times (default 5000; about a minute for each thousand) while four clients send
requests: none may fail, and memory must stay flat but for SQLite's own cache of pages (at most 2 MiB for each
connection), which the audit's rows of each reload fill at first. Builds the tests first.
TXT
    exit 0
    ;;
  *[!0-9]*)
    echo "soak_reload.sh: SWAPS is a number; see --help" >&2
    exit 2
    ;;
esac

cd "$(dirname "$0")/.."
WW_SOAK_SWAPS=${1:-5000} cargo test --test all -- --exact --nocapture \
    reload::hundreds_of_swaps_under_load_lose_no_request_and_no_memory

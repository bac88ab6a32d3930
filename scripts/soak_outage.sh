#!/bin/sh
# Stops PostgreSQL under a gateway that executes, for a minute. See --help.
set -eu

case "${1:-}" in
  -h | --help)
    cat <<'TXT'
Usage: scripts/soak_outage.sh [SECONDS]

Four clients execute through a gateway whose PostgreSQL is stopped for SECONDS (default 60) and then started again: no
request may fail, and each record of an execution must arrive, once. Prints how many there were, and how long
answers took with and without the database. Builds the tests first; needs PostgreSQL's programs, as the tests do.
TXT
    exit 0
    ;;
  *[!0-9]*)
    echo "soak_outage.sh: SECONDS is a number; see --help" >&2
    exit 2
    ;;
esac

cd "$(dirname "$0")/.."
WW_SOAK_OUTAGE_SECONDS=${1:-60} cargo test --test all -- --exact --nocapture \
    usage::survival::executions_go_on_while_the_database_is_away_and_all_records_arrive

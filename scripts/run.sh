#!/usr/bin/env bash
# Builds the gateway and starts it on its built-in defaults. Arguments go to the program.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/run.sh [ARGUMENTS OF wasm-wizard]

Builds the gateway (debug profile with optimised dependencies) and starts it in the project's root:
HTTPS on 8443, HTTP on 8080, the admin listener on 127.0.0.1:9091, an SQLite file under data/, a
development certificate under certs/. The first start prints an admin's API key.

  scripts/run.sh                                   start on the defaults
  scripts/run.sh serve --config mine.yaml          start with a configuration file
  scripts/run.sh exec examples/guests/echo.wasm    any other command
TXT
}

case "${1:-}" in -h | --help) usage; exit 0 ;; esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."

need() {
  command -v "$1" >/dev/null && return
  echo "scripts/run.sh: '$1' is missing. $2" >&2
  exit 1
}
need cargo "Install Rust 1.95 or newer: https://rustup.rs"
need cc "On Debian: apt-get install build-essential"
need cmake "On Debian: apt-get install cmake"

cargo build --locked --bin wasm-wizard
exec "${CARGO_TARGET_DIR:-target}/debug/wasm-wizard" "$@"

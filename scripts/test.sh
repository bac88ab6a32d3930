#!/usr/bin/env bash
# Installs what the tests need, then runs every test and check. Exits 0 only when all pass.
set -euo pipefail

usage() {
  cat <<'TXT'
Usage: scripts/test.sh [--no-install] [ARGUMENTS OF cargo test]

Installs the Debian packages the tests need (unless --no-install), then runs: cargo fmt, cargo clippy,
shellcheck, all tests, and, unless arguments choose some of them, scripts/check_api.sh. What else these run
(scripts/requirements.txt) goes into target/tools-venv.
Honours CARGO_TARGET_DIR. The first run compiles Wasmer and Pingora.
TXT
}

install=yes
case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  --no-install) install=no; shift ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What each is for: a C toolchain and cmake to build dependencies; clang, lld, wasi-libc and
# compiler-rt to build guests; postgresql for the store's tests and redis-server for those of shared
# limits; curl and openssl as real clients; jq and shellcheck for the scripts; python3-venv for the
# checking programs of scripts/tools.sh; bubblewrap to start the program in the image's own tree of files; prometheus
# and prometheus-alertmanager for promtool and amtool; age, rclone and sqlite3 for backups; wrk for the load test; and
# procps for what looks at processes.
packages=(build-essential cmake pkg-config ca-certificates curl openssl
  clang lld wasi-libc libclang-rt-14-dev-wasm32 postgresql redis-server shellcheck jq python3-venv bubblewrap
  prometheus prometheus-alertmanager age rclone sqlite3 wrk procps)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ]; then
  if [ "$install" = no ]; then
    echo "scripts/test.sh: missing packages; run: apt-get install ${missing[*]}" >&2
    exit 1
  fi
  sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -q
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

step() { printf '\n== %s\n' "$*"; }

step cargo fmt --check
cargo fmt --check
step shellcheck
shellcheck scripts/*.sh docker/*.sh .ci/run
step scripts/tools.sh
scripts/tools.sh
step cargo clippy
cargo clippy --locked --all-targets -- -D warnings
step cargo test
cargo test --locked "$@"
if [ "$#" -eq 0 ]; then
  step scripts/check_api.sh
  scripts/check_api.sh
fi

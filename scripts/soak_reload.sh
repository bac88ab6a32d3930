#!/bin/sh
# Reloads the configuration thousands of times under load: no request may fail, and memory stays flat.
#   scripts/soak_reload.sh [SWAPS]        (default 5000; about a minute for each thousand)
set -eu
cd "$(dirname "$0")/.."
WW_SOAK_SWAPS=${1:-5000} cargo test --test all -- --exact --nocapture \
    reload::hundreds_of_swaps_under_load_lose_no_request_and_no_memory

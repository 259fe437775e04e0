#!/usr/bin/env bash
# The same tape makes the same trace in a debug and in a release build (D1), at
# both levels. Builds both, compares the hash of every seed, names the first that
# differs.
#   driver-sim/tests/debug_release.sh [A..B [A..B]]    seeds at L0, and at L1
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --quiet -p nowconnect-sim
cargo build --quiet --release -p nowconnect-sim
target=${CARGO_TARGET_DIR:-target}
compare() {
  local level=$1 seeds=$2 difference
  if difference=$(diff <("$target/debug/nowconnect-sim" hashes --level "$level" --seeds "$seeds") \
                       <("$target/release/nowconnect-sim" hashes --level "$level" --seeds "$seeds")); then
    echo "debug and release: the same trace for seeds $seeds at $level"
  else
    echo "debug (<) and release (>) differ at $level:" >&2
    head -n 6 <<<"$difference" >&2
    return 1
  fi
}
compare L0 "${1:-0..40}"
compare L1 "${2:-10000..10012}"

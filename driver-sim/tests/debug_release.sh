#!/usr/bin/env bash
# The same tape makes the same trace in a debug and in a release build (D1).
# Builds both, compares the hash of every seed, names the first that differs.
#   driver-sim/tests/debug_release.sh [A..B]
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=${1:-0..40}
cargo build --quiet -p nowconnect-sim
cargo build --quiet --release -p nowconnect-sim
target=${CARGO_TARGET_DIR:-target}
if difference=$(diff <("$target/debug/nowconnect-sim" hashes --seeds "$seeds") \
                     <("$target/release/nowconnect-sim" hashes --seeds "$seeds")); then
  echo "debug and release: the same trace for seeds $seeds"
else
  echo "debug (<) and release (>) differ:" >&2
  head -n 6 <<<"$difference" >&2
  exit 1
fi

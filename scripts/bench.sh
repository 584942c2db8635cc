#!/usr/bin/env bash
# Builds in release mode and measures; benches/README.md says what.
# Usage: scripts/bench.sh [--quick] [--json FILE] [GROUP…]   (groups: mesh, store)
set -euo pipefail
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

install_build_tools
install_missing etcd-server=/usr/bin/etcd
run cargo build --locked --release --example bench
program="$PWD/target/release/examples/bench"
# FILE is meant where the caller stands.
cd "$caller"
run "$program" "$@"

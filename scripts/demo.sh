#!/usr/bin/env bash
# Plays the hands-on story: two clusters, one policy, enforced in the kernel. Needs root, and cargo.
#
#   scripts/demo.sh [--keep] [--peer etcd] [--fault detach-links|wrong-label] [--clean]
#
# Options go to the story; see `--help`. It installs Debian packages that are missing, builds, and
# leaves nothing else behind, except with --keep; if it fails, the logs stay in $TMPDIR/tombolo-demo.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

require_root
install_build_tools
install_run_tools
run cargo build --locked --release --bin tombolo --example hands_on
target="${CARGO_TARGET_DIR:-target}/release"
run "$target/examples/hands_on" --tombolo "$target/tombolo" "$@"

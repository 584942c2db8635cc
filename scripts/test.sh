#!/usr/bin/env bash
# Installs what the tests need and runs every tier: format, lints, borders, licences, unit,
# property, direct, etcd, conformance, kernel, hostile, compose and fuzz. Run as root: kernel, hostile
# and compose fail, not skip, without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

# Whatever a test lacks is a failure here; by hand, `cargo test` says what it skips.
export CI=1

install_build_tools
install_run_tools
install_etcd_3_5
install_missing clang-format-19=clang-format-19 shellcheck=shellcheck bpftool=bpftool
if ! command -v cargo-deny >/dev/null; then
    run cargo install cargo-deny --locked
fi

run cargo fmt --check
run cargo fmt --check --manifest-path fuzz/Cargo.toml
run clang-format-19 --dry-run --Werror bpf/*.c bpf/include/*.h
run shellcheck scripts/*.sh .ci/run
run cargo deny --locked check bans licenses sources
run cargo clippy --locked --all-targets -- -D warnings
run cargo clippy --locked --no-default-features --lib -- -D warnings
run env RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --lib
run cargo build --locked --bins --examples
run cargo test --locked --no-run --lib --bins --tests
run cargo test --locked --lib --bins --test tidy --test memory --test etcd
# Its cases mostly wait, so more of them than cores run at once.
run cargo test --locked --test conformance -- --test-threads=8
# Alone and one after another: the story counts connections per second.
run cargo test --locked --test kernel -- --test-threads=1
run env TOMBOLO_ATTACH_MODE=clsact cargo test --locked --test kernel -- --test-threads=1 \
    enforcer:: packets::
# Alone as well: it compares latencies.
run cargo test --locked --test hostile
run scripts/test-compose.sh
run scripts/fuzz.sh

#!/usr/bin/env bash
# Builds in release mode and measures; benches/README.md says what. Needs root: the programs run in
# namespaces of their own, with BPF.
# Usage: scripts/bench.sh [--quick] [--json FILE] [GROUP…]   (groups: store, ranges, puts, fanout,
# mesh, policy, datapath, firewall)
set -euo pipefail
caller="$PWD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh

require_root
install_build_tools
install_missing etcd-server=/usr/bin/etcd iproute2=ip util-linux=unshare mount=mount \
    nftables=nft iptables=iptables-legacy ipset=ipset
run cargo build --locked --release --bins --example bench
program="$PWD/target/release/examples/bench"
# FILE is meant where the caller stands.
cd "$caller"
run "$program" "$@"

#!/usr/bin/env bash
# Makes the Dockerfile's base images from Debian's packages and this machine's Rust toolchain, for
# machines that cannot pull images. Uses the engine that DOCKER_HOST names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
install_missing debootstrap=debootstrap

have() { docker image inspect "$1" >/dev/null 2>&1; }
if have debian:bookworm-slim && have rust:1.95-bookworm; then
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mirror=$(awk '/^URIs:/ { print $2; exit } /^deb / { print $2; exit }' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true)
run debootstrap --variant=minbase --include=ca-certificates bookworm "$work/root" "$mirror" >&2
rm -rf "$work/root/var/cache/apt/archives"/*.deb "$work/root/var/lib/apt/lists"/*
run tar -C "$work/root" -c . | docker import - debian:bookworm-slim

# The build stage adds a C linker and this machine's own toolchain.
run chroot "$work/root" apt-get update -qq
run chroot "$work/root" apt-get install -y -qq --no-install-recommends gcc libc6-dev
# A machine behind a proxy trusts more than Debian does, and so must what builds on it.
run cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/ca-certificates.crt"
sysroot=$(rustc --print sysroot)
mkdir -p "$work/root/usr/local/rust"
run tar -C "$sysroot" --exclude=share --exclude='*/rustlib/src' -c bin lib |
    tar -C "$work/root/usr/local/rust" -x
run tar -C "$work/root" -c . |
    docker import --change 'ENV PATH=/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        - rust:1.95-bookworm

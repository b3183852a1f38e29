#!/usr/bin/env bash
# The end-to-end tests: on the cluster that KUBECONFIG names (which has the image), or on a node of its own.
# Usage: e2e.sh [TEST-FILTER]
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'e2e: %s\n' "$*" >&2; }
filter=e2e::${1:-}

tests() { cargo test --locked --quiet --test it -- --include-ignored --test-threads=1 "$filter"; }

if [ -n "${KUBECONFIG:-}" ]; then
  say "on the cluster of KUBECONFIG=$KUBECONFIG; its nodes need the image that make image built (kind load image-archive, minikube image load)"
  clean() {
    kubectl delete -k tests/e2e/install --ignore-not-found
    kubectl delete namespace jasm-e2e emulator --ignore-not-found
    kubectl label nodes --all jasm.codnod.io/e2e-
  }
  trap 'clean >/dev/null' EXIT
  tests
  exit
fi

[ "$(id -u)" = 0 ] || {
  say 'error: a node of its own needs root: run it as root, or set KUBECONFIG to a cluster (kind, minikube)'
  exit 1
}
tests/node/packages.sh
make --no-print-directory image
dir=$(mktemp -d "${TMPDIR:-/tmp}/jasm-e2e-XXXXXX")
moto=$(tests/control-plane/moto.sh | tail -n 1)
toxiproxy=$(tests/control-plane/build.sh toxiproxy | tail -n 1)/toxiproxy
mapfile -t images < <(tests/node/images.py "$moto" "$toxiproxy")

# The node ends when this script does, however it does: it reads the other end of a pipe that nobody else holds.
coproc node { exec tests/node/up.sh "$dir" dist/jasm-*.tar "${images[@]}" >&2; }
held=${node[1]} up=$node_PID
end() {
  local status=$? left
  exec {held}>&-
  wait "$up" || true
  left=$(leftovers)
  [ -z "$left" ] || { say "error: left behind: $left"; status=1; }
  exit "$status"
}
# Links and rules go with the network namespace, and that with its last process.
leftovers() {
  grep -F " $dir" /proc/self/mountinfo || true
  pgrep --list-full --full "$dir" || true
  find /sys/fs/cgroup -maxdepth 2 -name "jasm-node-$up"
  [ ! -e "$dir" ] || echo "$dir"
}
trap end EXIT
trap 'exit 130' INT TERM HUP
until [ -e "$dir/env" ]; do
  kill -0 "$up" 2>/dev/null || { say 'error: the node did not start; its own message is above'; exit 1; }
  sleep 0.1
done
# Programs that cargo starts run inside the node; cargo itself does not.
triple=$(rustc -vV | sed -n 's/^host: //p')
variable=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$triple")_RUNNER
export "$variable=$PWD/tests/node/in.sh $dir"
tests

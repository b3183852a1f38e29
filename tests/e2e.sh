#!/usr/bin/env bash
# The end-to-end tests: on the cluster that KUBECONFIG names (one file; its nodes have the image), or on a node of its own.
# Usage: e2e.sh [TEST-FILTER]      (KEEP_DIR=1 keeps the logs of that node)
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'e2e: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
filter=e2e::${1:-}

# In the background, so that a signal is acted on at once and not when the tests have ended.
running=
tests() {
  # A group of its own: what cargo started is ended with it.
  setsid cargo test --locked --quiet "$@" --test it -- --include-ignored --test-threads=1 "$filter" &
  running=$!
  wait "$running"
}
stop_tests() {
  trap '' INT TERM HUP # a second Ctrl-C must not cut the cleaning short
  [ -z "$running" ] || { kill -- "-$running"; wait "$running"; } 2>/dev/null || true
}
# Without it the tests refuse: they replace what is installed.
export JASM_E2E=1
trap 'trap "" INT TERM HUP; exit 130' INT TERM HUP

on_a_cluster() {
  command -v kubectl >/dev/null || die "kubectl is not installed"
  local there
  there=$(kubectl get namespaces jasm-system jasm-e2e emulator team-a --ignore-not-found --output name | tr '\n' ' ')
  there+=$(kubectl get clusterrole jasm-agent --ignore-not-found --output name)
  [ -z "$there" ] || die "the cluster has $there: the tests make and remove these, so name a cluster without them"
  say "on the cluster of $KUBECONFIG; its nodes need the image that make image built (kind load image-archive, minikube image load)"
  trap clean_cluster EXIT
  tests
}
clean_cluster() {
  stop_tests
  {
    kubectl delete -k tests/e2e/install --ignore-not-found || true
    kubectl delete namespace jasm-e2e emulator team-a --ignore-not-found || true
    kubectl delete namespace --selector jasm.codnod.io/e2e || true
    kubectl label nodes --all jasm.codnod.io/e2e- || true
  } >/dev/null
}

on_a_node_of_its_own() {
  [ "$(id -u)" = 0 ] || die "a node of its own needs root: run it as root, or set KUBECONFIG to a cluster (kind, minikube)"
  tests/node/packages.sh
  make --no-print-directory image IMAGE=ghcr.io/codnod/jasm
  local moto assets list images triple
  moto=$(tests/control-plane/moto.sh | tail -n 1)
  assets=$(tests/control-plane/build.sh toxiproxy | tail -n 1)
  # With the Python that moto was installed with, which goes into its image.
  list=$("${moto%/*}/python" tests/node/images.py "$moto" "$assets/toxiproxy")
  mapfile -t images <<<"$list"

  dir=$(mktemp -d "${TMPDIR:-/tmp}/jasm-e2e-XXXXXX")
  # The node ends when this script does, however it does: it reads the other end of a pipe that nobody else holds.
  coproc node { exec tests/node/up.sh "$dir" dist/jasm-"$(architecture)".tar "${images[@]}" >&2; }
  up=${node_PID:?the node did not start} held=${node[1]:-}
  trap end_node EXIT
  until [ -e "$dir/env" ]; do
    kill -0 "$up" 2>/dev/null || die "the node did not start; its own message is above"
    sleep 0.1
  done
  # Programs that cargo starts run inside the node; cargo itself does not.
  triple=$(rustc -vV | sed -n 's/^host: //p')
  tests --config "target.$triple.runner = ['$PWD/tests/node/in.sh', '$dir']"
}
architecture() { case $(uname -m) in aarch64) echo arm64 ;; *) echo amd64 ;; esac; }
end_node() {
  local status=$? left
  stop_tests
  [ -z "$held" ] || exec {held}>&-
  wait "$up" || true
  if [ "${KEEP_DIR:-}" = 1 ]; then say "the node's logs are in $dir"; else rm -rf "$dir"; fi
  left=$(leftovers)
  [ -z "$left" ] || { say "error: left behind: $left"; status=1; }
  exit "$status"
}
# Links and rules go with the network namespace, and that with its last process.
leftovers() {
  grep -F " $dir" /proc/self/mountinfo || true
  pgrep --list-full --full "$dir" || true
  find /sys/fs/cgroup -maxdepth 2 -name "jasm-node-$up"
}

if [ -n "${KUBECONFIG:-}" ]; then on_a_cluster; else on_a_node_of_its_own; fi

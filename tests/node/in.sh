#!/usr/bin/env bash
# Runs a command inside the node that up.sh started, as its administrator: in.sh DIR COMMAND...
# kubectl, ctr and journalctl are about the node there.
set -euo pipefail
[ $# -ge 2 ] && [ -r "$1/env" ] || { echo "usage: in.sh DIR COMMAND...   (DIR: where up.sh is ready)" >&2; exit 1; }
. "$1/env"
shift
unset {http,https,all,no}_proxy {HTTP,HTTPS,ALL,NO}_PROXY
exec nsenter --target "$NODE_PID" --net --mount --pid --uts --ipc env --chdir="$PWD" KUBECONFIG="$KUBECONFIG" \
  KUBECACHEDIR="${KUBECONFIG%/*}/kubectl" PATH="$ASSETS:$PATH" CONTAINERD_NAMESPACE=k8s.io "$@"

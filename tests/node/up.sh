#!/usr/bin/env bash
# Starts a Kubernetes cluster of one real node on this machine, and ends it again: etcd, kube-apiserver,
# kube-controller-manager, kube-scheduler, kube-proxy, CoreDNS, kubelet, containerd, CNI and journald, all of them in
# namespaces of their own (network, mounts, processes, host name, IPC). The machine's own are not touched.
# Usage: up.sh DIR [IMAGE.tar ...]     (DIR: an absent or empty folder; the images are imported before the node is ready)
#
# Stays in the foreground. When the node is ready it writes DIR/env, lines of KEY=value:
#   KUBECONFIG  ASSETS (the folder with kubectl)  NODE_PID (a process inside; in.sh enters its namespaces)
# It ends all it started, and removes DIR (unless KEEP_DIR=1), when its stdin reaches end of file, on TERM, INT or HUP,
# and when one of the servers ends. Without a program on the other end: sleep infinity | up.sh DIR
#
# Needs root, and what packages.sh installs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
as=node
. "$here/../control-plane/servers.sh"

[ $# -ge 1 ] || die "usage: up.sh DIR [IMAGE.tar ...]"
[ "$(id -u)" = 0 ] || die "namespaces, mounts and cgroups need root: run it as root, or set KUBECONFIG to use a cluster that is there"
"$here/packages.sh" --check
state_folder "$1"
shift
# One for each cluster, so that two can run at a time.
cgroup=jasm-node-$$
handed_down='' taken_back=''
# The end of a node is a power cut: its first process is killed, and the kernel ends what is in its namespaces. What
# waits for that process then knows that all are gone.
end_servers() {
  local first
  [ -z "${pid[node]:-}" ] || first=$(pgrep --parent "${pid[node]}")
  [ -z "${first:-}" ] || kill -KILL $first
  for name in "${!pid[@]}"; do [ "$name" = node ] || kill -KILL -- "-${pid[$name]}"; done
  wait
}
clean() { remove_cgroups; take_back; }
watch_for_the_end

# The hierarchies: the one of version 2, or all of version 1 (the kubelet wants its cgroup in each that there is).
cgroup_roots() {
  local folder
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo /sys/fs/cgroup; return; fi
  for folder in /sys/fs/cgroup/*/; do
    [ ! -e "$folder/cgroup.procs" ] || [ -e "$folder/cgroup.controllers" ] || realpath "$folder"
  done | sort -u
}

make_cgroups() {
  local root name
  for root in $(cgroup_roots); do
    mkdir "$root/$cgroup" || die "cannot make $root/$cgroup: its folder has to be writable, and no other node's"
    if [ -e "$root/cgroup.controllers" ]; then
      handed_down=$(grep -owE 'cpu|cpuset|memory|hugetlb|pids|io' "$root/cgroup.controllers" | sed 's/^/+/' | tr '\n' ' ')
      taken_back=$(cat "$root/cgroup.subtree_control")
      echo "$handed_down" >"$root/cgroup.subtree_control" && echo "$handed_down" >"$root/$cgroup/cgroup.subtree_control" ||
        die "$root cannot hand down $handed_down (cgroup version 2): run it outside of containers"
    fi
    # A cpuset (version 1) takes no process before it has both.
    for name in cpuset.cpus cpuset.mems; do
      [ ! -e "$root/$name" ] || cat "$root/$name" >"$root/$cgroup/$name"
    done
  done
}

# Version 2: what was not handed down before the first node is not after the last.
take_back() {
  local name
  for name in ${handed_down//+/}; do
    case " $taken_back " in *" $name "*) ;; *) echo "-$name" >/sys/fs/cgroup/cgroup.subtree_control || true ;; esac
  done 2>/dev/null
}

# What a node leaves that was ended together with its up.sh, by SIGKILL (and its folder, which nobody can tell from one
# in use).
sweep_cgroups() {
  local found
  for found in $(find $(cgroup_roots) -maxdepth 1 -name 'jasm-node-*' -printf '%f\n' | sort -u); do
    kill -0 "${found#jasm-node-}" 2>/dev/null || cgroup=$found remove_cgroups
  done
}

remove_cgroups() {
  local root tries
  # runc makes one in the unified hierarchy too, where that lies beside those of version 1.
  for root in $(cgroup_roots) /sys/fs/cgroup/unified; do
    for ((tries = 0; tries < 100; tries++)); do
      [ -d "$root/$cgroup" ] || break
      find "$root/$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.05 # the kernel is still ending processes
    done
    [ ! -d "$root/$cgroup" ] || say "warning: $root/$cgroup could not be removed"
  done
}

ready_node() { [ -e "$dir/ready" ]; }

began=$EPOCHREALTIME
run_to_end build.sh "$here/../control-plane/build.sh" \
  etcd kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet coredns
assets=$path
sweep_cgroups
make_cgroups
start node unshare --net --mount --pid --uts --ipc --fork --kill-child --mount-proc \
  "$here/inside.sh" "$dir" "$assets" "$cgroup" "$@"
await node 300
inner=$(pgrep --parent "${pid[node]}" | head -n 1)
cat >"$dir/.env.new" <<ENV
KUBECONFIG=$dir/kubeconfig
ASSETS=$assets
NODE_PID=$inner
ENV
mv "$dir/.env.new" "$dir/env"
say "everything is ready after $(since "$began") s; look around with tests/node/in.sh $dir kubectl get pods -A"
stay

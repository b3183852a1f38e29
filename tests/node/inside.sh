#!/usr/bin/env bash
# The node itself: process 1 of the namespaces that up.sh makes. inside.sh DIR ASSETS CGROUP [IMAGE.tar ...]
# Writes DIR/ready when pods can be created. When it ends, the kernel ends all the rest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
as=node
. "$here/../control-plane/servers.sh"
dir=$1 assets=$2 cgroup=$3
shift 3
# As on any node: containerd makes the folders of images with it, which other users than root have to see.
umask 022
export PATH=$assets:/usr/sbin:/sbin:$PATH KUBECACHEDIR=$dir/kubectl
# Nothing in here is behind a proxy of the machine's.
unset {http,https,all,no}_proxy {HTTP,HTTPS,ALL,NO}_PROXY

node=node-1 node_ip=10.88.0.1 pods=10.88.0.0/16 services=10.96.0.0/16 dns_ip=10.96.0.10
api_server=https://$node_ip:6443 etcd_url=http://127.0.0.1:2379
ca_file=$dir/ca.crt

# ---- the machine as the node sees it ----

own_mounts() {
  hostname "$node"
  mount -t tmpfs tmpfs /run
  mkdir -p /run/{containerd,lock,log/journal,netns,systemd/journal,systemd/journald.conf.d}
  mkdir -p "$dir"/{cni,containerd,kubelet,sys,var-log,volume-plugins}
  mount --bind "$dir/var-log" /var/log
  # The kubelet and the network plugins also write where no setting reaches, and would find what a real node has there.
  mkdir -p "$dir"/var-lib/{upper,work}
  mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$dir/var-lib/upper,workdir=$dir/var-lib/work" /var/lib
  mkdir -p /var/lib/cni /var/lib/kubelet
  mount -t tmpfs tmpfs /var/lib/cni
  mount -t tmpfs tmpfs /var/lib/kubelet
  # /sys of the new network namespace, with the machine's cgroups.
  mkdir /run/cgroup
  mount --rbind /sys/fs/cgroup /run/cgroup
  mount -t sysfs sysfs /sys
  mount --move /run/cgroup /sys/fs/cgroup
  # Pods' volumes are mounted by the kubelet and seen by containers: after all of the above, or a move is refused.
  mount --make-rshared /
}

# The kubelet wants these values and would set the machine's own: it finds files of ours in their place.
own_sysctls() {
  local name
  while read -r name value; do
    echo "$value" >"$dir/sys/${name##*/}"
    mount --bind "$dir/sys/${name##*/}" "/proc/sys/$name"
  done <<'LIST'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
LIST
}

own_network() {
  ip link set lo up
  ip link add cni0 type bridge
  ip address add "$node_ip/16" dev cni0
  ip link set cni0 up
  echo 1 >/proc/sys/net/ipv4/ip_forward
  # Without a default route nothing knows which source address it has; there is nobody behind it.
  ip route add default via "$node_ip" dev cni0
}

# ---- files ----

write_inputs() {
  local user
  openssl genrsa -out "$dir/service-account.key" 2048 2>/dev/null
  printf '%s\n' 'admin-token,admin,admin,"system:masters"' "node-token,system:node:$node,node,\"system:nodes\"" \
    'kube-controller-manager-token,system:kube-controller-manager,kcm' 'kube-scheduler-token,system:kube-scheduler,scheduler' \
    'kube-proxy-token,system:kube-proxy,proxy' >"$dir/tokens.csv"
  cat >"$dir/containerd.toml" <<TOML
version = 2
root = "$dir/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  # Where CAP_SYS_RESOURCE is missing, no container would start without it.
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$dir/cni"
TOML
  cat >"$dir/cni/10-bridge.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "$pods", "rangeStart": "10.88.1.1"}]]}}]}
JSON
  cat >"$dir/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /$cgroup
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
# Nobody but this node's own API server can reach it.
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: [$dns_ip]
clusterDomain: cluster.local
resolvConf: ""
evictionHard: {memory.available: "50Mi", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 24h
volumePluginDir: $dir/volume-plugins
maxPods: 250
YAML
  cat >"$dir/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {kubeconfig: $dir/kube-proxy.kubeconfig}
clusterCIDR: $pods
# The pods are on one bridge: an answer that did not come back through the node would carry the wrong address.
nftables: {masqueradeAll: true}
# The machine's own connection tracking is not touched.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
hostnameOverride: $node
YAML
  cat >"$dir/Corefile" <<DNS
cluster.local:53 in-addr.arpa:53 {
  bind $node_ip
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $dir/kubeconfig
    ttl 5
  }
}
DNS
  cat >/run/systemd/journald.conf.d/node.conf <<'CONF'
[Journal]
Storage=volatile
ReadKMsg=no
Audit=
ForwardToSyslog=no
RateLimitIntervalSec=0
RuntimeMaxUse=64M
CONF
}

write_kubeconfigs() {
  authority_of "$dir/certs/apiserver.crt" >"$ca_file"
  local user file
  for user in admin node kube-controller-manager kube-scheduler kube-proxy; do
    file=$dir/$user.kubeconfig
    [ "$user" != admin ] || file=$dir/kubeconfig
    cat >"$file" <<YAML
apiVersion: v1
kind: Config
current-context: node
contexts: [{name: node, context: {cluster: node, user: $user}}]
clusters: [{name: node, cluster: {server: "$api_server", certificate-authority: "$ca_file"}}]
users: [{name: $user, user: {token: $user-token}}]
YAML
  done
}

# ---- servers ----

launch_etcd() {
  start etcd etcd --data-dir="$dir/etcd" --unsafe-no-fsync --log-level=warn \
    --listen-client-urls="$etcd_url" --advertise-client-urls="$etcd_url"
}
ready_etcd() { get "$etcd_url/health"; }

launch_kube-apiserver() {
  start kube-apiserver kube-apiserver --etcd-servers="$etcd_url" \
    --bind-address=0.0.0.0 --advertise-address="$node_ip" --secure-port=6443 --cert-dir="$dir/certs" \
    --service-cluster-ip-range="$services" --allow-privileged=true --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$dir/service-account.key" --service-account-signing-key-file="$dir/service-account.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --token-auth-file="$dir/tokens.csv"
}
ready_kube-apiserver() { get --insecure "$api_server/readyz"; }

launch_containerd() { start containerd containerd --config "$dir/containerd.toml"; }
ready_containerd() { ctr version >/dev/null 2>&1; }

launch_journald() {
  # A machine id of the node's own: journalctl looks for the journal under it.
  tr -d - </proc/sys/kernel/random/uuid >/run/machine-id
  [ ! -e /etc/machine-id ] || mount --bind /run/machine-id /etc/machine-id
  start journald /lib/systemd/systemd-journald
}
ready_journald() { [ -S /run/systemd/journal/socket ]; }

launch_controllers() {
  # With the default rate a namespace gets its service account only after seconds.
  start kube-controller-manager kube-controller-manager --kubeconfig="$dir/kube-controller-manager.kubeconfig" \
    --leader-elect=false --use-service-account-credentials --root-ca-file="$ca_file" --cert-dir="$dir/certs" \
    --service-account-private-key-file="$dir/service-account.key" --kube-api-qps=500 --kube-api-burst=1000 \
    --flex-volume-plugin-dir="$dir/volume-plugins"
  start kube-scheduler kube-scheduler --kubeconfig="$dir/kube-scheduler.kubeconfig" --leader-elect=false --cert-dir="$dir/certs"
  start kube-proxy kube-proxy --config="$dir/kube-proxy.yaml"
}

launch_kubelet() {
  start kubelet kubelet --config="$dir/kubelet.yaml" --kubeconfig="$dir/node.kubeconfig" --root-dir="$dir/kubelet" \
    --cert-dir="$dir/certs" --hostname-override="$node" --node-ip="$node_ip"
}
as_admin() { kubectl --kubeconfig "$dir/kubeconfig" "$@" 2>/dev/null; }
ready_kubelet() {
  [ "$(as_admin get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ] &&
    as_admin get -n default serviceaccount/default configmap/kube-root-ca.crt >/dev/null
}

launch_coredns() { start coredns coredns -conf "$dir/Corefile"; }
ready_coredns() { grep -q "CoreDNS-" "$dir/coredns.log"; }

# CoreDNS runs beside the kubelet, and pods find it where they do in any cluster.
publish_dns() {
  kubectl --kubeconfig "$dir/kubeconfig" apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $dns_ip
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [$node_ip]}]
YAML
}

# ---- the steps ----

own_mounts
own_sysctls
own_network
# Nothing ends this one by its stdin: up.sh and the kernel do.
mkfifo "$dir/held"
exec 0<>"$dir/held"

write_inputs
launch_etcd
launch_containerd
launch_journald
await etcd 30
launch_kube-apiserver
await containerd 30
for image in "$@"; do ctr --namespace k8s.io image import "$image"; done
await journald 10
await kube-apiserver 120
write_kubeconfigs
launch_controllers
launch_kubelet
launch_coredns
await coredns 30
await kubelet 120
publish_dns
touch "$dir/ready"
stay

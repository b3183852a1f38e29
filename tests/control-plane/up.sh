#!/usr/bin/env bash
# Starts etcd, kube-apiserver, kube-controller-manager and moto on free loopback ports, and ends them again.
# Usage: up.sh DIR      (DIR: an absent or empty folder; all state lies in it)
#
# Stays in the foreground. When everything answers it writes DIR/env: lines of KEY=value, for shells and programs alike
#   KUBECONFIG  API_SERVER  ADMIN_TOKEN  CA_FILE  AUDIT_LOG  MOTO_URL  ASSETS (the folder with kubectl)
# It ends all it started, and removes DIR (unless KEEP_DIR=1), when its stdin reaches end of file, on TERM, INT or HUP,
# and when one of the servers ends. So whoever holds the other end of its stdin cannot leave servers behind, however
# he dies. Without a program on the other end: sleep infinity | up.sh DIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

as=control-plane
. "$here/servers.sh"

[ $# -eq 1 ] || die "usage: up.sh DIR"
for tool in curl openssl python3 setsid; do
  command -v "$tool" >/dev/null || die "$tool is not installed: install it (Debian, Ubuntu: curl, openssl, python3, util-linux)"
done
state_folder "$1"
watch_for_the_end

# ---- servers ----

# N free loopback ports, held together while they are chosen so that they differ.
free_ports() {
  python3 -c 'import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))' "$1"
}
get_as_admin() { get --cacert "$ca_file" --header "Authorization: Bearer $admin_token" "$api_server$1"; }

launch_moto() {
  moto_url=http://127.0.0.1:$(free_ports 1)
  start moto "$moto_server" -H 127.0.0.1 -p "${moto_url##*:}"
}
ready_moto() { get "$moto_url/moto-api/data.json"; }

launch_etcd() {
  local client peer
  read -r client peer < <(free_ports 2)
  etcd_url=http://127.0.0.1:$client
  rm -rf "$dir/etcd"
  # No fsync: the data is thrown away, and a disk shared with a compiler makes each write wait.
  start etcd "$assets/etcd" --data-dir="$dir/etcd" --unsafe-no-fsync --log-level=warn \
    --listen-client-urls="$etcd_url" --advertise-client-urls="$etcd_url" \
    --listen-peer-urls="http://127.0.0.1:$peer" --initial-advertise-peer-urls="http://127.0.0.1:$peer" \
    --initial-cluster="default=http://127.0.0.1:$peer"
}
ready_etcd() { get "$etcd_url/health"; }

launch_kube-apiserver() {
  local port
  port=$(free_ports 1)
  api_server=https://127.0.0.1:$port
  # The advertised address is set because the default is looked up on the host's network, which a sandbox may not have;
  # a loopback address is no valid endpoint, so that nothing publishes it.
  # The audit log holds every request of the run in one file: tests count the agent's requests in it.
  start kube-apiserver "$assets/kube-apiserver" --etcd-servers="$etcd_url" \
    --bind-address=127.0.0.1 --secure-port="$port" --cert-dir="$dir/certs" \
    --advertise-address=127.0.0.1 --endpoint-reconciler-type=none --service-cluster-ip-range=10.0.0.0/24 \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$dir/service-account.key" --service-account-signing-key-file="$dir/service-account.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --token-auth-file="$dir/tokens.csv" \
    --audit-policy-file="$dir/audit-policy.yaml" --audit-log-path="$audit_log" --audit-log-mode=blocking \
    --audit-log-maxsize=1000000 --audit-log-maxbackup=0 --audit-log-maxage=0
}
ready_kube-apiserver() { get --insecure "$api_server/readyz"; }

launch_kube-controller-manager() {
  # Only what keeps an API server without nodes in order. Left out on purpose: pod-garbage-collector and the node
  # controllers would delete pods that tests bind to nodes nobody runs, and workload controllers would rebuild the
  # Deployments and ReplicaSets that tests put together by hand.
  local controllers=namespace-controller,garbage-collector-controller,resourcequota-controller
  controllers+=,serviceaccount-controller,root-ca-certificate-publisher-controller
  controllers+=,clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller
  start kube-controller-manager "$assets/kube-controller-manager" --kubeconfig="$dir/kubeconfig" \
    --controllers="$controllers" --leader-elect=false --secure-port=0 \
    --use-service-account-credentials --root-ca-file="$ca_file" \
    --kube-api-qps=500 --kube-api-burst=1000
}
ready_kube-controller-manager() { get_as_admin /api/v1/namespaces/default/serviceaccounts/default; }
namespace_exists() { get_as_admin /api/v1/namespaces/default; }

# ---- files ----

write_inputs() {
  admin_token=$(openssl rand -hex 24)
  printf '%s,admin,admin,"system:masters"\n' "$admin_token" >"$dir/tokens.csv"
  openssl genrsa -out "$dir/service-account.key" 2048 2>/dev/null
  cat >"$dir/audit-policy.yaml" <<'YAML'
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
YAML
}

write_kubeconfig() {
  authority_of "$dir/certs/apiserver.crt" >"$ca_file"
  cat >"$dir/kubeconfig" <<YAML
apiVersion: v1
kind: Config
current-context: test
contexts: [{name: test, context: {cluster: test, user: admin}}]
clusters: [{name: test, cluster: {server: "$api_server", certificate-authority: "$ca_file"}}]
users: [{name: admin, user: {token: "$admin_token"}}]
YAML
}

write_env() {
  cat >"$dir/.env.new" <<ENV
KUBECONFIG=$dir/kubeconfig
API_SERVER=$api_server
ADMIN_TOKEN=$admin_token
CA_FILE=$ca_file
AUDIT_LOG=$audit_log
MOTO_URL=$moto_url
ASSETS=$assets
ENV
  mv "$dir/.env.new" "$dir/env"
}

# ---- the steps ----

began=$EPOCHREALTIME
ca_file=$dir/ca.crt audit_log=$dir/audit.log path=
programs=(etcd kubectl kube-apiserver)
# Folders made for envtest hold no controller manager.
if [ -z "${KUBEBUILDER_ASSETS:-}" ] || [ -x "$KUBEBUILDER_ASSETS/kube-controller-manager" ]; then
  programs+=(kube-controller-manager)
fi
run_to_end moto.sh "$here/moto.sh"
moto_server=$path
run_to_end build.sh "$here/build.sh" "${programs[@]}"
assets=$path

launch_moto
launch_etcd
write_inputs
await etcd 30
launch_kube-apiserver
await kube-apiserver 120
write_kubeconfig
if [ -x "$assets/kube-controller-manager" ]; then
  launch_kube-controller-manager
  await kube-controller-manager 60
else
  say "$assets has no kube-controller-manager: namespaces stay in Terminating and get no default service account"
  until namespace_exists; do pause 0.1; done
fi
await moto 60
write_env
say "everything is ready after $(since "$began") s; kubectl --kubeconfig $dir/kubeconfig"

stay

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

say() { printf 'control-plane: %s\n' "$*" >&2 2>/dev/null || true; }
die() { say "error: $*"; exit 1; }

[ $# -eq 1 ] || die "usage: up.sh DIR"
[ ! -e "$1" ] || [ -z "$(ls -A "$1")" ] || die "$1 is not empty: name an absent or an empty folder"
for tool in curl openssl python3 setsid; do
  command -v "$tool" >/dev/null || die "$tool is not installed: install it (Debian, Ubuntu: curl, openssl, python3, util-linux)"
done
umask 077
mkdir -p "$1"
dir=$(cd "$1" && pwd)
[[ $dir =~ ^[A-Za-z0-9/._+@:-]+$ ]] ||
  die "$dir holds a character that a shell would have to quote in DIR/env: name another folder"

declare -A pid=() launched=() relaunched=()

# ---- the end ----

finish() {
  local status=$? name deadline
  trap '' INT TERM HUP # the second Ctrl-C of an impatient user must not cut the cleaning short
  trap - EXIT
  set +e
  for name in "${!pid[@]}"; do kill -TERM -- "-${pid[$name]}" "${pid[$name]}"; done 2>/dev/null
  deadline=$((SECONDS + 3))
  while [ "$SECONDS" -lt "$deadline" ] && any_left; do sleep 0.05; done
  for name in "${!pid[@]}"; do kill -KILL -- "-${pid[$name]}" "${pid[$name]}"; done 2>/dev/null
  wait 2>/dev/null
  [ "${KEEP_DIR:-}" = 1 ] || rm -rf "$dir"
  exit "$status"
}
any_left() {
  local name
  for name in "${!pid[@]}"; do kill -0 -- "-${pid[$name]}" && return 0; done 2>/dev/null
  return 1
}
trap finish EXIT
trap 'exit 0' INT TERM HUP
# A reader of our messages that died must not end us before the servers are ended. Not ignored, since children inherit that.
trap : PIPE

# Sleeps, and ends everything when stdin does.
pause() {
  local status=0
  read -r -t "$1" _ || status=$?
  [ "$status" -ne 1 ] || exit 0
}

# ---- servers ----

# Each server leads a session of its own: a terminal's Ctrl-C reaches only this script, which then ends all of them.
# Where setpriv exists they also die with this script when it is killed with SIGKILL.
leash=()
if setpriv --pdeathsig KILL true 2>/dev/null; then leash=(setpriv --pdeathsig KILL); fi

start() { # NAME COMMAND...
  local name=$1
  shift
  launched[$name]=$EPOCHREALTIME
  setsid "${leash[@]}" "$@" </dev/null >"$dir/$name.log" 2>&1 &
  pid[$name]=$!
}

# Waits until the function ready_NAME holds. A server whose port was taken between asking and binding gets new ports, once.
await() { # NAME SECONDS
  local name=$1 deadline=$((SECONDS + $2))
  until "ready_$name"; do
    if ! kill -0 "${pid[$name]}" 2>/dev/null; then
      if [ -z "${relaunched[$name]:-}" ] && grep -qiE 'address already in use|port [0-9]+ is in use' "$dir/$name.log"; then
        relaunched[$name]=yes
        say "$name: its port was taken by another program meanwhile, trying another one"
        "launch_$name"
      else
        fail "$name" "ended while it was starting"
      fi
    fi
    [ "$SECONDS" -lt "$deadline" ] || fail "$name" "was not ready after $2 s"
    pause 0.1
  done
  say "$name is ready after $(since "${launched[$name]}") s"
}
since() { awk -v from="${1/,/.}" -v to="${EPOCHREALTIME/,/.}" 'BEGIN { printf "%.1f", to - from }'; }

fail() { # NAME WHAT
  say "error: $1 $2; the last lines of its log:"
  tail -n 25 "$dir/$1.log" | cut -c 1-400 >&2 || true
  exit 1
}

# N free loopback ports, held together while they are chosen so that they differ.
free_ports() {
  python3 -c 'import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in held))' "$1"
}
get() { curl --silent --fail --max-time 5 --output /dev/null "$@"; }
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
  # The API server writes its own certificate first and the authority that signed it after.
  awk '/BEGIN CERTIFICATE/ { pem = "" } { pem = pem $0 "\n" } END { printf "%s", pem }' "$dir/certs/apiserver.crt" >"$ca_file"
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

# Runs build.sh or moto.sh, which take minutes the first time, and still ends with stdin; sets `path` to what it prints.
run_to_end() { # NAME COMMAND...
  local name=$1 status=0
  shift
  setsid "${leash[@]}" "$@" </dev/null >"$dir/$name.out" &
  pid[$name]=$!
  while kill -0 "${pid[$name]}" 2>/dev/null; do pause 0.05; done
  wait "${pid[$name]}" || status=$?
  unset "pid[$name]"
  [ "$status" -eq 0 ] || exit 1 # its own message is on stderr
  path=$(tail -n 1 "$dir/$name.out")
  rm -f "$dir/$name.out"
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

while :; do
  for name in "${!pid[@]}"; do kill -0 "${pid[$name]}" 2>/dev/null || fail "$name" "ended by itself"; done
  pause 1
done

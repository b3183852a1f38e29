#!/usr/bin/env bash
# What a node and the image need of the machine: installs what is missing where it may (root, apt), and else says what
# to install. --check only says, and only of the node.
set -euo pipefail
say() { printf 'node: %s\n' "$*" >&2; }

# program:package of Debian and Ubuntu
needed=(
  containerd:containerd ctr:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins
  nft:nftables busybox:busybox-static /lib/systemd/systemd-journald:systemd journalctl:systemd
  ip:iproute2 nsenter:util-linux unshare:util-linux pgrep:procps openssl:openssl curl:curl python3:python3
)
missing=()
for entry in "${needed[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
if [ "${1:-}" != --check ]; then
  docker info >/dev/null 2>&1 || command -v buildah >/dev/null || missing+=(buildah)
  python3 -c 'import ensurepip, pip, venv' 2>/dev/null || missing+=(python3-pip python3-venv)
fi
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ "${1:-}" != --check ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "installing ${missing[*]} ..."
  export DEBIAN_FRONTEND=noninteractive
  # The package would start its daemon, now and at each boot; a node has its own, in its own namespaces.
  mask=()
  case " ${missing[*]} " in *' containerd '*) [ ! -d /run/systemd/system ] || mask=(containerd.service) ;; esac
  [ ${#mask[@]} -eq 0 ] || systemctl mask --quiet --runtime "${mask[@]}"
  status=0
  { apt-get update --quiet=2 && apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}"; } >&2 || status=1
  [ ${#mask[@]} -eq 0 ] || { systemctl unmask --quiet --runtime "${mask[@]}" && systemctl disable --quiet "${mask[@]}"; }
  [ $status = 0 ] || say "error: apt-get could not install ${missing[*]}; its message is above"
  exit $status
fi
say "error: not installed: ${missing[*]}"
say "install them (Debian, Ubuntu: apt-get install ${missing[*]}), or set KUBECONFIG to use a cluster that is there"
exit 1

#!/usr/bin/env bash
# What a node and the image need of the machine: installs what is missing where it may (root, apt), and else says what
# to install. --check only says.
set -euo pipefail
say() { printf 'node: %s\n' "$*" >&2; }

# program:package of Debian and Ubuntu
needed=(
  containerd:containerd ctr:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins
  nft:nftables busybox:busybox-static buildah:buildah /lib/systemd/systemd-journald:systemd journalctl:systemd
  ip:iproute2 nsenter:util-linux unshare:util-linux pgrep:procps openssl:openssl curl:curl python3:python3
)
missing=()
for entry in "${needed[@]}"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if [ "${1:-}" != --check ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  say "installing ${missing[*]} ..."
  export DEBIAN_FRONTEND=noninteractive
  # No daemon is started: a node has its own, in its own namespaces.
  { apt-get update --quiet=2 && RUNLEVEL=1 apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}"; } >&2 || {
    say "error: apt-get could not install ${missing[*]}; its message is above"
    exit 1
  }
  exit 0
fi
say "error: not installed: ${missing[*]}"
say "install them (Debian, Ubuntu: apt-get install ${missing[*]}), or set KUBECONFIG to use a cluster that is there"
exit 1

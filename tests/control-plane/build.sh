#!/usr/bin/env bash
# Builds a real Kubernetes control plane and a Vault from Go modules, once, into a cache outside the checkout.
# Usage: build.sh [PROGRAM ...]     (default: what the integration tests start; make e2e names the rest)
# Prints the folder that holds the programs as the last line on stdout; all else goes to stderr.
#
# KUBEBUILDER_ASSETS, when set, is honoured first: that folder is used as it is and nothing is built. Such folders hold
# no Vault, so that `build.sh vault` looks into the cache all the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kubernetes=v1.37.2 go_minor=26
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(etcd kubectl kube-apiserver kube-controller-manager vault)

say() { printf 'control-plane: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

if [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ "${programs[*]}" != vault ]; then
  for program in "${programs[@]}"; do
    [ "$program" = vault ] || [ -x "$KUBEBUILDER_ASSETS/$program" ] ||
      die "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no $program: add it, or unset the variable to build one"
  done
  echo "$KUBEBUILDER_ASSETS"
  exit 0
fi

# Another version of any of them is another folder.
sources=$(find "$here" \( -name go.mod -o -name '*.go' \) | LC_ALL=C sort | xargs -d '\n' cat | sha256sum | cut -c 1-12)
out=${XDG_CACHE_HOME:-$HOME/.cache}/jasm/control-plane/$kubernetes-$sources
mkdir -p "$out"
missing=()
for program in "${programs[@]}"; do [ -x "$out/$program" ] || missing+=("$program"); done
if [ ${#missing[@]} -eq 0 ]; then echo "$out"; exit 0; fi

command -v go >/dev/null || die "Go is not installed: install Go 1.$go_minor or newer (https://go.dev/doc/install), or set KUBEBUILDER_ASSETS to a folder with ${missing[*]}"
have=$(GOTOOLCHAIN=local go env GOVERSION | sed -n 's/^go1\.\([0-9]*\).*/\1/p')
[ "${have:-0}" -ge "$go_minor" ] || die "Go is too old ($(GOTOOLCHAIN=local go env GOVERSION)): install Go 1.$go_minor or newer (https://go.dev/doc/install)"

# One builder at a time, also when two checkouts start together.
exec 9>"$out/.lock"
flock -n 9 || { say "another build is under way, waiting for it"; flock 9; }

say "building ${missing[*]} (Kubernetes $kubernetes) into $out"
say "this happens once; cold, on two cores, all of it takes about 20 minutes (the API server alone 8, Vault 3)"
version=k8s.io/component-base/version
for program in "${missing[@]}"; do
  [ -x "$out/$program" ] && continue
  case $program in
    etcd) module=etcd package=go.etcd.io/etcd/server/v3 ;;
    coredns | vault) module=$program package=. ;;
    toxiproxy) module=toxiproxy package=github.com/Shopify/toxiproxy/v2/cmd/server ;;
    *) module=kubernetes package=k8s.io/kubernetes/cmd/$program ;;
  esac
  say "building $program ..."
  started=$SECONDS
  (cd "$here/$module" && CGO_ENABLED=0 GOFLAGS='-mod=readonly -trimpath -buildvcs=false' go build \
    -ldflags "-s -w -X $version.gitVersion=$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=37" \
    -o "$out/.$program.new" "$package" 2> >(grep -v '^go: downloading' >&2)) ||
    die "$program did not build; the compiler's message is above"
  mv "$out/.$program.new" "$out/$program"
  say "$program is ready after $((SECONDS - started)) s"
done
echo "$out"

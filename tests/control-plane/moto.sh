#!/usr/bin/env bash
# Installs moto (an emulator of AWS Secrets Manager, SSM and STS) from PyPI, once, into a cache outside the checkout.
# Prints the path of moto_server as the last line on stdout; all else goes to stderr.
set -euo pipefail
version=5.2.5

say() { printf 'control-plane: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

cache=${XDG_CACHE_HOME:-$HOME/.cache}/jasm
venv=$cache/moto-$version
# Written last: a folder without it is an installation that was cut short.
whole=$venv/.whole

ready() { [ -e "$whole" ] && "$venv/bin/python" -c '' 2>/dev/null; }
if ready; then echo "$venv/bin/moto_server"; exit 0; fi

command -v python3 >/dev/null ||
  die "python3 is not installed: install it (Debian, Ubuntu: apt-get install python3 python3-venv)"
python3 -c 'import ensurepip, venv' 2>/dev/null ||
  die "this python3 cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)"

# One installer at a time, also when two checkouts start together.
mkdir -p "$cache"
exec 9>"$cache/.moto-$version.lock"
flock -n 9 || { say "another installation of moto is under way, waiting for it"; flock 9; }
if ready; then echo "$venv/bin/moto_server"; exit 0; fi

say "installing moto $version into $venv (once, about a minute)"
started=$SECONDS
# A virtual environment holds its own path in its scripts, so that it is made in place and not moved there.
rm -rf "$venv"
python3 -m venv "$venv" >&2 || die "python3 -m venv $venv failed; its message is above"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "moto[server]==$version" >&2 9>&- ||
  die "pip could not install moto[server]==$version; its message is above (PyPI has to be reachable, once)"
"$venv/bin/python" -m compileall -q "$venv/lib" >/dev/null 2>&1 9>&- || true # only makes starts faster
touch "$whole"
say "moto is ready after $((SECONDS - started)) s"
echo "$venv/bin/moto_server"

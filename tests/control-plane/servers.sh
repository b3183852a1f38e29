# shellcheck shell=bash
# What up.sh and the node's scripts have in common: servers that are started, watched and ended together.
# Source it with `as` set to the name that messages begin with.

say() { printf '%s: %s\n' "$as" "$*" >&2 2>/dev/null || true; }
die() { say "error: $*"; exit 1; }

declare -A pid=() launched=() relaunched=()

# ---- the folder ----

# Makes the folder that holds all state and sets `dir` to it.
state_folder() { # DIR
  [ ! -e "$1" ] || [ -z "$(ls -A "$1")" ] || die "$1 is not empty: name an absent or an empty folder"
  umask 077
  mkdir -p "$1"
  dir=$(cd "$1" && pwd)
  [[ $dir =~ ^[A-Za-z0-9/._+@:-]+$ ]] ||
    die "$dir holds a character that a shell would have to quote in DIR/env: name another folder"
}

# ---- the end ----

finish() {
  local status=$?
  trap '' INT TERM HUP # the second Ctrl-C of an impatient user must not cut the cleaning short
  trap - EXIT
  set +e
  # Redirected as a whole, so that the shell tells of none of these deaths.
  end_servers 2>/dev/null
  clean
  [ "${KEEP_DIR:-}" = 1 ] || rm -rf "$dir"
  exit "$status"
}
# Each server gets its end with SIGTERM, and after three seconds with SIGKILL; a script may define its own.
end_servers() {
  local name deadline=$((SECONDS + 3))
  for name in "${!pid[@]}"; do kill -TERM -- "-${pid[$name]}" "${pid[$name]}"; done
  while [ "$SECONDS" -lt "$deadline" ] && any_left; do sleep 0.05; done
  for name in "${!pid[@]}"; do kill -KILL -- "-${pid[$name]}" "${pid[$name]}"; done
  wait
}
any_left() {
  local name
  for name in "${!pid[@]}"; do kill -0 -- "-${pid[$name]}" && return 0; done
  return 1
}
# What else has to be cleaned.
clean() { :; }

# From here on, whatever ends the script ends all it started.
watch_for_the_end() {
  trap finish EXIT
  # A second signal must not end the cleaning that the first began.
  trap 'trap "" INT TERM HUP; exit 0' INT TERM HUP
  # A reader of our messages that died must not end us before the servers are ended. Not ignored, since children inherit that.
  trap : PIPE
}

# Sleeps, and ends everything when stdin does.
pause() {
  local status=0
  read -r -t "$1" _ || status=$?
  [ "$status" -ne 1 ] || exit 0
}

# Stays until stdin ends, or one of the servers does.
stay() {
  local name
  while :; do
    for name in "${!pid[@]}"; do kill -0 "${pid[$name]}" 2>/dev/null || fail "$name" "ended by itself"; done
    pause 1
  done
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
      if [ -z "${relaunched[$name]:-}" ] && declare -F "launch_$name" >/dev/null && grep -qiE 'address already in use|port [0-9]+ is in use' "$dir/$name.log"; then
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

get() { curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "$@"; }

# The API server writes its own certificate first and the authority that signed it after; prints the authority.
authority_of() { # CERTIFICATE-CHAIN
  awk '/BEGIN CERTIFICATE/ { pem = "" } { pem = pem $0 "\n" } END { printf "%s", pem }' "$1"
}

# Runs a program that may take minutes the first time, and still ends with stdin; sets `path` to the last line it prints.
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

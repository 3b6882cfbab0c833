# What the scripts that build, make and measure models have in common. To be sourced from the root of the tree by a
# script whose first lines, up to "set", are its help:
#
#   wrong MESSAGE              ends it for wrong use
#   number OPTION VALUE        unless the value is a whole number of at least 1
#   at_least N OPTION VALUE    likewise, of at least N
#   port_base OPTION VALUE     likewise, a number on which the ports of the services begin
#   help                       prints the help and ends
#   say MESSAGE                fail MESSAGE ends it for what went wrong
#   build_programs PROGRAM...  sets $bin; builds unless $build is 0, and looks for the programs
#   claim FOLDER SETTINGS      for this script alone while it and its children run; refuses one that was
#                              begun with other settings: what came of them cannot be compared
#   digests FILE...            of recipes, and of the base parts: settings, too
#   run COMMAND...             a program whose end a signal to the script need not wait for: it is handed on
#   scenes FOLDER SEED COUNT FLAG...   a data set of llava-datagen; a finished one stays

script=$(basename "$0" .sh)
build=1
tower=deploy/models/emoji-tower
language=deploy/models/emoji-base

wrong() { echo "$script: $*; see deploy/$script.sh --help" >&2; exit 2; }
at_least() {
  [[ ${3:-} =~ ^[0-9]{1,9}$ ]] && [ "$3" -ge "$1" ] || wrong "$2 takes a number of at least $1"
}
number() { at_least 1 "$@"; }
port_base() { at_least 1024 "$@"; [ "$2" -le 65500 ] || wrong "$1 takes at most 65500"; }
help() { sed -n '2,/^set/s/^# \{0,1\}//p' "deploy/$script.sh"; exit 0; }
fail() { echo "$script: $*" >&2; exit 1; }
say() { printf '\033[1m%s:\033[0m %s\n' "$script" "$*"; }

build_programs() {
  local program log
  bin=${LLAVA_BIN_DIR:-build/release/bin}
  if [ "$build" = 1 ]; then
    run deploy/setup.sh
    . "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"
    log=$(dirname "$LLAVA_VENV")/configure.log
    say "configuring build/release"
    cmake --preset release >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
    say "building $*"
    run ninja -C build/release -j"${LLAVA_JOBS:-$(nproc)}" "$@"
  fi
  for program in "$@"; do
    [ -x "$bin/$program" ] || fail "$bin/$program is missing: run without --no-build"
  done
}

child=
stop_child() { if [ -n "$child" ]; then kill -TERM "$child" 2>/dev/null || true; wait "$child" || true; fi; }
trap stop_child EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
run() {
  "$@" &
  child=$!
  wait "$child"
  child=
}

scenes() {
  local folder=$1 seed=$2 count=$3
  shift 3
  [ -e "$folder/dataset.json" ] ||
    run "$bin/llava-datagen" scenes --out "$folder" --seed "$seed" --count "$count" "$@"
}

digests() { sha256sum "$@" "$tower"/*/manifest.json "$language"/*/manifest.json; }

claim() {
  local differences
  mkdir -p "$1"
  exec 9>"$1/.lock" # held by the children too: they outlive a script that is killed
  flock -n 9 || fail "another $script runs in $1"
  if [ ! -e "$1/settings" ]; then
    printf '%s\n' "$2" >"$1/settings.part"
    mv "$1/settings.part" "$1/settings"
  elif ! differences=$(diff "$1/settings" - <<<"$2"); then
    printf '%s\n' "$differences" >&2
    wrong "$1 was begun with other settings (<); choose another --out, or remove it"
  fi
}

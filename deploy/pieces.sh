# Pieces of work side by side, each in a process of its own with a log of its own. To be sourced after
# making.sh by a script that tells how a piece, a list of words, is called and where its log lies:
#
#   title_of WORD...   log_of WORD...
#   work WHAT FUNCTION "WORD ..."...   calls FUNCTION WORD... for each piece, $jobs at a time; a line for each
#                                      that ends, once a minute one for the others; a failure ends the script

declare -A running=() # process -> its piece
stop_pieces() {
  stop_child
  if [ ${#running[@]} -gt 0 ]; then kill -TERM "${!running[@]}" 2>/dev/null || true; wait || true; fi
}
trap stop_pieces EXIT

last_words() { tail -c 400 "$1" | tr '\r' '\n' | sed '/^ *$/d' | tail -n "${2:-1}"; }
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

begin() { # function, words...
  local log
  log=$(log_of "${@:2}")
  mkdir -p "$(dirname "$log")"
  (
    trap stop_child EXIT
    trap 'exit 143' TERM
    "$@"
  ) >>"$log" 2>&1 &
  running[$!]="${*:2}"
}

report_at=60 # of $SECONDS
wait_for_less() { # number of pieces
  while [ ${#running[@]} -ge "$1" ]; do
    local pid status piece log
    for pid in "${!running[@]}"; do
      read -ra piece <<<"${running[$pid]}"
      log=$(log_of "${piece[@]}")
      if kill -0 "$pid" 2>/dev/null; then
        [ $SECONDS -lt $report_at ] || say "    $(title_of "${piece[@]}"): $(last_words "$log")"
        continue
      fi
      unset "running[$pid]"
      status=0
      wait "$pid" || status=$?
      if [ $status != 0 ]; then
        last_words "$log" 3 >&2
        fail "$(title_of "${piece[@]}"): exit status $status; its log is $log"
      fi
      ended=$((ended + 1))
      say "$ended of $total: $(title_of "${piece[@]}") ($(minutes $SECONDS) since the start)"
    done
    [ $SECONDS -lt $report_at ] || report_at=$((SECONDS + 60))
    [ ${#running[@]} -lt "$1" ] || sleep 1
  done
}

work() {
  local what=$1 function=$2 piece
  shift 2
  total=$#
  ended=0
  [ "$total" -gt 0 ] || return 0
  say "$what: $total pieces"
  for piece in "$@"; do
    wait_for_less "$jobs"
    # shellcheck disable=SC2086 # words
    begin "$function" $piece
  done
  wait_for_less 1
}

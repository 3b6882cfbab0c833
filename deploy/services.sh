# Starts and stops the three services on one machine. To be sourced by quickstart.sh, datagen.sh and demo.sh:
#
#   services_start BIN TOWER MODEL FOLDER PORT_BASE   binaries, checkpoints, folder for logs and data
#   services_wait SECONDS                             until all are ready
#   services_stop                                     SIGTERM, wait, SIGKILL what hangs
#
# Ports are PORT_BASE + 0, 1, 2 (gateway: HTTP, gRPC, metrics), + 11, 12 (vision), + 21, 22 (LLM).
# Functions return nonzero after a message on standard error.

SERVICES=() # names, in order of start
declare -A SERVICE_PID=()
declare -A SERVICE_READY_PORT=()

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

services_start() {
  local bin=$1 tower=$2 model=$3 folder=$4 base=$5 offset name
  SERVICES_BIN=$bin SERVICES_FOLDER=$folder
  if [ ! -x "$bin/llava-probe" ]; then # by which services_wait sees them ready
    echo "$bin/llava-probe is missing: build it beside the services" >&2
    return 1
  fi
  for offset in 0 1 2 11 12 21 22; do
    if port_is_taken $((base + offset)); then
      echo "port $((base + offset)) is taken: stop what listens there, or choose other ports" \
        "with --port-base (now $base)" >&2
      return 1
    fi
  done
  mkdir -p "$folder/logs" "$folder/data"
  start_service vision 12 "$bin/llava-vision" --model "$tower" \
    --port $((base + 11)) --metrics-port $((base + 12))
  # The small default model answers best greedily.
  start_service llm 22 "$bin/llava-llm" --model "$model" --default-temperature 0 \
    --port $((base + 21)) --metrics-port $((base + 22))
  start_service gateway 2 "$bin/llava-gateway" --data-dir "$folder/data" \
    --vision "127.0.0.1:$((base + 11))" --llm "127.0.0.1:$((base + 21))" \
    --port $((base + 1)) --metrics-port $((base + 2)) --http-port "$base"
}

start_service() { # name, offset of its metrics port from $base, command...
  local name=$1 offset=$2
  shift 2
  # A process group of its own: Ctrl-C at the keyboard is for the chat, not for the services.
  setsid "$@" </dev/null >"$SERVICES_FOLDER/logs/$name.log" 2>&1 &
  SERVICES+=("$name")
  SERVICE_PID[$name]=$!
  SERVICE_READY_PORT[$name]=$((base + offset))
}

services_wait() {
  local deadline=$((SECONDS + $1)) name
  for name in "${SERVICES[@]}"; do
    until "$SERVICES_BIN/llava-probe" "${SERVICE_READY_PORT[$name]}" 2>/dev/null; do
      if ! kill -0 "${SERVICE_PID[$name]}" 2>/dev/null; then
        echo "llava-$name ended before it was ready. Its last lines ($SERVICES_FOLDER/logs):" >&2
        tail -n 5 "$SERVICES_FOLDER/logs/$name.log" >&2
        return 1
      fi
      if [ $SECONDS -ge $deadline ]; then
        echo "llava-$name is not ready after $1 s. Its last lines ($SERVICES_FOLDER/logs):" >&2
        tail -n 5 "$SERVICES_FOLDER/logs/$name.log" >&2
        return 1
      fi
      sleep 0.1
    done
  done
}

services_stop() {
  local name tries status=0
  for name in gateway llm vision; do # the gateway first: it ends its answers while the others live
    [ -n "${SERVICE_PID[$name]:-}" ] || continue
    # Its --drain-timeout (30 s) and what it takes to write all down.
    kill -TERM "${SERVICE_PID[$name]}" 2>/dev/null || continue
    for ((tries = 0; tries < 450; ++tries)); do
      kill -0 "${SERVICE_PID[$name]}" 2>/dev/null || continue 2
      sleep 0.1
    done
    echo "llava-$name did not end within 45 s of SIGTERM and is killed" >&2
    kill -KILL "${SERVICE_PID[$name]}" 2>/dev/null || true
    status=1
  done
  wait 2>/dev/null || true
  SERVICES=()
  SERVICE_PID=()
  return $status
}

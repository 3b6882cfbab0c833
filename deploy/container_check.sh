#!/usr/bin/env bash
# Builds the images and proves that they work: the scripted chat through the demo image, through
# deploy/compose.yaml and, where kubectl is, through deploy/kubernetes as far as podman can play it, with
# read-only root file systems and without capabilities; then takes all down.
#
#   deploy/container_check.sh [--cuda] [--keep-images]
#
# --cuda: the images for GPUs, too (some 15 GB more). Where a GPU is described to containers (`nvidia-ctk cdi
# generate`), they serve on it; else on the CPU, and say what is missing when asked for a GPU.
#
# Needs no container daemon and no image registry: the base image is made by debootstrap, buildah
# builds, podman runs (deploy/setup.sh --with-containers installs them; root is needed). Works in
# sandboxes without cgroup v2 and without the right to raise limits. Images and layers are kept in
# $LLAVA_CACHE/containers (20 GB and more; may be deleted), so that the next run is quick; --keep-images
# keeps the tags too.
set -euo pipefail
cd "$(dirname "$0")/.."

keep=0 cuda=0
for arg in "$@"; do
  case $arg in
    --keep-images) keep=1 ;;
    --cuda) cuda=1 ;;
    -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' deploy/container_check.sh; exit 0 ;;
    *) echo "container_check: unknown option $arg; see --help" >&2; exit 2 ;;
  esac
done
say() { printf '\033[1mcontainers:\033[0m %s (%d s)\n' "$*" "$SECONDS"; }
fail() { echo "container_check: $*" >&2; exit 1; }

deploy/setup.sh --with-containers
. "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"
work=$(dirname "$LLAVA_VENV")/containers
mkdir -p "$work/ccache"
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
export BUILDAH_ISOLATION=chroot
# runc with plain cgroup files runs on any cgroup layout; the limits are within what an
# unprivileged sandbox may set.
cat >"$CONTAINERS_CONF" <<'END'
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
netns = "host"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/storage"\nrunroot = "%s/run"\n' \
  "$work" "$work" >"$CONTAINERS_STORAGE_CONF"

base=localhost/debian:bookworm-slim
if ! podman image exists $base; then
  say "making the base image"
  mirror=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null ||
    awk '/^deb / { print $2; exit }' /etc/apt/sources.list)
  rm -rf "$work/base"
  debootstrap --variant=minbase bookworm "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 || {
    tail "$work/debootstrap.log" >&2
    fail "debootstrap failed"
  }
  : >"$work/base/etc/apt/sources.list" # the build mounts this machine's own
  rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/* \
    "$work"/base/usr/share/{doc,man,locale}/*
  tar -C "$work/base" --numeric-owner --exclude='./dev/*' -cf - . | podman import -q - $base
  rm -rf "$work/base"
fi

# Only while building: where this machine gets packages from, and whom it trusts for that.
mounts=(-v /etc/apt/sources.list.d:/etc/apt/sources.list.d:ro -v "$work/ccache:/opt/llava-cache/ccache")
for file in /etc/apt/apt.conf.d/99*; do
  if [ -f "$file" ]; then mounts+=(-v "$file:/etc/apt/apt.conf.d/$(basename "$file")-host:ro"); fi
done
authorities=${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}
if [ -f "$authorities" ]; then # not at its own path, which a package of the image writes
  mounts+=(-v "$authorities:/etc/build-authorities.crt:ro" -v "$work/pip.conf:/etc/pip.conf:ro")
  printf '[global]\ncert = /etc/build-authorities.crt\n' >"$work/pip.conf"
  if [ -n "${PIP_INDEX_URL:-}" ]; then echo "index-url = $PIP_INDEX_URL" >>"$work/pip.conf"; fi
fi
# What the programs are to name; as CMake asks git, which the images' build cannot.
revision=$(git describe --always --dirty=+ --abbrev=10 2>/dev/null || echo unknown)
build() { # image, target, preset
  say "building llava-$1"
  buildah bud --network host --format docker --layers --pull-never "${mounts[@]}" --build-arg BASE=$base \
    --build-arg "REVISION=$revision" --build-arg "PRESET=$3" --target "$2" -t "llava-$1:local" . >"$work/build-$1.log" 2>&1 || {
    tail -n 30 "$work/build-$1.log" >&2
    fail "the $1 image could not be built ($work/build-$1.log)"
  }
}
images=(gateway vision llm prometheus demo)
for name in "${images[@]}"; do build "$name" "$name" release; done
services=(gateway vision llm)
if [ $cuda = 1 ]; then
  for name in vision llm; do build "$name-cuda" "$name" cuda; done
  images+=(vision-cuda llm-cuda)
  services+=(vision-cuda llm-cuda)
fi
podman images --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep llava-

say "looking into the images"
for name in "${images[@]}"; do
  user=$(podman image inspect "llava-$name:local" --format '{{.Config.User}}')
  [ "$user" = 10001:10001 ] || fail "the $name image runs as $user"
done
# Podman wants systemd for health checks by the clock and complains without it.
podman() { command podman "$@" 2> >(grep -v 'systemd connection' >&2); }
inside() { podman run --rm --user 0 --entrypoint "$2" "llava-$1:local" "${@:3}"; }
torch=$(inside gateway find / -xdev -name 'libtorch*') || fail "the gateway image cannot be looked through"
[ -z "$torch" ] || fail "the gateway image has LibTorch: $torch"
for name in "${services[@]}" demo; do
  # `true`: grep's status is that of the last file; a container that does not run is a failure of its own.
  sources=$(inside $name sh -c 'grep -rhsE "^(deb|URIs)" /etc/apt /etc/pip.conf; true') || fail "the $name image runs no shell"
  if [ -n "$sources" ]; then
    echo "$sources" >&2
    fail "the $name image knows where this machine gets its packages"
  fi
done
for notice in deploy/scenes-data/LICENSE.*; do
  inside demo cat "/opt/llava/scenes/$(basename "$notice")" | cmp - "$notice" || fail "the demo image lacks $notice"
done
for name in "${services[@]}"; do
  version=$(inside "$name" "llava-${name%-cuda}" --version)
  echo "$version"
  [[ $version == *"(commit $revision,"* ]] || fail "the $name image does not name its commit, $revision"
done

picture=/opt/llava/scenes/guitar_and_apple.png
questions=(--image "$picture" --temperature 0 --message "What is in the picture?" --message "How many things are there?")
check_answers() { # file
  cat "$1"
  if ! grep -qi guitar "$1" || ! grep -qi two "$1"; then fail "the answers are not about a guitar and an apple"; fi
}
sandbox=(--read-only --cap-drop all --security-opt no-new-privileges --tmpfs /tmp)
chat() {
  podman run --rm "${sandbox[@]}" --entrypoint llava-chat llava-demo:local "${questions[@]}" </dev/null
}

compose=(timeout 120 "$LLAVA_VENV/bin/podman-compose" -f deploy/compose.yaml)
cleanup() {
  podman rm -f -t 45 llava-demo-check llava-{vision,llm,gateway}-check >/dev/null 2>&1 || true
  "${compose[@]}" down -v >/dev/null 2>&1 || true
  if [ -f "$work/kubernetes.yaml" ]; then podman kube down "$work/kubernetes.yaml" >/dev/null 2>&1 || true; fi
  if [ $keep = 0 ]; then for name in "${images[@]}"; do podman untag "llava-$name:local" || true; done; fi
}
trap cleanup EXIT

say "demo image: two questions"
podman run --rm "${sandbox[@]}" llava-demo:local "${questions[@]}" \
  >"$work/demo.txt" </dev/null || fail "the demo failed"
check_answers "$work/demo.txt"

say "demo image: services until SIGTERM"
podman rm -f -t 45 llava-{demo,vision,llm,gateway}-check >/dev/null 2>&1 || true # of an interrupted run
podman run -d --name llava-demo-check "${sandbox[@]}" llava-demo:local >/dev/null
wait_ready() { # seconds, ports...
  local deadline=$((SECONDS + $1)) port
  for port in "${@:2}"; do
    until "$LLAVA_VENV/bin/python" -c \
      "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port/readyz')" 2>/dev/null; do
      [ $SECONDS -lt $deadline ] || return 1
      sleep 0.2
    done
  done
}
wait_ready 60 8002 || { podman logs llava-demo-check >&2; fail "the demo is not ready"; }
podman healthcheck run llava-demo-check || fail "its health check fails"
podman stop -t 45 llava-demo-check >/dev/null
code=$(podman inspect llava-demo-check --format '{{.State.ExitCode}}')
[ "$code" = 0 ] || fail "the demo ended with $code on SIGTERM"
podman rm llava-demo-check >/dev/null

say "compose: all services"
"${compose[@]}" up -d --no-build >"$work/compose.log" 2>&1 || {
  tail "$work/compose.log" >&2
  fail "compose up failed"
}
wait_ready 60 8012 8022 8002 || { "${compose[@]}" logs >&2; fail "the services are not ready"; }
chat >"$work/compose.txt" || fail "the chat failed"
check_answers "$work/compose.txt"
cmp "$work/demo.txt" "$work/compose.txt" || fail "the answers differ from the demo's"

say "compose: Prometheus scrapes all three"
for _ in $(seq 60); do
  up=$("$LLAVA_VENV/bin/python" -c '
import json, urllib.request
query = "http://127.0.0.1:9090/api/v1/query?query=sum(up)"
print(json.load(urllib.request.urlopen(query))["data"]["result"][0]["value"][1])' 2>/dev/null || true)
  if [ "$up" = 3 ]; then break; fi
  sleep 0.5
done
[ "$up" = 3 ] || fail "Prometheus sees ${up:-no} services"

say "compose: every service ends on SIGTERM"
"${compose[@]}" stop -t 45 >/dev/null 2>&1
for name in gateway vision llm; do
  id=$(podman ps -a --filter "ancestor=localhost/llava-$name:local" --format '{{.ID}}')
  code=$(podman inspect "$id" --format '{{.State.ExitCode}}')
  [ "$code" = 0 ] || fail "$name ended with $code"
done
"${compose[@]}" down -v >/dev/null 2>&1 || true

if [ $cuda = 1 ]; then
  device=cpu
  if compgen -G '/etc/cdi/*' >/dev/null || compgen -G '/var/run/cdi/*' >/dev/null; then device=cuda:0; fi
  say "CUDA images: two questions, on $device"
  start() { # name, arguments of podman..., image, arguments of its program...
    podman run -d --name "llava-$1-check" "${sandbox[@]}" -v "$PWD/deploy/models:/models:ro" "${@:2}" >/dev/null
  }
  gpu=()
  if [ $device != cpu ]; then gpu=(--device nvidia.com/gpu=all); fi
  start vision "${gpu[@]}" llava-vision-cuda:local --host 127.0.0.1 --model /models/emoji-tower --device $device
  start llm "${gpu[@]}" llava-llm-cuda:local --host 127.0.0.1 --model /models/emoji --device $device --default-temperature 0
  start gateway llava-gateway:local --host 127.0.0.1 --data-dir /tmp --vision 127.0.0.1:8011 --llm 127.0.0.1:8021
  wait_ready 120 8012 8022 8002 || {
    for name in vision llm gateway; do podman logs "llava-$name-check" >&2; done
    fail "the services are not ready"
  }
  chat >"$work/cuda.txt" || fail "the chat failed"
  check_answers "$work/cuda.txt"
  podman stop -t 45 llava-{gateway,llm,vision}-check >/dev/null
  for name in gateway llm vision; do
    code=$(podman inspect "llava-$name-check" --format '{{.State.ExitCode}}')
    [ "$code" = 0 ] || fail "$name ended with $code"
    podman rm "llava-$name-check" >/dev/null
  done
  if [ $device = cpu ]; then
    code=0
    podman run --rm "${sandbox[@]}" -v "$PWD/deploy/models:/models:ro" llava-llm-cuda:local --host 127.0.0.1 \
      --model /models/emoji --device cuda:0 || code=$?
    [ $code = 5 ] || fail "without a GPU llava-llm ended with $code, not with 5"
  fi
fi

if ! command -v kubectl >/dev/null; then
  say "kubernetes: skipped, kubectl is missing"
else
  say "kubernetes: the demo overlay, reduced to what podman can play"
  rm -rf "$work/volumes" && mkdir "$work/volumes"
  kubectl kustomize deploy/kubernetes/overlays/demo |
    "$LLAVA_VENV/bin/python" tests/deploy/kube_play.py "$work/volumes" >"$work/kubernetes.yaml"
  podman kube play --replace "$work/kubernetes.yaml" >"$work/kubernetes.log" 2>&1 || {
    tail "$work/kubernetes.log" >&2
    fail "kube play failed"
  }
  wait_ready 60 8012 8022 8002 || fail "the pods are not ready"
  chat >"$work/kubernetes.txt" || fail "the chat failed"
  cmp "$work/demo.txt" "$work/kubernetes.txt" || fail "the answers differ from the demo's"

  say "kubernetes: a published version is served without a restart"
  repository=$work/volumes/llava-llm-models/emoji # as a trainer: under another name until all is there
  cp -r "$repository/1" "$repository/.tmp-check" && mv "$repository/.tmp-check" "$repository/2"
  served() {
    "$LLAVA_VENV/bin/python" -c '
import urllib.request
page = urllib.request.urlopen("http://127.0.0.1:8022/metrics").read().decode()
print([line for line in page.splitlines() if "_version_state" in line and "ready" in line and line.endswith(" 1")])'
  }
  for _ in $(seq 150); do
    if [[ $(served) == *'version="2"'* ]]; then break; fi
    sleep 0.2
  done
  [[ $(served) == *'version="2"'* ]] || fail "version 2 is not served: $(served)"
  chat | cmp "$work/demo.txt" - || fail "version 2 answers otherwise"

  say "kubernetes: a backup, and every pod ends on SIGTERM"
  for command in "--backup /var/lib/llava/backup" "--restore /var/lib/llava/backup --data-dir /var/lib/llava/new"; do
    # shellcheck disable=SC2086  # words of a command
    podman exec llava-gateway-pod-0-gateway llava-gateway $command || fail "llava-gateway $command"
  done
  for name in gateway vision llm; do
    podman pod stop -t 60 "llava-$name-pod-0" >/dev/null
    code=$(podman inspect "llava-$name-pod-0-$name" --format '{{.State.ExitCode}}')
    [ "$code" = 0 ] || fail "$name ended with $code"
  done
fi
say "all fine"

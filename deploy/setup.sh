#!/usr/bin/env bash
# Installs all that building, testing and running needs on Debian 12: Debian packages, LibTorch
# (the PyPI wheel, unpacked outside the tree) and a Python environment for tools and tests.
#
#   deploy/setup.sh [--with-cuda] [--with-containers] [--with-peers]
#
#   --with-cuda         CUDA's compiler and the libraries that LibTorch wants, for
#                       `cmake --preset cuda`; only NVIDIA's driver is left to the machine
#   --with-containers   what deploy/container_check.sh builds and runs images with: buildah, podman,
#                       podman-compose
#   --with-peers        what tests/bench compares with (transformers and PyTorch, several GB), in an
#                       environment of its own
#
# Asks nothing, may be run again at any time (what is there is kept), needs root or sudo only for
# missing packages. The cache folder is $LLAVA_CACHE (default ~/.cache/llava-serving).
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH_VERSION=2.11.0
CUDA_VERSION=13.0.2 # the one that this LibTorch requires
CACHE=${LLAVA_CACHE:-$HOME/.cache/llava-serving}
TORCH_ROOT=$CACHE/libtorch-$TORCH_VERSION
VENV=$CACHE/venv

PACKAGES=(
  # toolchain
  g++ cmake ninja-build mold ccache clang-format pkg-config git unzip curl python3 python3-pip python3-venv
  # wire, services
  libgrpc++-dev libprotobuf-dev protobuf-compiler protobuf-compiler-grpc libabsl-dev
  libspdlog-dev libfmt-dev prometheus-cpp-dev libcli11-dev libyaml-cpp-dev libsqlite3-dev libssl-dev
  libboost-dev nlohmann-json3-dev
  # teachers and judges behind OpenAI's protocol
  libcurl4-openssl-dev ca-certificates
  # pictures; the reference BLAS keeps OpenBLAS (threads, large static TLS) out of our processes
  libopencv-core-dev libopencv-imgproc-dev libopencv-imgcodecs-dev libblas3 liblapack3
  # tests
  libgtest-dev libgmock-dev sentencepiece prometheus
)
WITH_CUDA=0
WITH_CONTAINERS=0
WITH_PEERS=0
for arg in "$@"; do
  case $arg in
    --with-cuda) WITH_CUDA=1 ;;
    --with-containers)
      WITH_CONTAINERS=1
      PACKAGES+=(buildah podman runc debootstrap catatonit)
      ;;
    --with-peers) WITH_PEERS=1 ;;
    *)
      echo "setup: unknown option $arg (known: --with-cuda, --with-containers, --with-peers)" >&2
      exit 2
      ;;
  esac
done

say() { printf '\033[1msetup:\033[0m %s\n' "$*"; }
quoted() { printf "'%s'" "${1//\'/\'\\\'\'}"; } # for any shell
# An environment of which an interrupted run left the interpreter alone has none.
has_pip() { "$1/bin/pip" --version >/dev/null 2>&1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Two first runs at once would write the same folders.
mkdir -p "$CACHE"
exec 9>"$CACHE/.lock"
flock -n 9 || { say "waiting for another setup.sh in $CACHE"; flock 9; }

missing=()
for package in "${PACKAGES[@]}"; do
  state=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null || true)
  [[ $state == ii* ]] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "installing Debian packages: ${missing[*]}"
  apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; } # sudo drops variables
  # Packages that bring a daemon must not start it: the tests run their own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod +x $policy
    trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt_get update
  apt_get install -y --no-install-recommends "${missing[@]}"
  if [ -n "$(trap -p EXIT)" ]; then
    as_root rm -f $policy
    trap - EXIT
  fi
fi

# Triton's client excludes the protobuf that grpcio-tools needs, but works with it.
without_needs=(tritonclient==2.73.0)
wanted=$(cat deploy/requirements.txt && printf '%s\n' "${without_needs[@]}")
if [ "$(cat "$VENV/.ok" 2>/dev/null)" != "$wanted" ]; then
  say "Python environment in $VENV"
  # Debian's own interpreter: its version decides which wheels fit, whatever else is on the PATH.
  has_pip "$VENV" || /usr/bin/python3 -m venv --clear "$VENV"
  "$VENV/bin/pip" install -q --disable-pip-version-check -r deploy/requirements.txt
  "$VENV/bin/pip" install -q --disable-pip-version-check --no-deps "${without_needs[@]}"
  printf '%s\n' "$wanted" >"$VENV/.ok"
fi
if [ $WITH_CONTAINERS = 1 ] && [ ! -x "$VENV/bin/podman-compose" ]; then
  "$VENV/bin/pip" install -q --disable-pip-version-check podman-compose==1.6.0
fi

fetch_wheels() { # folder, requirement...
  local folder=$1; shift
  "$VENV/bin/pip" download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$folder" "$@"
}

if [ ! -e "$TORCH_ROOT/.ok" ]; then
  say "LibTorch $TORCH_VERSION in $TORCH_ROOT (530 MB to fetch)"
  rm -rf "$CACHE"/torch.??????  # of interrupted runs
  work=$(mktemp -d "$CACHE/torch.XXXXXX")
  # libtorch_cpu needs the CUDA runtime and CUPTI libraries (5 MB) even where no GPU is.
  fetch_wheels "$work" "torch==$TORCH_VERSION" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85
  for wheel in "$work"/*.whl; do unzip -q "$wheel" -d "$work/root"; done
  # Headers that would shadow Debian's own protobuf and fmt.
  mkdir "$work/root/torch/include_shadow"
  mv "$work/root/torch/include/google" "$work/root/torch/include/fmt" "$work/root/torch/include_shadow/"
  rm -rf "$work/root/torch/lib/libtorch_python.so" "$work/root/torch/bin" "$work/root/torchgen"
  rm -rf "$TORCH_ROOT"
  mv "$work/root" "$TORCH_ROOT"
  rm -rf "$work"
  touch "$TORCH_ROOT/.ok"
fi
CUDA_ROOT=$TORCH_ROOT/nvidia/cu13
if [ $WITH_CUDA = 1 ] && [ ! -e "$TORCH_ROOT/.cuda-$CUDA_VERSION" ]; then
  say "CUDA $CUDA_VERSION in $CUDA_ROOT (1.9 GB to fetch)"
  rm -rf "$CACHE"/cuda.??????
  work=$(mktemp -d "$CACHE/cuda.XXXXXX")
  # The toolkit's extras name the wheels of its version; the others are as LibTorch's wheel requires them.
  "$VENV/bin/pip" download -q --disable-pip-version-check --only-binary=:all: -d "$work" \
    "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart,cupti,nvrtc,nvjitlink,cublas,cufft,cufile,curand,cusolver,cusparse]==$CUDA_VERSION"
  fetch_wheels "$work" nvidia-cudnn-cu13==9.19.0.56 nvidia-nccl-cu13==2.28.9 nvidia-cusparselt-cu13==0.8.0 \
    nvidia-nvshmem-cu13==3.4.5
  for wheel in "$work"/*.whl; do unzip -q -o "$wheel" -d "$TORCH_ROOT"; done
  # Where nvcc and CMake look, and the name that is linked with.
  ln -sfn lib "$CUDA_ROOT/lib64"
  ln -sf libcudart.so.13 "$CUDA_ROOT/lib/libcudart.so"
  rm -rf "$work"
  touch "$TORCH_ROOT/.cuda-$CUDA_VERSION"
fi

PEERS=$CACHE/peers
if [ $WITH_PEERS = 1 ] && ! cmp -s tests/bench/requirements.txt "$PEERS/.ok"; then
  say "transformers and PyTorch in $PEERS (3 GB to fetch)"
  has_pip "$PEERS" || /usr/bin/python3 -m venv --clear "$PEERS"
  "$PEERS/bin/pip" install -q --disable-pip-version-check -r tests/bench/requirements.txt
  cp tests/bench/requirements.txt "$PEERS/.ok"
fi

# What the other scripts and CMake read.
cat > "$CACHE/env.sh" <<EOF
export LLAVA_TORCH_DIR=$(quoted "$TORCH_ROOT/torch")
export LLAVA_VENV=$(quoted "$VENV")
export CCACHE_DIR="\${CCACHE_DIR:-}"
[ -n "\$CCACHE_DIR" ] || export CCACHE_DIR=$(quoted "$CACHE/ccache")
EOF
if [ -x "$CUDA_ROOT/bin/nvcc" ]; then
  echo "[ -n \"\${CUDACXX:-}\" ] || export CUDACXX=$(quoted "$CUDA_ROOT/bin/nvcc")" >>"$CACHE/env.sh"
fi
say "ready ($CACHE)"

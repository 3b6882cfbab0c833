#!/usr/bin/env bash
# Collects what programs need to run on a bare Debian: the programs without symbols, the libraries of
# LibTorch and CUDA that they load, and the names of the Debian packages of all others.
#
#   deploy/collect_runtime.sh OUT PROGRAM...
#
# Writes OUT/bin, OUT/lib and OUT/packages; files of OUT/lib may be links to those of the cache, so change none.
# Used by the Dockerfile.
set -euo pipefail
. "${LLAVA_CACHE:-$HOME/.cache/llava-serving}/env.sh"

out=$1
shift
torch=$(dirname "$LLAVA_TORCH_DIR")
mkdir -p "$out/bin" "$out/lib"
if ldd "$@" | grep 'not found'; then
  echo "collect_runtime: a program lacks libraries" >&2
  exit 1
fi
for program in "$@"; do strip -o "$out/bin/$(basename "$program")" "$program"; done

# Linked where that can be, so that the layer of an image with several programs has each library once.
take() { ln -f "$1" "$2" 2>/dev/null || cp "$1" "$2"; }

# What cuDNN and LibTorch open by name when they need it, beside its like.
late() { # library
  case $(basename "$1") in
    libcudnn.so.*) ls "$(dirname "$1")"/libcudnn_*.so.* ;;
    libtorch_cuda.so) ls "$(dirname "$1")/libcaffe2_nvrtc.so" "$torch"/nvidia/cu13/lib/libnvrtc{,-builtins}.so.* ;;
  esac
}

debian=()
for library in $(ldd "$@" | awk '$2 == "=>" { print $3 }' | sort -u); do
  real=$(readlink -f "$library")
  case $real in
    "$torch"/*)
      take "$real" "$out/lib/$(basename "$library")"
      more=$(late "$real") # one that is missing ends this
      for file in $more; do take "$file" "$out/lib/$(basename "$file")"; done
      ;;
    *) debian+=("$real") ;;
  esac
done
# Packages know files under /lib, which is a link to /usr/lib, by either path.
owners=$(dpkg-query -S "${debian[@]}" "${debian[@]#/usr}" 2>/dev/null || true)
files=$(sed 's/.*: //' <<<"$owners")
for library in "${debian[@]}"; do
  if ! grep -qFx -e "$library" -e "${library#/usr}" <<<"$files"; then
    echo "collect_runtime: no Debian package has $library" >&2
    exit 1
  fi
done
cut -d: -f1 <<<"$owners" | sort -u >"$out/packages"

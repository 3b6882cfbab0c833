#!/usr/bin/env bash
# Collects the services, the clients and llava-model of a CUDA build, with all that they load but
# LibTorch, CUDA and the C and C++ libraries, into one small archive, for a GPU machine that has
# those and no network: see services.sh.
#
#   tests/gpu/bundle.sh [OUT [BUILD...]]     default: build/services.tar.xz build/cuda build/release
#
# Each program comes from the first build that has it. llava-vision, llava-llm and llava-train must be
# of a build with CUDA (`cmake --preset cuda && ninja -C build/cuda llava-vision llava-llm llava-train`;
# LLAVA_GPU_DEVICE=cpu: of any, to try services.sh where no GPU is).
# In the archive: bin/, lib/, VERSION. Debian's OpenCV reads geographic and medical pictures with
# 60 MB of libraries that no format of ours needs; stand-ins whose functions return zero take their
# place.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:-build/services.tar.xz}
builds=("${@:2}")
[ ${#builds[@]} -gt 0 ] || builds=(build/cuda build/release)
programs=(llava-gateway llava-vision llava-llm llava-chat llava-bench llava-model llava-train)
# What the GPU machine has.
there='^(ld-linux.*|lib(c|m|dl|rt|pthread|resolv|stdc\+\+|gcc_s|gomp|torch|torch_cpu|torch_cuda|c10|c10_cuda|cudart))\.so'
replaced='^lib(gdal|gdcm[A-Za-z]*)\.so'

needed() { readelf -d "$@" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin" "$work/lib"
for program in "${programs[@]}"; do
  file=$(find "${builds[@]/%//bin}" -maxdepth 1 -name "$program" -print -quit)
  [ -n "$file" ] || { echo "bundle: no $program in ${builds[*]}" >&2; exit 1; }
  if [[ $program =~ -(vision|llm|train)$ && ${LLAVA_GPU_DEVICE:-} != cpu ]] && ! needed "$file" | grep '^libtorch_cuda' >/dev/null; then
    echo "bundle: $file is built without CUDA" >&2
    exit 1
  fi
  [ "$program" != llava-llm ] || "$file" --version >"$work/VERSION"
  strip -o "$work/bin/$program" "$file"
done

find_library() { ldconfig -p | sed -n "s|^[[:space:]]*$1 .*x86-64.* => ||p" | head -n 1; }

# stand_in NAME FILE USER...: a library of that name with the functions that USER wants of FILE.
stand_in() {
  local name=$1 file=$2
  shift 2
  {
    nm -D --undefined-only "$@" | awk 'NF { print $NF }' | sort -u |
      join - <(nm -D --defined-only "$file" | awk '{ print $NF }' | sort -u) |
      sed 's/.*/.globl &\n.type &, @function\n&:/'
    printf 'xorl %%eax, %%eax\nret\n.section .note.GNU-stack,"",@progbits\n'
  } | cc -shared -nostdlib -x assembler -Wl,-soname,"$name" -o "$work/lib/$name" -
}

# Libraries of libraries, until nothing new comes.
mapfile -t queue < <(needed "$work"/bin/*)
while [ ${#queue[@]} -gt 0 ]; do
  name=${queue[0]}
  queue=("${queue[@]:1}")
  if [ -e "$work/lib/$name" ] || [[ $name =~ $there ]]; then continue; fi
  file=$(find_library "$name")
  [ -n "$file" ] || { echo "bundle: no $name here" >&2; exit 1; }
  if [[ $name =~ $replaced ]]; then
    stand_in "$name" "$file" "$(find_library libopencv_imgcodecs.so.406)"
    continue
  fi
  strip --strip-unneeded -o "$work/lib/$name" "$file"
  mapfile -t -O ${#queue[@]} queue < <(needed "$file")
done

mkdir -p "$(dirname "$out")"
XZ_OPT=-6 tar -C "$work" -cJf "$out" bin lib VERSION
du -sh "$work/bin" "$work/lib" "$out"

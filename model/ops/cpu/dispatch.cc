#include <cstdlib>
#include <stdexcept>
#include <string>

#include "model/ops/cpu/isa_kernels.h"

LLAVA_DECLARE_KERNELS(portable)
#ifdef LLAVA_X86
LLAVA_DECLARE_KERNELS(avx2)
LLAVA_DECLARE_KERNELS(avx512)
LLAVA_DECLARE_KERNELS(avx512vnni)
LLAVA_DECLARE_KERNELS(amx)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace llava::ops::cpu {
namespace {

#define LLAVA_KERNELS(isa)                                                                         \
  Kernels {                                                                                        \
    .name = #isa, .rms_norm = isa::RmsNorm, .rms_norm_backward = isa::RmsNormBackward,             \
    .swiglu = isa::SwiGlu, .swiglu_backward = isa::SwiGluBackward,                                 \
    .attention_scratch = isa::AttentionScratch, .attention = isa::Attention,                       \
    .attention_backward = isa::AttentionBackward,                                                  \
    .full_attention_scratch = isa::FullAttentionScratch, .full_attention = isa::FullAttentionHead, \
    .pack = isa::Pack, .prepare = isa::Prepare, .multiply_panel = isa::MultiplyPanel,              \
    .finish = isa::Finish, .write_kv = isa::WriteKv, .attend_scratch = isa::AttendScratch,         \
    .attend = isa::Attend, .finish_attend = isa::FinishAttend                                      \
  }

#ifdef LLAVA_X86
// Tiles are there once the kernel has allowed this process to use them.
bool MayUseTiles() {
#ifdef __linux__
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTiles = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return (d & kTiles) == kTiles && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<Kernels> FindAvailable() {
  std::vector<Kernels> found;
#ifdef LLAVA_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const bool vnni =
      avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
  if (vnni && MayUseTiles()) found.push_back(LLAVA_KERNELS(amx));
  if (vnni) found.push_back(LLAVA_KERNELS(avx512vnni));
  if (avx512) found.push_back(LLAVA_KERNELS(avx512));
  if (avx2) found.push_back(LLAVA_KERNELS(avx2));
#endif
  found.push_back(LLAVA_KERNELS(portable));
  return found;
}

const Kernels& Choose() {
  const char* wanted = std::getenv("LLAVA_CPU");
  if (wanted == nullptr || *wanted == '\0') return Available().front();
  std::string names;
  for (const Kernels& kernels : Available()) {
    if (kernels.name == wanted) return kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels.name);
  }
  throw std::invalid_argument("LLAVA_CPU=" + std::string(wanted) +
                              " names no instruction set of this processor; it has " + names);
}

}  // namespace

const std::vector<Kernels>& Available() {
  static const std::vector<Kernels> kAvailable = FindAvailable();
  return kAvailable;
}

const Kernels& Best() {
  static const Kernels& kBest = Choose();
  return kBest;
}

}  // namespace llava::ops::cpu

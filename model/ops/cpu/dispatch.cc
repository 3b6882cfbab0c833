#include <cstdlib>
#include <stdexcept>
#include <string>

#include "model/ops/cpu/isa_kernels.h"

LLAVA_DECLARE_KERNELS(portable)
#ifdef LLAVA_X86
LLAVA_DECLARE_KERNELS(avx2)
LLAVA_DECLARE_KERNELS(avx512)
#endif

namespace llava::ops::cpu {
namespace {

#define LLAVA_KERNELS(isa)                                                             \
  Kernels {                                                                            \
    .name = #isa, .rms_norm = isa::RmsNorm, .rms_norm_backward = isa::RmsNormBackward, \
    .swiglu = isa::SwiGlu, .swiglu_backward = isa::SwiGluBackward,                     \
    .attention_scratch = isa::AttentionScratch, .attention = isa::Attention,           \
    .attention_backward = isa::AttentionBackward                                       \
  }

std::vector<Kernels> FindAvailable() {
  std::vector<Kernels> found;
#ifdef LLAVA_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    found.push_back(LLAVA_KERNELS(avx512));
  }
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

#pragma once

#include "model/ops/cpu/isa_kernels.h"

namespace llava::ops::cpu::LLAVA_ISA {

// 0 and false: not by tiles.
int64_t FullTilesScratch(const FullAttention& task);
bool FullAttentionByTiles(const FullAttention& task, float* scratch);

}  // namespace llava::ops::cpu::LLAVA_ISA

#pragma once

#include "model/ops/cpu/paged.h"

namespace llava::ops::cpu::LLAVA_ISA {

// Scratch of attend by tiles; 0: the instruction set has none, or not for this element.
int64_t TilesScratch(const KvLayout& layout, int64_t rows);
// Returns false in that case.
bool AttendByTiles(const AttendTask& task);

}  // namespace llava::ops::cpu::LLAVA_ISA

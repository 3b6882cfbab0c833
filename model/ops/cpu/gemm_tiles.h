#pragma once

#include "model/ops/cpu/gemm.h"

namespace llava::ops::cpu::LLAVA_ISA {

// By AMX, where the instruction set has it and it pays; otherwise returns false and does nothing.
bool MultiplyPanelByTiles(const PanelTask& task);

}  // namespace llava::ops::cpu::LLAVA_ISA

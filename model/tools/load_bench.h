#pragma once

#include "model/tools/commands.h"

namespace llava {

// llava-model bench --load: opens a language model as llava-llm does, every file checked, and
// builds what it serves on the CPU. Prints time, speed and peak memory. What the page cache holds
// of the files is the caller's business.
void RunLoadBench(const BenchCommand& command);

}  // namespace llava

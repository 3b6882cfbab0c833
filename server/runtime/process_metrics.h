#pragma once

#include "server/runtime/metrics.h"

namespace llava {

// Sets what is told of this process itself when somebody asks: memory, descriptors, certificates.
// Thread-safe.
void ShowProcess(Metrics& metrics);

}  // namespace llava

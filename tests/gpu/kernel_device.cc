#include "tests/model/ops/kernel_device.h"

#include <ATen/Context.h>

namespace llava::cuda {

at::Device KernelDevice() { return at::Device(at::kCUDA, 0); }
bool HasKernelDevice() { return at::globalContext().hasCUDA(); }
void RunThreadsBackwards(bool) {}
bool RefuseGraphs(bool) { return false; }

}  // namespace llava::cuda

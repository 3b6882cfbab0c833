#include "model/ops/cuda/launcher.h"

namespace llava::cuda {

void SampleTokens(const SampleArgs& args, int64_t count, Stream stream) {
  // Behind a graph: nothing of ours is known to end.
  DispatchSample(DeviceLauncher{stream, /*early=*/false}, args, count);
}

}  // namespace llava::cuda

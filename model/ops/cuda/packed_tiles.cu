#include "model/ops/cuda/launcher.h"

namespace llava::cuda {

int SlicesOf(const PackedWeights& weight) { return TileSlices(weight); }

void MultiplyPackedTiles(const PackedProductArgs& args, float* partial, Stream stream) {
  DispatchPackedTiles(DeviceLauncher{stream}, args, partial);
}

}  // namespace llava::cuda

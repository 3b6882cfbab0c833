#include "model/ops/cuda/launcher.h"

namespace llava::cuda {

void MultiplyPacked(const PackedProductArgs& args, Stream stream) {
  DispatchPackedProduct(DeviceLauncher{stream}, args);
}

bool StreamsPacked(const PackedProductArgs& args) {
  return CanStream(args) && StreamsEvenly(args, DeviceMultiprocessors());
}

void MultiplyPackedStream(const PackedProductArgs& args, Stream stream) {
  DispatchPackedStream(DeviceLauncher{stream}, args);
}

void Unpack(Element element, const PackedWeights& weight, void* out, Stream stream) {
  DispatchUnpack(DeviceLauncher{stream}, element, weight, out);
}

}  // namespace llava::cuda

#include "model/ops/cuda/launcher.h"

namespace llava::cuda {

void AddRmsNorm(Element element, const AddRmsNormArgs& args, int64_t rows, Stream stream) {
  DispatchAddRmsNorm(DeviceLauncher{stream}, element, args, rows);
}

void RopeToCache(Element element, const RopeToCacheArgs& args, int64_t rows, Stream stream) {
  DispatchRopeToCache(DeviceLauncher{stream}, element, args, rows);
}

void SwiGlu(Element element, const SwiGluArgs& args, int64_t rows, Stream stream) {
  DispatchSwiGlu(DeviceLauncher{stream}, element, args, rows);
}

void QuickGelu(Element element, const QuickGeluArgs& args, Stream stream) {
  DispatchQuickGelu(DeviceLauncher{stream}, element, args);
}

void MultiplyRow(const RowProductArgs& args, Stream stream) {
  DispatchRowProduct(DeviceLauncher{stream}, args);
}

void SetOverlap(bool on) { overlap = on; }

}  // namespace llava::cuda

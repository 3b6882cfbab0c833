#include "model/ops/cuda/launcher.h"

namespace llava::cuda {

void PagedAttention(Element element, const PagedAttentionArgs& args, int64_t sequences,
                    Stream stream) {
  DispatchPagedAttention(DeviceLauncher{stream}, element, args, sequences);
}

bool HasPagedAttention(int64_t head_dim) { return CanAttend(head_dim); }

}  // namespace llava::cuda

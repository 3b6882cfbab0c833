#include "model/ops/cuda/draw.h"

#include "model/ops/cuda/draw_body.h"
#include "model/ops/cuda/launcher.h"

namespace llava::cuda {

void Draw(const DrawArgs& args, int64_t rows, Stream stream) {
  DispatchDraw(DeviceLauncher{stream}, args, rows);
}

}  // namespace llava::cuda

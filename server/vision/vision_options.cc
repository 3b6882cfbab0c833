#include "server/vision/vision_options.h"

#include "absl/strings/str_cat.h"
#include "server/device/device.h"

namespace llava {

VisionOptions::VisionOptions() {
  process.port = 8011;
  process.metrics_port = 8012;
}

void VisionOptions::Declare(Settings& settings) {
  process.Declare(settings);
  settings.Group("Model");
  settings.Add("model", &tower.model,
               "Tower: repository entry <root>/<name> or <root>/<name>/<version>, CLIP folder, or "
               "LLaVA checkpoint with a tower inside");
  settings.Add("device", &tower.device, "cpu, cuda:N, or several with commas between");
  settings.AddChoice("dtype", &tower.dtype, "Arithmetic; auto = float32 on cpu, bfloat16 on cuda",
                     {"auto", "float32", "bfloat16", "float16"});
  settings.Group("Work");
  settings.Add("workers", &tower.workers, "Workers per device, each with its own tower", 1, 64);
  settings.Add("threads", &tower.threads,
               "Threads inside a worker's operations, 0 = cores/workers, or 1 for a small model", 0,
               1024);
  settings.Add("decode-threads", &engine.decode_threads, "Threads that decode and resize", 1, 256);
  settings.Add("max-batch", &engine.max_batch, "Most pictures in one forward pass", 1, 1024);
  settings.Add("batch-wait", &engine.batch_wait, "How long a batch waits to fill");
  settings.Group("Limits");
  settings.Add("queue", &engine.queue, "Most pictures waiting; beyond it UNAVAILABLE", 1,
               1'000'000);
  settings.AddBytes("feature-cache-bytes", &engine.feature_cache_bytes, "Features kept, 0 = none");
  settings.AddBytes("max-image-bytes", &engine.limits.max_bytes, "Largest picture file taken");
  settings.Add("max-image-pixels", &engine.limits.max_pixels, "Most pixels of a picture", 1,
               uint64_t{1} << 40);
  settings.Check([this]() -> absl::Status {
    if (tower.model.empty()) return absl::InvalidArgumentError("--model is missing");
    const auto devices = ParseDevices(tower.device);
    if (!devices.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--device: ", devices.status().message()));
    }
    return absl::OkStatus();
  });
}

}  // namespace llava

#include "server/vision/vision_options.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "server/device/device.h"

namespace llava {

VisionOptions::VisionOptions() {
  process.port = 8011;
  process.metrics_port = 8012;
  engine.step_limit = std::chrono::minutes(5);
}

void VisionOptions::Declare(Settings& settings) {
  process.Declare(settings);
  settings.Group("Model");
  lifecycle.Declare(settings, Manifest::Kind::kTower);
  settings.Add("device", &tower.device, "cpu, cuda:N, or several with commas between");
  settings.AddChoice("dtype", &tower.dtype,
                     "Arithmetic; auto = float32 on cpu, bfloat16 on cuda; int8 on cpu only",
                     {"auto", "float32", "bfloat16", "float16", "int8"});
  settings.Group("Work");
  settings.Add("workers", &tower.workers, "Workers per device, which share its weights", 1, 64);
  settings.Add("threads", &tower.threads,
               "Threads inside a worker's operations, 0 = cores/workers, or 1 for a small model", 0,
               1024);
  settings.Add("decode-threads", &engine.decode_threads, "Threads that decode and resize", 1, 256);
  settings.Add("max-batch", &engine.max_batch, "Most pictures in one forward pass", 1, 1024);
  settings.Add("preferred-batch", &preferred_batch_,
               "Sizes with commas between: the largest that can be filled leaves at once; empty = "
               "max-batch alone");
  settings.Add("batch-wait", &engine.batch_wait, "How long a picture waits for a batch to fill");
  settings.Add(
      "step-limit", &engine.step_limit,
      "A batch that takes longer hangs: its pictures end with UNAVAILABLE, and the process "
      "ends with exit code 7; 0s = never");
  settings.AddChoice("exif", &exif_, "Orientation in a picture's EXIF data", {"ignore", "apply"});
  settings.Group("Limits");
  settings.Add("queue", &engine.queue, "Most pictures and tiles waiting; beyond it UNAVAILABLE", 1,
               1'000'000);
  settings.AddBytes("queue-bytes", &engine.queue_bytes,
                    "Most bytes that requests under way hold; beyond it UNAVAILABLE");
  settings.AddBytes("feature-cache-bytes", &feature_cache_bytes,
                    "Features kept in memory, 0 = none");
  settings.Add("feature-cache-dir", &feature_cache_dir,
               "Folder in which features are kept too, so that they outlive the process");
  settings.AddBytes("feature-cache-disk-bytes", &feature_cache_disk_bytes,
                    "Features kept in that folder");
  settings.AddBytes("max-image-bytes", &engine.limits.max_bytes, "Largest picture file taken");
  settings.Add("max-image-pixels", &engine.limits.max_pixels, "Most pixels of a picture", 1,
               uint64_t{1} << 40);
  settings.Check([this] { return Check(); });
}

absl::Status VisionOptions::Check() {
  const auto devices = ParseDevices(tower.device);
  if (!devices.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--device: ", devices.status().message()));
  }
  engine.decode.apply_exif = exif_ == "apply";
  engine.load_limit = LoadLimit(engine.step_limit);
  if (engine.queue < engine.max_batch) {
    return absl::InvalidArgumentError(
        absl::StrCat("--queue ", engine.queue, " is less than --max-batch ", engine.max_batch,
                     ": requests of so many pictures, and full batches, would never be taken"));
  }
  engine.preferred_batches.clear();
  for (const absl::string_view word : absl::StrSplit(preferred_batch_, ',', absl::SkipEmpty())) {
    int size = 0;
    if (!absl::SimpleAtoi(word, &size) || size < 1 || size > engine.max_batch) {
      return absl::InvalidArgumentError(absl::StrCat("--preferred-batch: \"", word,
                                                     "\" is not a size from 1 to max-batch, ",
                                                     engine.max_batch));
    }
    engine.preferred_batches.push_back(size);
  }
  std::sort(engine.preferred_batches.begin(), engine.preferred_batches.end());
  return absl::OkStatus();
}

}  // namespace llava

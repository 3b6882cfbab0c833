#pragma once

// Metrics of the pipeline, the same series for all engines of the process; included by the engine
// alone.

#include "server/runtime/metrics.h"
#include "server/vision/engine.h"

namespace llava {

struct VisionEngine::Counters {
  explicit Counters(Metrics& metrics)
      : queue_depth(metrics.Gauge("llava_vision_queue_depth",
                                  "Pictures and tiles waiting or in a decoder")),
        queue_bytes(metrics.Gauge("llava_vision_queue_bytes",
                                  "Bytes of requests under way: files, copies, tensors")),
        queue_seconds(metrics.Histogram("llava_vision_queue_seconds",
                                        "Time a picture waited for a decoder and for a batch")),
        decode_seconds(metrics.Histogram("llava_vision_decode_seconds",
                                         "Hashing, decoding and resizing of one picture")),
        compute_seconds(
            metrics.Histogram("llava_vision_compute_seconds", "One batch through the tower")),
        batch_size(metrics.Histogram("llava_vision_batch_size", "Pictures and tiles in one batch",
                                     {}, {1, 2, 4, 8, 16, 32, 64, 128})),
        encoded(Images(metrics, "encoded")),
        cached(Images(metrics, "cached")),
        failed(Images(metrics, "failed")) {}

  prometheus::Gauge& queue_depth;
  prometheus::Gauge& queue_bytes;
  prometheus::Histogram& queue_seconds;
  prometheus::Histogram& decode_seconds;
  prometheus::Histogram& compute_seconds;
  prometheus::Histogram& batch_size;
  prometheus::Counter& encoded;
  prometheus::Counter& cached;
  prometheus::Counter& failed;

 private:
  static prometheus::Counter& Images(Metrics& metrics, const std::string& result) {
    return metrics.Counter("llava_vision_images_total",
                           "Pictures by result: encoded now, from the cache, or failed (dropped "
                           "before work included)",
                           {{"result", result}});
  }
};

}  // namespace llava

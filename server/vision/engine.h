#pragma once

// The pipeline of the vision service: pictures in, features out; decoding threads, then one worker
// per tower. Knows neither gRPC nor LibTorch.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "model/image/header.h"
#include "model/image/image.h"
#include "server/runtime/metrics.h"
#include "server/vision/feature_cache.h"
#include "server/vision/features.h"
#include "server/vision/picture_encoder.h"
#include "server/vision/work_queue.h"

namespace llava {

// A picture to encode. The engine checks the file; the caller has checked layer and feature.
struct EncodeJob {
  std::string image;  // the file
  ImageMode image_mode = ImageMode::kCrop;
  int64_t select_layer = -2;
  SelectFeature select_feature = SelectFeature::kPatch;
  Sha256Digest spec_digest{};
  QueuePlace place;  // tenant, weight, priority
  std::string request_id;
  std::shared_ptr<EncodeCall> call;
};

// Thread-safe. Every call that Post accepts gets exactly one Done or Failed.
class VisionEngine {
 public:
  struct Options {
    int decode_threads = 2;
    int max_batch = 8;
    std::chrono::microseconds batch_wait{2000};
    int queue = 256;  // calls waiting, for their stage or another's; beyond it Post refuses
    uint64_t feature_cache_bytes = 256u << 20;
    ImageLimits limits = {};
  };

  // Starts the threads; each worker makes its encoder and warms it up. `on_all_failed` is called
  // once if the last worker dies later.
  VisionEngine(Options options, LoadedTower tower, Metrics& metrics,
               std::function<void(const std::string& reason)> on_all_failed = {});
  ~VisionEngine();

  // Waits until every worker is ready. An error if one could not be made: RESOURCE_EXHAUSTED when
  // memory was short, else INTERNAL or what the encoder says.
  absl::Status WaitUntilReady();

  // Never blocks. UNAVAILABLE (with a time to retry after): the queue is full or the engine stops.
  absl::Status Post(EncodeJob job);

  // Fails everything that waits, ends the batches under way, joins the threads.
  void Stop();

  const TowerInfo& info() const { return info_; }
  int waiting() const { return waiting_; }
  int computing() const { return computing_; }

 private:
  using Clock = EncodeCall::Clock;
  struct Picture;  // a computation under way
  struct Counters;

  void DecodeLoop();
  void Decode(Picture picture);
  void WorkerLoop(int worker, const EncoderFactory& factory);
  bool RunBatch(PictureEncoder& encoder, std::vector<Picture>& batch);
  // True: still useful. Takes calls out whose clients are gone or late.
  bool Wanted(const Picture& picture);
  void Complete(Picture& picture, std::string bytes);
  void Fail(const Picture& picture, const absl::Status& status);
  void WarmUp(PictureEncoder& encoder) const;
  void WorkerFailed(const std::string& reason);
  void Leave(int pictures);

  const Options options_;
  const TowerInfo info_;
  const std::function<void(const std::string&)> on_all_failed_;
  std::unique_ptr<Counters> counters_;
  FeatureCache cache_;
  WorkQueue<Picture> to_decode_, to_encode_;
  std::atomic<int> waiting_ = 0;    // pictures in both queues and in decoders
  std::atomic<int> computing_ = 0;  // pictures in batches
  std::atomic<bool> stopping_ = false;

  Mutex mutex_;
  CondVar changed_;
  int loading_ LLAVA_GUARDED_BY(mutex_);
  int ready_ LLAVA_GUARDED_BY(mutex_) = 0;
  int failed_ LLAVA_GUARDED_BY(mutex_) = 0;
  absl::Status load_status_ LLAVA_GUARDED_BY(mutex_);

  std::vector<std::thread> threads_;  // last
};

}  // namespace llava

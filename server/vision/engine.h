#pragma once

// The pipeline of one tower: pictures in, features out; decoding threads, then one worker per
// device or group of cores. Knows neither gRPC nor LibTorch.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "model/config/picture_shape.h"
#include "model/image/decode.h"
#include "model/image/header.h"
#include "model/image/image.h"
#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/vision/byte_budget.h"
#include "server/vision/encode_statistics.h"
#include "server/vision/feature_cache.h"
#include "server/vision/features.h"
#include "server/vision/picture_encoder.h"
#include "server/vision/work_queue.h"
#include "server/vision/worker_pool.h"

namespace llava {

// A picture to encode: a file, or the tower's input itself. The engine checks the file; the caller
// has checked all else.
struct EncodeJob {
  std::string image;
  std::vector<float> pixels;  // [3, S, S], finite; not empty: nothing about files is used
  ImageMode image_mode = ImageMode::kCrop;
  // Not empty: instead of `image_mode`, an overview and tiles (AnyresTiles of
  // model/image/anyres.h). At most kMaxGrid, each of at most kMaxTiles whole tiles.
  std::vector<Resolution> grid;
  int64_t select_layer = -2;
  SelectFeature select_feature = SelectFeature::kPatch;
  Sha256Digest spec_digest{};  // of a file
  QueuePlace place;            // tenant, weight, priority
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
    std::vector<int> preferred_batches = {};  // as BatchRule::preferred
    int queue =
        256;  // pictures and tiles waiting, for their stage or another's, before Post refuses
    // Requests, decoder's copies and tensors of calls under way, beyond which Post refuses.
    uint64_t queue_bytes = uint64_t{512} << 20;
    ImageLimits limits = {};
    DecodeOptions decode = {};
    std::chrono::milliseconds respawn_delay{1000};  // as WorkerPool::Options
    int respawns = 5;
    // A batch that takes longer hangs in its device (FailHung); 0: none does.
    std::chrono::milliseconds step_limit{0};
    // So does a worker that takes longer to read its weights and try them; 0: none does.
    std::chrono::milliseconds load_limit{0};
  };

  // Starts the threads; each of the first `workers` (0: all) makes its encoder and warms it up. The
  // cache must outlive the engine; other engines may share it.
  VisionEngine(Options options, LoadedTower tower, FeatureCache& cache, Metrics& metrics,
               int workers = 0);
  // Finish.
  ~VisionEngine();

  // As in WorkerPool.
  absl::Status WaitUntilReady(const std::function<bool()>& stop = {}) {
    return workers_->WaitUntilReady(stop);
  }
  absl::Status SetWorkers(int n, const std::function<bool()>& stop) {
    return workers_->SetWorkers(n, stop);
  }

  // Takes all jobs or none; never blocks. UNAVAILABLE (with a time to retry after): the queue is
  // full, in pictures or bytes, or the engine stops.
  absl::Status Post(std::vector<EncodeJob> jobs);
  absl::Status Post(EncodeJob job);

  // Ends the work that is there, then the threads: for an engine that nobody can reach any more.
  // May take as long as that work, for ever if a worker hangs; not on a thread of the engine.
  void Finish();
  // Fails everything that waits, ends the batches under way, joins the threads. False: a batch, or
  // the loading of a worker, does not end; the calls have, and the process must end without
  // destroying the engine.
  bool Stop();
  // If a batch takes longer than `step_limit`, or the loading of a worker longer than `load_limit`:
  // why it must be believed to hang, and the process must end. The calls of the batch, and those
  // that wait while no worker serves, have ended with UNAVAILABLE. Empty: none hangs.
  std::string FailHung();

  const TowerInfo& info() const { return info_; }
  const Options& options() const { return options_; }
  int waiting() const { return waiting_; }
  uint64_t waiting_bytes() const { return budget_.held(); }
  int computing() const { return computing_; }
  const FeatureCache& cache() const { return cache_; }
  int workers() const { return workers_->workers(); }
  double self_test_drift() const { return workers_->self_test_drift(); }
  // Why nothing can be encoded any more; empty: it can.
  std::string failure() const { return workers_->failure(); }
  // Why a worker was given up; empty: none was.
  std::string given_up() const { return workers_->given_up(); }
  EncodeStatistics statistics() const { return statistics_.Snapshot(); }

 private:
  using Clock = EncodeCall::Clock;
  struct Picture;  // a computation under way
  struct Tile;     // one input of the tower: a picture, or a part of it
  struct Counters;
  // A batch in its device.
  struct Running {
    Clock::time_point begin;
    std::vector<std::shared_ptr<Picture>> pictures;  // whose calls have not been failed
  };

  uint64_t InputBytes() const;  // of the tower's input
  uint64_t BytesOf(const EncodeJob& job) const;
  // Enters all jobs into the budget, or none: UNAVAILABLE.
  absl::Status TakeBytes(const std::vector<EncodeJob>& jobs);
  absl::Status Refusal(const EncodeCall& call) const;
  absl::Status ClosedError() const;  // why the queues take nothing
  void DecodeLoop();
  void Decode(const std::shared_ptr<Picture>& picture);
  // Hands the tower's inputs of a picture on.
  void PostTiles(const std::shared_ptr<Picture>& picture, std::vector<std::vector<float>> inputs);
  WorkerPool::Ended Serve(PictureEncoder& encoder, const WorkerPool::Leave& leave);
  // Why the device is lost; empty: it is not.
  std::string RunBatch(PictureEncoder& encoder, std::vector<Tile>& batch);
  std::vector<absl::Status> EncodeEach(PictureEncoder& encoder, const EncodeJob& like,
                                       const std::vector<std::vector<float>>& pixels,
                                       std::vector<std::string>& results) const;
  // True: still useful. Takes calls out whose clients are gone or late.
  bool Wanted(Picture& picture);
  // A tile is done. Its picture is over with its last tile, or its first failure.
  void EndTile(const Tile& tile, const absl::Status& status, std::string bytes = "");
  // Who waits for the picture, which is over.
  FeatureCache::Calls End(const Picture& picture, const std::shared_ptr<const Features>& features);
  void Complete(Picture& picture);
  void Answer(const FeatureCache::Calls& calls, const std::shared_ptr<const Features>& features,
              bool cached, const EncodeTimes& times);
  void Fail(const Picture& picture, const absl::Status& status);
  void CountFailures(size_t calls);
  void WarmUp(PictureEncoder& encoder) const;
  void RefuseAll(const std::string& reason);
  // Ends the calls of batches that began before. True: there are such batches.
  bool FailRunning(Clock::time_point before, const std::string& reason);
  void Enter(int count);
  void Leave(int count);
  // `patient`: for a worker that hangs it waits for ever. False: one hangs.
  bool Join(bool patient);

  const Options options_;
  TowerInfo info_;  // const after construction
  FeatureCache& cache_;
  std::unique_ptr<Counters> counters_;
  EncodeStatisticsBook statistics_;
  ByteBudget budget_;
  WorkQueue<std::shared_ptr<Picture>> to_decode_;
  WorkQueue<Tile> to_encode_;
  std::atomic<int> waiting_ = 0;    // pictures before and in decoders, tiles behind them
  std::atomic<int> computing_ = 0;  // tiles in batches
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> load_hangs_ = false;  // FailHung has said so

  Mutex running_mutex_;
  CondVar ran_;
  std::list<Running> running_ LLAVA_GUARDED_BY(running_mutex_);

  Mutex join_mutex_;  // Stop and Finish may come together
  std::vector<std::thread> decoders_;
  std::unique_ptr<WorkerPool> workers_;  // last
};

}  // namespace llava

#pragma once

// A pipeline over a tower made of rules, so that every fault and every order can be staged.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "server/runtime/metrics.h"
#include "server/runtime/mutex.h"
#include "server/vision/engine.h"
#include "server/vision/feature_cache.h"
#include "tests/support/fixtures.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"

namespace llava {
inline std::string Picture(const std::string& name) {
  return ReadBytes(FixturesDir() / "images" / name);
}

// A 24-bit BMP of squares of 8 x 8 pixels beside each other, each of one value.
inline std::string Bitmap(const std::string& values) {
  const auto count = static_cast<uint32_t>(values.size());
  std::string file("BM", 2);
  const auto number = [&file](uint32_t number, int bytes) {
    for (int i = 0; i < bytes; ++i) file.push_back(static_cast<char>(number >> (8 * i)));
  };
  number(54 + 192 * count, 4);  // file size
  number(0, 4);
  number(54, 4);  // where the pixels begin
  number(40, 4);  // header size
  number(8 * count, 4);
  number(8, 4);
  number(1, 2);
  number(24, 2);
  for (const uint32_t field : {0u, 192u * count, 2835u, 2835u, 0u, 0u}) number(field, 4);
  for (int row = 0; row < 8; ++row) {
    for (const char value : values) file += std::string(24, value);
  }
  return file;
}
inline std::string Bitmap(char value) { return Bitmap(std::string(1, value)); }

struct Switches {
  Mutex mutex;
  CondVar changed;
  bool hold LLAVA_GUARDED_BY(mutex) = false;
  bool dead LLAVA_GUARDED_BY(mutex) = false;
  std::vector<size_t> batches LLAVA_GUARDED_BY(mutex);
};

// One row of one number per picture. Layer -3: throws if a bright picture is in the batch. Layer
// -4: gives numbers that are not finite. Layer -5: has memory for one picture only, -6: for none.
// Layer -7: the number is the sign of the first pixel value.
class RuleEncoder : public PictureEncoder {
 public:
  explicit RuleEncoder(std::shared_ptr<Switches> switches) : switches_(std::move(switches)) {}
  std::vector<std::string> Encode(std::span<const std::vector<float>> pixels, int64_t layer,
                                  SelectFeature feature) override {
    const bool warm_up = pixels.size() == 1 && pixels[0][0] == 0;
    {
      MutexLock lock(switches_->mutex);
      while (switches_->hold && !warm_up) switches_->changed.Wait(switches_->mutex);
      if (switches_->dead) throw std::runtime_error("device lost");
      if (!warm_up) switches_->batches.push_back(pixels.size());
    }
    std::vector<std::string> rows;
    if (layer == -6 || (layer == -5 && pixels.size() > 1)) throw std::bad_alloc();
    for (const auto& picture : pixels) {
      if (layer == -3 && picture[0] > 1) throw std::runtime_error("poisoned");
      if (layer == -7) {
        rows.push_back(picture[0] > 0 ? "++" : "--");
        continue;
      }
      rows.push_back(layer == -4 ? std::string("\x80\x7f", 2) : std::string("\0\1", 2));
    }
    return rows;
  }

 private:
  std::shared_ptr<Switches> switches_;
};

class Collector : public EncodeCall {
 public:
  void Done(std::shared_ptr<const Features> result, bool was_cached, const EncodeTimes&) override {
    features = std::move(result);
    cached = was_cached;
    done_.set_value(absl::OkStatus());
  }
  void Failed(const absl::Status& status) override { done_.set_value(status); }
  bool gone() const override { return gone_ || patience_-- <= 0; }
  Clock::time_point deadline() const override { return deadline_; }

  absl::Status Wait() {
    auto future = done_.get_future();
    if (future.wait_for(kSlowdown * std::chrono::seconds(60)) != std::future_status::ready) {
      return absl::InternalError("no end came");
    }
    return future.get();
  }
  std::shared_ptr<const Features> features;
  bool cached = false;
  std::atomic<bool> gone_ = false;
  mutable std::atomic<int> patience_ = 1 << 30;  // times it says that it is there
  Clock::time_point deadline_ = Clock::time_point::max();

 private:
  std::promise<absl::Status> done_;
};

class VisionEngineTest : public ::testing::Test {
 protected:
  void Start(VisionEngine::Options options, int workers = 1, int first_workers = 0) {
    LoadedTower tower;
    tower.info.num_layers = 8;
    tower.info.num_patches = tower.info.width = 1;
    tower.info.preprocess.image_size = 8;
    tower.info.numerics = "test-f32";
    tower.info.workers = workers;
    tower.factory = [this](int) {
      if (on_load_) on_load_();
      return std::make_unique<RuleEncoder>(switches_);
    };
    engine_ =
        std::make_unique<VisionEngine>(options, std::move(tower), cache_, metrics_, first_workers);
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  std::shared_ptr<Collector> Post(std::string image, int64_t layer = -2,
                                  absl::Status* refused = nullptr,
                                  const std::function<void(Collector&)>& change = {},
                                  std::vector<Resolution> grid = {}) {
    EncodeJob job;
    job.grid = std::move(grid);
    auto call = std::make_shared<Collector>();
    if (change) change(*call);
    job.image = std::move(image);
    job.select_layer = layer;
    job.spec_digest = HashBytes(std::to_string(layer));
    job.call = call;
    const absl::Status status = engine_->Post(std::move(job));
    if (refused) {
      *refused = status;
    } else {
      EXPECT_TRUE(status.ok()) << status;
    }
    return call;
  }
  void Kill(bool dead) {
    MutexLock lock(switches_->mutex);
    switches_->dead = dead;
  }
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  // Until the tower, which is held, has a batch and nothing waits for it.
  void AwaitHeldBatch() {
    while (engine_->computing() == 0 || engine_->waiting() > 0) std::this_thread::yield();
  }
  std::vector<size_t> Batches() {
    MutexLock lock(switches_->mutex);
    return switches_->batches;
  }

  Metrics metrics_{"vision"};
  std::shared_ptr<Switches> switches_ = std::make_shared<Switches>();
  FeatureCache cache_{1 << 20, metrics_};
  std::function<void()> on_load_;         // called on the thread of each worker that loads
  std::unique_ptr<VisionEngine> engine_;  // last: its threads use the fields above
};

}  // namespace llava

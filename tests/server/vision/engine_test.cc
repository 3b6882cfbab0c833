// The pipeline over a tower made of rules, so that every fault and every order can be staged.

#include "server/vision/engine.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <sstream>
#include <stdexcept>

#include "tests/support/fixtures.h"
#include "tests/support/slowdown.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

std::string Picture(const std::string& name) {
  std::ifstream stream(FixturesDir() / "images" / name, std::ios::binary);
  std::stringstream bytes;
  bytes << stream.rdbuf();
  return bytes.str();
}

// A 24-bit BMP of 8 x 8 pixels, all of one value.
std::string Bitmap(char value) {
  std::string file("BM", 2);
  const auto number = [&file](uint32_t number, int bytes) {
    for (int i = 0; i < bytes; ++i) file.push_back(static_cast<char>(number >> (8 * i)));
  };
  number(54 + 192, 4);  // file size
  number(0, 4);
  number(54, 4);  // where the pixels begin
  number(40, 4);  // header size
  number(8, 4);
  number(8, 4);
  number(1, 2);
  number(24, 2);
  for (const uint32_t field : {0u, 192u, 2835u, 2835u, 0u, 0u}) number(field, 4);
  return file + std::string(192, value);
}

struct Switches {
  Mutex mutex;
  CondVar changed;
  bool hold LLAVA_GUARDED_BY(mutex) = false;
  bool dead LLAVA_GUARDED_BY(mutex) = false;
  std::vector<size_t> batches LLAVA_GUARDED_BY(mutex);
};

// One row of one number per picture. Layer -3: throws if a bright picture is in the batch. Layer
// -4: gives numbers that are not finite.
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
    for (const auto& picture : pixels) {
      if (layer == -3 && picture[0] > 1) throw std::runtime_error("poisoned");
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
  bool gone() const override { return gone_; }
  Clock::time_point deadline() const override { return deadline_; }

  absl::Status Wait() {
    auto future = done_.get_future();
    if (future.wait_for(kSlowdown * std::chrono::seconds(20)) != std::future_status::ready) {
      return absl::InternalError("no end came");
    }
    return future.get();
  }
  std::shared_ptr<const Features> features;
  bool cached = false;
  std::atomic<bool> gone_ = false;
  Clock::time_point deadline_ = Clock::time_point::max();

 private:
  std::promise<absl::Status> done_;
};

class VisionEngineTest : public ::testing::Test {
 protected:
  void Start(VisionEngine::Options options) {
    LoadedTower tower;
    tower.info.num_layers = 4;
    tower.info.num_patches = tower.info.width = 1;
    tower.info.preprocess.image_size = 8;
    tower.info.numerics = "test-f32";
    tower.factory = [this](int) {
      if (on_load_) on_load_();
      return std::make_unique<RuleEncoder>(switches_);
    };
    engine_ = std::make_unique<VisionEngine>(options, std::move(tower), metrics_,
                                             [this](const std::string& why) { all_failed_ = why; });
    ASSERT_TRUE(engine_->WaitUntilReady().ok());
  }
  std::shared_ptr<Collector> Post(std::string image, int64_t layer = -2,
                                  absl::Status* refused = nullptr,
                                  const std::function<void(Collector&)>& change = {}) {
    EncodeJob job;
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
  void Hold(bool hold) {
    MutexLock lock(switches_->mutex);
    switches_->hold = hold;
    switches_->changed.NotifyAll();
  }
  std::vector<size_t> Batches() {
    MutexLock lock(switches_->mutex);
    return switches_->batches;
  }

  Metrics metrics_{"vision"};
  std::shared_ptr<Switches> switches_ = std::make_shared<Switches>();
  std::string all_failed_;
  std::function<void()> on_load_;         // called on the thread of each worker that loads
  std::unique_ptr<VisionEngine> engine_;  // last: its threads use the fields above
};

TEST_F(VisionEngineTest, RequestsThatArriveTogetherRunTogether) {
  Start({.max_batch = 4, .batch_wait = std::chrono::seconds(20)});
  std::vector<std::shared_ptr<Collector>> calls;
  for (const char* name : {"plain.png", "rgba.png", "gray.png", "cmyk.jpg"}) {
    calls.push_back(Post(Picture(name)));
  }
  for (const auto& call : calls) ASSERT_TRUE(call->Wait().ok());
  EXPECT_EQ(Batches(), std::vector<size_t>{4});
  EXPECT_EQ(calls[0]->features->rows, 1);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_images_total{result=\"encoded\"} 4"));
}

TEST_F(VisionEngineTest, TheSecondRequestForAPictureIsServedFromTheCache) {
  Start({.batch_wait = std::chrono::seconds(0)});
  auto first = Post(Picture("plain.png"));
  ASSERT_TRUE(first->Wait().ok());
  auto again = Post(Picture("plain.png"));
  ASSERT_TRUE(again->Wait().ok());
  EXPECT_FALSE(first->cached);
  EXPECT_TRUE(again->cached);
  EXPECT_EQ(again->features, first->features);
  auto other_spec = Post(Picture("plain.png"), -1);
  ASSERT_TRUE(other_spec->Wait().ok());
  EXPECT_FALSE(other_spec->cached);
  EXPECT_EQ(Batches().size(), 2u);
}

TEST_F(VisionEngineTest, ManyRequestsForOneNewPictureComputeItOnce) {
  Start({.decode_threads = 4, .batch_wait = std::chrono::seconds(0)});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> calls;
  for (int i = 0; i < 10; ++i) calls.push_back(Post(Picture("plain.png")));
  while (engine_->waiting() > 0) std::this_thread::yield();
  Hold(false);
  for (const auto& call : calls) ASSERT_TRUE(call->Wait().ok());
  EXPECT_EQ(Batches(), std::vector<size_t>{1});
}

TEST_F(VisionEngineTest, ABadPictureHurtsNobodyElse) {
  Start({.max_batch = 2, .batch_wait = std::chrono::seconds(20)});
  auto broken = Post("this is no picture at all");
  EXPECT_EQ(broken->Wait().code(), absl::StatusCode::kInvalidArgument);
  auto cut = Post(Picture("plain.png").substr(0, 300));
  EXPECT_EQ(cut->Wait().code(), absl::StatusCode::kInvalidArgument);

  auto poisoned = Post(Bitmap('\xff'), -3), neighbour = Post(Bitmap('\x01'), -3);
  EXPECT_EQ(poisoned->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(neighbour->Wait().ok());
  auto next = Post(Picture("gray.png")), last = Post(Picture("rgba.png"));
  EXPECT_TRUE(next->Wait().ok() && last->Wait().ok()) << "the worker lives";
}

TEST_F(VisionEngineTest, NumbersThatAreNotFiniteAreAFault) {
  Start({.batch_wait = std::chrono::seconds(0)});
  EXPECT_EQ(Post(Picture("plain.png"), -4)->Wait().code(), absl::StatusCode::kInternal);
}

TEST_F(VisionEngineTest, LateAndGoneRequestsCostNothing) {
  Start({.batch_wait = std::chrono::seconds(0)});
  auto late = Post(Picture("plain.png"), -2, nullptr,
                   [](Collector& call) { call.deadline_ = EncodeCall::Clock::now(); });
  EXPECT_EQ(late->Wait().code(), absl::StatusCode::kDeadlineExceeded);
  auto gone = Post(Picture("plain.png"), -2, nullptr, [](Collector& call) { call.gone_ = true; });
  EXPECT_EQ(gone->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Batches().empty());

  Hold(true);  // one in the tower, one waiting for it whose client goes away
  auto running = Post(Picture("plain.png"));
  while (engine_->computing() == 0) std::this_thread::yield();
  auto waiting = Post(Picture("rgba.png"));
  waiting->gone_ = true;
  Hold(false);
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_EQ(waiting->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Batches().size(), 1u);
}

TEST_F(VisionEngineTest, RefusesAtTheDoorWhenFull) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0), .queue = 1});
  Hold(true);
  auto running = Post(Picture("plain.png"));
  while (engine_->computing() == 0) std::this_thread::yield();
  auto waiting = Post(Picture("rgba.png"));
  absl::Status refused;
  Post(Picture("gray.png"), -2, &refused);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  Hold(false);
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_TRUE(waiting->Wait().ok());
}

TEST_F(VisionEngineTest, ACrowdForOnePictureIsRefusedAtTheDoorToo) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0), .queue = 3});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> calls = {Post(Picture("plain.png"))};
  while (engine_->computing() == 0) std::this_thread::yield();
  absl::Status refused;
  while (calls.size() < 20) {
    auto call = Post(Picture("plain.png"), -2, &refused);
    if (!refused.ok()) break;
    calls.push_back(std::move(call));
    while (engine_->waiting() > 0) std::this_thread::yield();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(calls.size(), 4u) << "one in the tower, three that wait for it";
  Hold(false);
  for (const auto& call : calls) EXPECT_TRUE(call->Wait().ok());
  EXPECT_TRUE(Post(Picture("rgba.png"))->Wait().ok()) << "their places are free again";
}

TEST_F(VisionEngineTest, TellsThatAWorkerLoads) {
  std::string during;
  on_load_ = [&] { during = metrics_.Render(); };
  Start({});
  EXPECT_THAT(during, HasSubstr("llava_vision_workers{state=\"loading\"} 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"loading\"} 0"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"ready\"} 1"));
}

TEST_F(VisionEngineTest, ADeadDeviceFailsEverybodyAndSaysSo) {
  Start({.batch_wait = std::chrono::seconds(0)});
  {
    MutexLock lock(switches_->mutex);
    switches_->dead = true;
  }
  EXPECT_FALSE(Post(Picture("plain.png"))->Wait().ok());
  absl::Status refused;
  do {
    Post(Picture("rgba.png"), -2, &refused);
  } while (refused.ok());
  engine_->Stop();
  EXPECT_THAT(all_failed_, HasSubstr("device lost"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"failed\"} 1"));
}

TEST_F(VisionEngineTest, StopAnswersEverybody) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> calls;
  for (const char* name : {"plain.png", "rgba.png", "gray.png"})
    calls.push_back(Post(Picture(name)));
  while (engine_->computing() == 0) std::this_thread::yield();
  std::thread stopper([this] { engine_->Stop(); });
  absl::Status refused;
  do {
    Post(Picture("cmyk.jpg"), -2, &refused);
  } while (refused.ok());
  Hold(false);
  stopper.join();
  int ended = 0;
  for (const auto& call : calls) ended += call->Wait().code() != absl::StatusCode::kInternal;
  EXPECT_EQ(ended, 3);
}

}  // namespace
}  // namespace llava

// The pipeline: batches, cache, bounds, orderly ends.

#include "server/vision/engine.h"

#include <gmock/gmock.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/server/vision/engine_harness.h"

namespace llava {
namespace {

using ::testing::HasSubstr;

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

TEST_F(VisionEngineTest, ABatchWithoutMemoryIsTriedOneByOne) {
  Start({.max_batch = 3, .batch_wait = std::chrono::seconds(20)});
  std::vector<std::shared_ptr<Collector>> calls;
  for (const char value : {'1', '2', '3'}) calls.push_back(Post(Bitmap(value), -5));
  for (const auto& call : calls) EXPECT_TRUE(call->Wait().ok());
  EXPECT_EQ(Batches(), (std::vector<size_t>{3, 1, 1, 1}));
  for (const char value : {'1', '2', '3'}) {
    calls.push_back(Post(Bitmap(value), -6));
  }
  EXPECT_EQ(calls.back()->Wait().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(engine_->failure(), "");
}

TEST_F(VisionEngineTest, NumbersThatAreNotFiniteAreAFault) {
  Start({.batch_wait = std::chrono::seconds(0)});
  EXPECT_EQ(Post(Picture("plain.png"), -4)->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(engine_->statistics().nan_outputs, 1u);
}

EncodeJob TensorJob(const std::shared_ptr<Collector>& call, float value, int64_t layer = -2) {
  EncodeJob job;
  job.pixels.assign(3 * 8 * 8, value);
  job.select_layer = layer;
  job.call = call;
  return job;
}

TEST_F(VisionEngineTest, ATensorNeedsNoDecoder) {
  Start({.max_batch = 2, .batch_wait = std::chrono::seconds(20)});
  auto first = std::make_shared<Collector>(), second = std::make_shared<Collector>();
  std::vector<EncodeJob> jobs;
  jobs.push_back(TensorJob(first, 0.5f));
  jobs.push_back(TensorJob(second, 0.5f));
  ASSERT_TRUE(engine_->Post(std::move(jobs)).ok());
  EXPECT_TRUE(first->Wait().ok() && second->Wait().ok());
  EXPECT_EQ(Batches(), std::vector<size_t>{2});
  EXPECT_EQ(cache_.entries(), 0u) << "nobody can ask for them again";
  EXPECT_EQ(engine_->statistics().success.count, 2u);

  // Numbers that no picture has say nothing of the tower.
  auto odd = std::make_shared<Collector>(), other = std::make_shared<Collector>();
  std::vector<EncodeJob> odd_jobs;
  odd_jobs.push_back(TensorJob(odd, 0.5f, -4));
  odd_jobs.push_back(TensorJob(other, 0.5f, -4));
  ASSERT_TRUE(engine_->Post(std::move(odd_jobs)).ok());
  EXPECT_EQ(odd->Wait().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine_->statistics().nan_outputs, 0u);
}

const std::vector<Resolution> kGrid = {{16, 8}, {24, 8}};

TEST_F(VisionEngineTest, TilesOfAPictureAreOneFeature) {
  Start({.max_batch = 3, .batch_wait = std::chrono::seconds(20)});
  auto wide = Post(Bitmap("\xff\x01\xff"), -7, nullptr, {}, kGrid);
  auto other = Post(Bitmap("\x01\xff"), -7, nullptr, {}, kGrid);
  while (Batches().size() < 2) std::this_thread::yield();
  EXPECT_EQ(engine_->waiting(), 1) << "of the seven tiles";
  auto single = Post(Bitmap("\xff"), -7);
  auto tensor = std::make_shared<Collector>();
  EncodeJob job;
  job.pixels.assign(3 * 8 * 8, 1.0f);
  job.select_layer = -7;
  job.call = tensor;
  ASSERT_TRUE(engine_->Post(std::move(job)).ok());
  for (const auto& call : {wide, other, single, tensor}) ASSERT_TRUE(call->Wait().ok());
  EXPECT_EQ(Batches(), (std::vector<size_t>{3, 3, 3})) << "whoever waits fills a batch";
  // The overview, which begins as the first tile does, and the tiles from left to right.
  EXPECT_EQ(wide->features->bytes, "++++--++");
  EXPECT_EQ(wide->features->rows, 4);
  EXPECT_EQ(wide->features->image_width, 24u);
  EXPECT_EQ(other->features->bytes, "----++");
  EXPECT_EQ(other->features->rows, 3);
  EXPECT_EQ(single->features->rows, 1);
  EXPECT_EQ(engine_->statistics().encoded, 4u) << "pictures, not tiles";
  auto again = Post(Bitmap("\x01\xff"), -7, nullptr, {}, kGrid);
  ASSERT_TRUE(again->Wait().ok());
  EXPECT_TRUE(again->cached);
}

TEST_F(VisionEngineTest, ATileThatFailsFailsItsPictureOnly) {
  Start({.max_batch = 4, .batch_wait = std::chrono::milliseconds(50)});
  auto poisoned = Post(Bitmap("\x01\xff"), -3, nullptr, {}, kGrid);
  auto neighbour = Post(Bitmap("\x01\x02"), -3, nullptr, {}, kGrid);
  EXPECT_EQ(poisoned->Wait().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(neighbour->Wait().ok());
  while (engine_->waiting() > 0) std::this_thread::yield();  // what was left of it is dropped
}

TEST_F(VisionEngineTest, TilesThatNobodyWaitsForAreNotComputed) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)});
  Hold(true);
  auto call = Post(Bitmap("\x01\xff\x01"), -2, nullptr, {}, kGrid);
  while (engine_->computing() == 0) std::this_thread::yield();
  call->gone_ = true;
  Hold(false);
  EXPECT_EQ(call->Wait().code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(Post(Picture("plain.png"))->Wait().ok());
  EXPECT_LE(Batches().size(), 2u) << "its first tile and the other picture";
}

TEST_F(VisionEngineTest, SeveralWorkersShareThePicturesOfACanvas) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)}, 3);
  for (int i = 0; i < 50; ++i) {
    // Bytes behind the picture's end: another file each time.
    auto call = Post(Bitmap("\xff\x01\xff") + std::to_string(i), -7, nullptr, {}, kGrid);
    ASSERT_TRUE(call->Wait().ok());
    EXPECT_EQ(call->features->bytes, "++++--++");
  }
}

TEST_F(VisionEngineTest, BytesAreBoundedAtTheDoor) {
  // A picture's input has 768 bytes, a file of a square 246.
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0), .queue_bytes = 4000});
  Hold(true);
  auto first = Post(Bitmap('1'));
  while (engine_->computing() == 0) std::this_thread::yield();
  EXPECT_EQ(engine_->waiting_bytes(), 246u + 768u) << "the decoder's copy is gone";
  // Of the same file, it waits for the first.
  auto follower = Post(Bitmap('1'));
  while (engine_->waiting() > 0) std::this_thread::yield();
  EXPECT_EQ(engine_->waiting_bytes(), 2 * (246u + 768u)) << "its answer will take some, too";
  auto second = Post(Bitmap('2'));
  absl::Status refused;
  Post(Bitmap("345"), -2, &refused, {}, kGrid);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.message(), HasSubstr("--queue-bytes"));
  EXPECT_TRUE(refused.GetPayload("type.googleapis.com/google.rpc.RetryInfo"))
      << "when to come again";
  Hold(false);
  for (auto* call : {&first, &follower, &second}) {
    EXPECT_TRUE((*call)->Wait().ok());
    call->reset();
  }
  while (engine_->waiting_bytes() > 0) std::this_thread::yield();
  EXPECT_TRUE(Post(Bitmap("345"), -2, nullptr, {}, kGrid)->Wait().ok())
      << "alone even what is larger than the bound";
}

TEST_F(VisionEngineTest, TakesAllPicturesOfACallOrNone) {
  Start({.queue = 2});
  std::vector<EncodeJob> jobs;
  std::vector<std::shared_ptr<Collector>> calls;
  for (int i = 0; i < 3; ++i) {
    calls.push_back(std::make_shared<Collector>());
    jobs.push_back(TensorJob(calls.back(), 0.5f));
  }
  EXPECT_EQ(engine_->Post(std::move(jobs)).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->waiting(), 0);
  EXPECT_TRUE(Batches().empty());
}

TEST_F(VisionEngineTest, AClientThatGoesWhileItsPictureIsDecodedCostsNoBatch) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)});
  Hold(true);
  auto running = Post(Picture("plain.png"));
  while (engine_->computing() == 0) std::this_thread::yield();
  auto leaving = Post(Picture("rgba.png"), -2, nullptr, [](Collector& call) {
    call.patience_ = 1;  // there when the decoder begins, gone when it has ended
  });
  EXPECT_EQ(leaving->Wait().code(), absl::StatusCode::kCancelled) << "the worker is still held";
  Hold(false);
  EXPECT_TRUE(running->Wait().ok());
  EXPECT_EQ(Batches().size(), 1u);
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
  AwaitHeldBatch();
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

TEST_F(VisionEngineTest, AnEngineThatIsLetGoEndsItsWork) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> calls;
  for (const char* name : {"plain.png", "rgba.png", "gray.png"}) {
    calls.push_back(Post(Picture(name)));
  }
  std::thread end([this] { engine_.reset(); });
  Hold(false);
  end.join();
  for (const auto& call : calls) EXPECT_TRUE(call->Wait().ok());
}

TEST_F(VisionEngineTest, EnginesShareTheCacheAndTheMetrics) {
  Start({.batch_wait = std::chrono::seconds(0)});
  auto first = Post(Picture("plain.png"));
  ASSERT_TRUE(first->Wait().ok());
  const auto old = std::move(engine_);
  Start({.batch_wait = std::chrono::seconds(0)});
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_workers{state=\"ready\"} 2"));
  auto again = Post(Picture("plain.png"));
  ASSERT_TRUE(again->Wait().ok());
  EXPECT_TRUE(again->cached);
  EXPECT_EQ(again->features, first->features);
}

TEST_F(VisionEngineTest, AnotherReadingOfExifIsAnotherFeature) {
  Start({.batch_wait = std::chrono::seconds(0)});
  const std::string plain = engine_->info().numerics;
  ASSERT_TRUE(Post(Picture("plain.png"))->Wait().ok());
  VisionEngine::Options options{.batch_wait = std::chrono::seconds(0)};
  options.decode.apply_exif = true;
  Start(options);
  EXPECT_NE(engine_->info().numerics, plain);
  auto turned = Post(Picture("plain.png"));
  ASSERT_TRUE(turned->Wait().ok());
  EXPECT_FALSE(turned->cached);
}

TEST_F(VisionEngineTest, TellsWhatItDid) {
  Start({.max_batch = 2, .batch_wait = std::chrono::seconds(20), .preferred_batches = {2}});
  auto first = Post(Picture("plain.png")), second = Post(Picture("rgba.png"));
  ASSERT_TRUE(first->Wait().ok() && second->Wait().ok());
  ASSERT_TRUE(Post(Picture("plain.png"))->Wait().ok());
  EXPECT_FALSE(Post("no picture")->Wait().ok());
  const EncodeStatistics all = engine_->statistics();
  EXPECT_EQ(all.success.count, 3u);
  EXPECT_EQ(all.failure.count, 1u);
  EXPECT_EQ(all.encoded, 2u);
  EXPECT_EQ(all.cache_hit.count, 1u);
  EXPECT_EQ(all.batches.at(2).count, 1u);
  EXPECT_GT(all.decode.seconds, 0);
  EXPECT_GT(all.last_request.time_since_epoch().count(), 0);
}

TEST_F(VisionEngineTest, EachCallOfASharedComputationCounts) {
  Start({.max_batch = 1, .batch_wait = std::chrono::seconds(0)});
  Hold(true);
  std::vector<std::shared_ptr<Collector>> calls;
  for (int i = 0; i < 3; ++i) calls.push_back(Post(Picture("plain.png")));
  AwaitHeldBatch();
  Hold(false);
  for (const auto& call : calls) EXPECT_TRUE(call->Wait().ok());
  const EncodeStatistics all = engine_->statistics();
  EXPECT_EQ(all.cache_miss.count, 3u);
  EXPECT_EQ(all.cache_miss.seconds, all.success.seconds);
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

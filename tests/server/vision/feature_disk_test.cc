// The disk tier of the feature cache, and that nothing wrong ever comes out of it.

#include "server/vision/feature_disk.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/runtime/crc32c.h"
#include "server/runtime/logging.h"
#include "server/vision/feature_cache.h"
#include "server/vision/feature_file.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

std::shared_ptr<const Features> FeaturesOf(const std::string& key, int64_t rows = 3) {
  auto features = std::make_shared<Features>();
  features->key = key;
  features->rows = rows;
  features->width = 4;
  for (int64_t i = 0; i < rows * 4 * 2; ++i) features->bytes.push_back(static_cast<char>(i * 7));
  features->crc32c = Crc32c(features->bytes);
  features->image_width = 640;
  features->image_height = 480;
  return features;
}

class FeatureDiskTest : public ::testing::Test {
 protected:
  std::unique_ptr<FeatureDisk> Open(uint64_t budget = 1 << 20, size_t queue = 64) {
    return std::make_unique<FeatureDisk>(FeatureDisk::Options{folder_, budget, queue}, metrics_);
  }
  std::vector<fs::path> Files() const {
    std::vector<fs::path> files;
    for (const auto& file : fs::directory_iterator(folder_)) files.push_back(file.path());
    return files;
  }

  const TempFolder temp_;
  const fs::path folder_ = temp_.path() / "features";  // not made yet
  Metrics metrics_{"vision"};
};

TEST_F(FeatureDiskTest, WhatIsWrittenIsFoundAfterTheEnd) {
  const auto written = FeaturesOf("key");
  Open()->Write(written);
  auto disk = Open();
  EXPECT_EQ(disk->entries(), 1u);
  const auto read = disk->Read("key");
  ASSERT_TRUE(read);
  EXPECT_EQ(read->key, "key");
  EXPECT_EQ(read->bytes, written->bytes);
  EXPECT_EQ(read->rows, 3);
  EXPECT_EQ(read->width, 4);
  EXPECT_EQ(read->crc32c, written->crc32c);
  EXPECT_EQ(read->image_width, 640u);
  EXPECT_EQ(read->image_height, 480u);
  EXPECT_EQ(disk->Read("another"), nullptr);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_feature_disk_hits_total 1"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_feature_disk_misses_total 1"));
  EXPECT_EQ(fs::status(folder_).permissions(), fs::perms::owner_all) << "pictures are private";
}

TEST_F(FeatureDiskTest, NoDamageGivesAWrongFeature) {
  const std::string good = FeatureFile(*FeaturesOf("key"));
  ASSERT_TRUE(ParseFeatureFile(good, "key"));
  for (size_t i = 0; i < good.size(); ++i) {
    std::string damaged = good;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_EQ(ParseFeatureFile(damaged, "key"), nullptr) << "at byte " << i;
    EXPECT_EQ(ParseFeatureFile(good.substr(0, i), "key"), nullptr) << "cut off at " << i;
  }
  EXPECT_EQ(ParseFeatureFile(good + "x", "key"), nullptr);
  EXPECT_EQ(ParseFeatureFile(good, "kez"), nullptr) << "another key's";
  EXPECT_EQ(ParseFeatureFile(good, "key2"), nullptr);
}

TEST_F(FeatureDiskTest, ADamagedFileIsRemovedAndCounted) {
  Open()->Write(FeaturesOf("key"));
  auto disk = Open();
  const fs::path file = Files().at(0);
  fs::resize_file(file, fs::file_size(file) - 1);
  EXPECT_EQ(disk->Read("key"), nullptr);
  EXPECT_FALSE(fs::exists(file));
  EXPECT_EQ(disk->entries(), 0u);
  EXPECT_EQ(disk->size_bytes(), 0u);
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("llava_vision_feature_disk_errors_total{kind=\"damaged\"} 1"));
  disk->Write(FeaturesOf("key"));
  disk->Flush();
  EXPECT_TRUE(disk->Read("key")) << "and can be written anew";
}

TEST_F(FeatureDiskTest, TheLeastRecentlyUsedLeavesFirstAlsoAfterARestart) {
  const uint64_t size = FeatureFile(*FeaturesOf("a")).size();
  {
    auto disk = Open(2 * size);
    for (const char* key : {"a", "b"}) {
      disk->Write(FeaturesOf(key));
      disk->Flush();
      std::this_thread::sleep_for(std::chrono::milliseconds(20));  // times of files are coarse
    }
    EXPECT_TRUE(disk->Read("a"));
  }
  auto disk = Open(2 * size);
  disk->Write(FeaturesOf("c"));
  disk->Flush();
  EXPECT_EQ(disk->size_bytes(), 2 * size);
  EXPECT_TRUE(disk->Read("a"));
  EXPECT_FALSE(disk->Read("b"));
  EXPECT_TRUE(disk->Read("c"));
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_feature_disk_evictions_total 1"));
  EXPECT_EQ(Open(size)->entries(), 1u) << "a smaller budget holds from the start";
}

TEST_F(FeatureDiskTest, WhatIsLargerThanTheBudgetIsNotWritten) {
  auto disk = Open(100);
  disk->Write(FeaturesOf("key", 100));
  disk->Flush();
  EXPECT_TRUE(Files().empty());
}

TEST_F(FeatureDiskTest, RemainsOfAKilledWriterAreNoFeatures) {
  fs::create_directories(folder_);
  const fs::path old = folder_ / ".tmp-1-x.feature", young = folder_ / ".tmp-2-y.feature";
  std::ofstream(old) << "half";
  std::ofstream(young) << "half";
  fs::last_write_time(old, fs::file_time_type::clock::now() - std::chrono::hours(2));
  auto disk = Open();
  EXPECT_EQ(disk->entries(), 0u);
  EXPECT_FALSE(fs::exists(old));
  EXPECT_TRUE(fs::exists(young)) << "somebody may be writing it";
}

TEST_F(FeatureDiskTest, AFolderThatCannotBeUsedCostsSpeedOnly) {
  std::ofstream(folder_) << "a file is here";
  {
    auto disk = Open();
    EXPECT_EQ(disk->Read("key"), nullptr);
    disk->Write(FeaturesOf("key"));
    disk->Flush();
  }
  EXPECT_THAT(metrics_.Render(),
              HasSubstr("llava_vision_feature_disk_errors_total{kind=\"write\"} 1"));
}

TEST_F(FeatureDiskTest, SeveralProcessesMayShareAFolder) {
  auto one = Open(), other = Open();
  one->Write(FeaturesOf("key"));
  one->Flush();
  EXPECT_TRUE(other->Read("key"));
  EXPECT_EQ(other->entries(), 1u);
  fs::remove(Files().at(0));
  EXPECT_EQ(one->Read("key"), nullptr);
  EXPECT_EQ(one->entries(), 0u);
}

TEST_F(FeatureDiskTest, TheBudgetIsOfTheFolder) {
  const uint64_t size = FeatureFile(*FeaturesOf("a1")).size();
  auto one = Open(4 * size), two = Open(4 * size);
  for (const char* number : {"1", "2", "3", "4"}) {
    one->Write(FeaturesOf(std::string("a") + number));
    one->Flush();
    two->Write(FeaturesOf(std::string("b") + number));
    two->Flush();
    EXPECT_LE(Files().size(), 4u);
  }
  for (const char* key : {"c1", "c2", "c3", "c4"}) one->Write(FeaturesOf(key));
  one->Flush();
  EXPECT_EQ(Files().size(), 4u);
  EXPECT_EQ(one->size_bytes(), 4 * size);
}

TEST_F(FeatureDiskTest, AFolderThatWasThereKeepsItsPermissions) {
  const auto shared = fs::perms::owner_all | fs::perms::group_read | fs::perms::group_exec;
  fs::create_directories(folder_);
  fs::permissions(folder_, shared);
  InitLogging({"test", "info", "text"});
  ::testing::internal::CaptureStderr();
  Open();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("chmod 700"));
  EXPECT_EQ(fs::status(folder_).permissions(), shared);
}

TEST_F(FeatureDiskTest, PicturesAreDroppedWithTheFilesOfOthers) {
  const std::string picture(32, 'p'), other(32, 'o');
  auto one = Open(), two = Open();
  for (const std::string& key : {picture + "spec", picture + "another", other + "spec"}) {
    one->Write(FeaturesOf(key));
  }
  one->Flush();
  for (const fs::path& file : Files()) {
    std::ofstream(folder_ / (".tmp-1-" + file.filename().string())) << "of a killed writer";
  }
  absl::StatusOr<size_t> removed = 0;
  two->Write(FeaturesOf(picture + "third"));  // waits, perhaps, and goes too
  two->Drop({picture, std::string(32, 'x')}, [&removed](auto files) { removed = files; });
  EXPECT_EQ(two->Read(picture + "spec"), nullptr) << "from the moment that it is asked for";
  two->Write(FeaturesOf(picture + "new"));
  two->Flush();
  EXPECT_EQ(removed.value(), 5u);
  EXPECT_EQ(Files().size(), 3u);
  EXPECT_EQ(one->Read(picture + "another"), nullptr);
  EXPECT_TRUE(one->Read(other + "spec"));
  EXPECT_TRUE(two->Read(picture + "new")) << "written after it";
  EXPECT_EQ(two->entries(), 1u);
  EXPECT_EQ(one->entries(), 2u) << "the one that it has not looked for is not known to be gone";
}

TEST_F(FeatureDiskTest, DropsThatWaitAreDoneTogetherAndFaultsAreTold) {
  const std::string picture(32, 'p'), other(32, 'o');
  auto disk = Open();
  for (const std::string& key : {picture + "a", other + "a"}) disk->Write(FeaturesOf(key));
  disk->Flush();
  std::vector<absl::Status> ends(100, absl::UnknownError("not called"));
  for (size_t i = 0; i < ends.size(); ++i) {
    disk->Drop({i % 2 == 0 ? picture : other},
               [&end = ends[i]](const absl::StatusOr<size_t>& files) { end = files.status(); });
  }
  disk->Flush();
  for (const absl::Status& end : ends) EXPECT_TRUE(end.ok()) << end;
  EXPECT_TRUE(Files().empty());

  disk->Write(FeaturesOf(picture + "a"));
  disk->Flush();
  fs::rename(folder_, folder_.string() + ".away");
  std::ofstream(folder_) << "not a folder";
  disk->Drop({picture}, [&](const absl::StatusOr<size_t>& files) { ends[0] = files.status(); });
  disk->Flush();
  fs::remove(folder_);
  fs::rename(folder_.string() + ".away", folder_);
  EXPECT_EQ(ends[0].code(), absl::StatusCode::kUnavailable) << ends[0];
  EXPECT_THAT(ends[0].message(), HasSubstr(folder_.string()));
}

TEST_F(FeatureDiskTest, ManyThreads) {
  auto disk = Open(FeatureFile(*FeaturesOf("0")).size() * 4);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&disk, thread] {
      for (int i = 0; i < 200; ++i) {
        const std::string key = std::to_string((i * (thread + 1)) % 10);
        const auto found = disk->Read(key);
        if (found) {
          EXPECT_EQ(found->key, key);
        }
        disk->Write(FeaturesOf(key));
        if (i % 20 == 0) disk->Drop({key}, [](const auto&) {});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  disk->Flush();
  EXPECT_LE(disk->entries(), 4u);
}

class NoCall : public EncodeCall {
 public:
  void Done(std::shared_ptr<const Features>, bool, const EncodeTimes&) override {}
  void Failed(const absl::Status&) override {}
  bool gone() const override { return false; }
  Clock::time_point deadline() const override { return Clock::time_point::max(); }
};

TEST_F(FeatureDiskTest, TheCacheLooksThereBeforeAnythingIsComputed) {
  const auto call = std::make_shared<NoCall>();
  {
    FeatureCache cache(1 << 20, metrics_, Open());
    ASSERT_TRUE(cache.Begin("key", call).leader);
    EXPECT_EQ(cache.FinishFromDisk("key").features, nullptr);
    cache.Finish("key", FeaturesOf("key"));
  }
  FeatureCache cache(1 << 20, metrics_, Open());
  ASSERT_TRUE(cache.Begin("key", call).leader);
  EXPECT_FALSE(cache.Begin("key", call).leader);
  const auto found = cache.FinishFromDisk("key");
  ASSERT_TRUE(found.features);
  EXPECT_EQ(found.calls.size(), 2u) << "who came meanwhile is served too";
  EXPECT_EQ(cache.Begin("key", call).features, found.features) << "in memory again";

  // Dropped while it is computed: served, but kept nowhere.
  ASSERT_TRUE(cache.Begin("other", call).leader);
  std::promise<absl::StatusOr<size_t>> dropped;
  cache.Drop({"key", "other"}, [&](auto tensors) { dropped.set_value(tensors); });
  EXPECT_EQ(cache.FinishFromDisk("other").features, nullptr);
  EXPECT_EQ(cache.Finish("other", FeaturesOf("other")).size(), 1u);
  ASSERT_TRUE(cache.Begin("key", call).leader);
  EXPECT_EQ(cache.FinishFromDisk("key").features, nullptr);
  cache.Finish("key", FeaturesOf("key"));
  EXPECT_EQ(dropped.get_future().get().value(), 2u) << "in memory and on disk";
  while (cache.status().disk().entries() != 1) std::this_thread::yield();
  EXPECT_EQ(Files().size(), 1u) << "asked for anew, kept anew";

  const v1::FeatureCacheStatus status = cache.status();
  EXPECT_EQ(status.entries(), 1u);
  EXPECT_EQ(status.bytes(), cache.size_bytes());
  EXPECT_EQ(status.budget_bytes(), uint64_t{1} << 20);
  EXPECT_EQ(status.hits(), 1u);
  EXPECT_EQ(status.misses(), 5u);
  EXPECT_EQ(status.disk().entries(), 1u);
  EXPECT_EQ(status.disk().hits(), 1u);
  EXPECT_EQ(status.disk().misses(), 3u);
  EXPECT_EQ(status.disk().errors(), 0u);
}

}  // namespace
}  // namespace llava

// Versions of towers as the model manager loads them.

#include "server/vision/tower_loader.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>
#include <thread>
#include <utility>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/durable_file.h"
#include "model/checkpoint/manifest.h"
#include "tests/support/fixtures.h"
#include "tests/support/paths.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class Answer : public EncodeCall {
 public:
  void Done(std::shared_ptr<const Features>, bool, const EncodeTimes&) override { ok = true; }
  void Failed(const absl::Status&) override { failed = true; }
  bool gone() const override { return false; }
  Clock::time_point deadline() const override { return Clock::time_point::max(); }
  bool Wait() const {
    const auto until = Clock::now() + kSlowdown * std::chrono::seconds(60);
    while (!ok && !failed && Clock::now() < until) std::this_thread::yield();
    return ok;
  }
  std::atomic<bool> ok = false, failed = false;
};

class TowerLoaderTest : public ::testing::Test {
 protected:
  // The shipped tower, which has a self-test, as a version of this repository.
  VersionRef Version(uint64_t version, const std::string& name = "tower") {
    const fs::path folder = folder_.path() / name / std::to_string(version);
    fs::create_directories(folder.parent_path());
    fs::copy(fs::path(SourceDir()) / "deploy/models/emoji-tower/1", folder,
             fs::copy_options::recursive);
    return {name, version, folder};
  }
  // Changes the manifest of a version.
  template <typename Change>
  static void Edit(const VersionRef& version, const Change& change) {
    Manifest manifest = Manifest::Read(version.folder);
    change(manifest);
    WriteDurably(version.folder / "manifest.json", manifest.ToJson());
  }
  absl::Status Fails(const VersionRef& version) {
    const auto loaded = loader_.Load(version, {});
    EXPECT_FALSE(loaded.ok());
    return loaded.status();
  }
  static VisionEngine& EngineOf(const std::shared_ptr<Servable>& servable) {
    return static_cast<VisionServable&>(*servable).engine();
  }
  bool Encodes(VisionEngine& engine) {
    auto call = std::make_shared<Answer>();
    EncodeJob job;
    const auto side = static_cast<size_t>(engine.info().preprocess.image_size);
    job.pixels.assign(3 * side * side, 0.25f);
    job.call = call;
    return engine.Post(std::move(job)).ok() && call->Wait();
  }

  const TempFolder folder_;
  Metrics metrics_{"vision"};
  FeatureCache cache_{1 << 20, metrics_};
  TowerOptions options_{.workers = 2, .threads = 1};
  VisionServableLoader loader_{options_, {}, cache_, metrics_};
};

TEST_F(TowerLoaderTest, LoadsAVersionAndTellsAboutIt) {
  const VersionRef version = Version(3);
  double progress = 0;
  bool warming = false;
  ServableLoader::LoadOptions options;
  options.workers = 1;
  options.progress = [&](double share) { progress = share; };
  options.warming = [&] { warming = true; };
  const auto loaded = loader_.Load(version, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Servable& servable = **loaded;
  EXPECT_EQ(progress, 1);
  EXPECT_TRUE(warming);
  EXPECT_EQ(servable.info().model().name(), "tower");
  EXPECT_EQ(servable.info().model().version(), 3u);
  EXPECT_EQ(servable.info().kind(), v1::MODEL_KIND_TOWER);
  EXPECT_EQ(servable.info().model().digest(), ToBytes(Manifest::Read(version.folder).tower_digest));
  EXPECT_GE(servable.self_test_drift(), 0);
  EXPECT_LT(servable.self_test_drift(), 1e-3);
  EXPECT_EQ(servable.workers(), 1);
  const uint64_t of_one = servable.load().weight_bytes;
  EXPECT_GT(of_one, 0u);
  ASSERT_TRUE((*loaded)->SetWorkers(2, {}).ok());
  EXPECT_EQ(servable.load().weight_bytes, of_one) << "workers of a device share them";
  EXPECT_EQ(servable.load().failure, "");
  ASSERT_TRUE(servable.load().feature_cache);
  EXPECT_EQ(servable.load().feature_cache->budget_bytes(), uint64_t{1} << 20);
  EXPECT_FALSE(servable.load().feature_cache->has_disk());
}

TEST_F(TowerLoaderTest, ComputesAsTold) {
  const VersionRef version = Version(1);
  double last = 0;
  uint64_t bytes = UINT64_MAX;
  for (const auto& [word, numerics] :
       {std::pair("float32", "cpu-f32"), std::pair("bfloat16", "cpu-bf16-"),
        std::pair("int8", "cpu-int8-")}) {
    TowerOptions options = options_;
    options.dtype = word;
    VisionServableLoader loader(options, {}, cache_, metrics_);
    const auto loaded = loader.Load(version, {});
    ASSERT_TRUE(loaded.ok()) << word << ": " << loaded.status();
    EXPECT_THAT((*loaded)->info().numerics(), StartsWith(numerics));
    EXPECT_TRUE(Encodes(EngineOf(*loaded)));
    EXPECT_GE((*loaded)->self_test_drift(), last) << word << " is not finer than the one before";
    last = (*loaded)->self_test_drift();
    EXPECT_LT((*loaded)->load().weight_bytes, bytes);
    bytes = (*loaded)->load().weight_bytes;
  }
}

TEST_F(TowerLoaderTest, EstimatesWeightsAndWorkingMemory) {
  const VersionRef version = Version(1);
  const auto one = loader_.EstimateBytes(version, 1), all = loader_.EstimateBytes(version, 0);
  ASSERT_TRUE(one.ok()) << one.status();
  const auto loaded = loader_.Load(version, {});
  ASSERT_TRUE(loaded.ok());
  const uint64_t weights = (*loaded)->load().weight_bytes;
  EXPECT_GT(*one, weights);
  EXPECT_EQ(*all - weights, 2 * (*one - weights)) << "what is computed is each worker's own";
}

TEST_F(TowerLoaderTest, EstimatesATowerThatIsThereLikeAnyOther) {
  const VersionRef one = Version(1), same = Version(2);
  const auto loaded = loader_.Load(one, {});
  ASSERT_TRUE(loaded.ok());
  const auto alone = loader_.EstimateBytes(one, 2), beside = loader_.EstimateBytes(same, 2);
  ASSERT_TRUE(alone.ok() && beside.ok());
  EXPECT_EQ(*beside, *alone) << "it holds the memory when the first one has gone";
  EXPECT_EQ(loader_.MemoryGroup(same), loader_.MemoryGroup(one));
  const VersionRef other{"clip", 1, FixturesDir() / "clip-tower"};
  EXPECT_NE(loader_.MemoryGroup(other), loader_.MemoryGroup(one));
  std::ofstream(same.folder / "manifest.json") << "{";
  EXPECT_EQ(loader_.MemoryGroup(same), "");
}

TEST_F(TowerLoaderTest, RoutesByDigestAndByName) {
  const auto first = loader_.Load(Version(1), {});
  const auto other = loader_.Load({"clip", 1, FixturesDir() / "clip-tower"}, {});
  ASSERT_TRUE(first.ok() && other.ok());
  EXPECT_LT((*other)->self_test_drift(), 0) << "it has no self-test";
  const TowerSet& towers = loader_.towers();
  const std::string digest = (*first)->info().model().digest();
  EXPECT_EQ(towers.FindDigest(digest), nullptr) << "loaded is not routed";
  loader_.Route(*first);
  loader_.Route(*other);
  EXPECT_EQ(towers.FindDigest(digest), *first);
  EXPECT_EQ(towers.FindDigest((*other)->info().model().digest()), *other);
  EXPECT_EQ(towers.Find("tower", 0), *first);
  EXPECT_EQ(towers.Find("tower", 1), *first);
  EXPECT_EQ(towers.Find("tower", 2), nullptr);
  EXPECT_EQ(towers.Find("towe", 0), nullptr);
  EXPECT_EQ(towers.List().size(), 2u);
  EXPECT_THAT(metrics_.Render(), HasSubstr("llava_vision_model_info{digest=\"" +
                                           ToHex(EngineOf(*first).info().digest)));
  loader_.Unroute("tower", 1);
  loader_.Unroute("tower", 1);
  EXPECT_EQ(towers.FindDigest(digest), nullptr);
  EXPECT_THAT(metrics_.Render(), Not(HasSubstr("name=\"tower\"")));
  loader_.Route(*first);
  EXPECT_EQ(towers.FindDigest(digest), *first) << "wanted again while it drains";
}

TEST_F(TowerLoaderTest, AVersionOfTheSameTowerIsOnlyAnotherName) {
  const auto first = loader_.Load(Version(1), {});
  ASSERT_TRUE(first.ok());
  const auto second = loader_.Load(Version(2), {});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(&EngineOf(*first), &EngineOf(*second));
  loader_.Route(*first);
  loader_.Route(*second);
  EXPECT_EQ(loader_.towers().Find("tower", 0), *second) << "the newest";
  auto call = loader_.towers().Find("tower", 2);
  EXPECT_EQ((*second)->load().in_flight + (*second)->load().queued, 1u);
  EXPECT_EQ((*first)->load().in_flight + (*first)->load().queued, 0u)
      << "else it would not be idle before the other one is";
  call.reset();
  EXPECT_EQ((*second)->load().in_flight + (*second)->load().queued, 0u);
  loader_.Unroute("tower", 1);
  EXPECT_EQ(loader_.towers().FindDigest((*first)->info().model().digest()), *second);
  const VersionRef broken = Version(3);
  fs::resize_file(broken.folder / "model.safetensors", 1000);
  EXPECT_EQ(Fails(broken).code(), absl::StatusCode::kDataLoss) << "it is read all the same";
}

TEST_F(TowerLoaderTest, VersionsOfATowerThatLoadTogetherShareItToo) {
  std::vector<VersionRef> versions;
  for (const uint64_t number : {1, 2, 3}) versions.push_back(Version(number));
  std::vector<std::future<absl::StatusOr<std::shared_ptr<Servable>>>> loads;
  for (const VersionRef& version : versions) {
    loads.push_back(std::async(std::launch::async, [&] { return loader_.Load(version, {}); }));
  }
  std::vector<std::shared_ptr<Servable>> loaded;
  for (auto& load : loads) {
    auto servable = load.get();
    ASSERT_TRUE(servable.ok()) << servable.status();
    loaded.push_back(*std::move(servable));
  }
  for (const auto& servable : loaded) EXPECT_EQ(&EngineOf(servable), &EngineOf(loaded[0]));
}

TEST_F(TowerLoaderTest, WhoHoldsATowerKeepsIt) {
  auto loaded = loader_.Load(Version(1), {});
  ASSERT_TRUE(loaded.ok());
  loader_.Route(*loaded);
  auto held = loader_.towers().Find("tower", 0);
  loader_.Unroute("tower", 1);
  *loaded = nullptr;
  EXPECT_TRUE(Encodes(held->engine()));
  const auto ready = HasSubstr("llava_vision_workers{state=\"ready\"} 2");
  EXPECT_THAT(metrics_.Render(), ready);
  held.reset();
  const auto until = CondVar::Clock::now() + kSlowdown * std::chrono::seconds(60);
  const std::string none = "llava_vision_workers{state=\"ready\"} 0";
  while (metrics_.Render().find(none) == std::string::npos && CondVar::Clock::now() < until) {
    std::this_thread::yield();
  }
  EXPECT_THAT(metrics_.Render(), HasSubstr(none)) << "the last one frees it";
}

TEST_F(TowerLoaderTest, SaysWhyAVersionCannotBeServed) {
  EXPECT_EQ(Fails({"tower", 9, folder_.path() / "tower" / "9"}).code(),
            absl::StatusCode::kNotFound);

  const VersionRef cut = Version(1);
  fs::resize_file(cut.folder / "model.safetensors",
                  fs::file_size(cut.folder / "model.safetensors") / 2);
  absl::Status status = Fails(cut);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model.safetensors"));

  const VersionRef untrue = Version(2);
  Edit(untrue, [](Manifest& manifest) {
    for (auto& [arithmetic, tolerance] : manifest.self_test_tolerances) tolerance = -1;
  });
  status = Fails(untrue);
  EXPECT_THAT(std::string(status.message()), HasSubstr("self-test fails"));

  const VersionRef language = {"emoji", 1, fs::path(SourceDir()) / "deploy/models/emoji/1"};
  EXPECT_EQ(Fails(language).code(), absl::StatusCode::kDataLoss);

  const VersionRef garbled = Version(3);
  std::ofstream(garbled.folder / "manifest.json") << "{";
  EXPECT_EQ(Fails(garbled).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(loader_.EstimateBytes(garbled, 1).ok());

  EXPECT_TRUE(loader_.Load(Version(4), {}).ok()) << "a good one still loads";
}

TEST_F(TowerLoaderTest, WeightsThatAreNoNumbersAreFound) {
  const VersionRef version = Version(1);
  const fs::path file = version.folder / "model.safetensors";
  std::string bytes = ReadSmallFile(file);
  // The end of the file in NaN, whether its numbers have 16 or 32 bits.
  for (size_t i = bytes.size() - (1 << 16); i < bytes.size(); i += 2) {
    bytes[i] = '\xff';
    bytes[i + 1] = '\x7f';
  }
  WriteDurably(file, bytes);
  Edit(version, [&](Manifest& manifest) {
    manifest.files.at("model.safetensors").sha256 = HashBytes(bytes);
    manifest.files.erase(kSelfTestFile);
    manifest.self_test_tolerances.clear();
  });
  fs::remove(version.folder / kSelfTestFile);
  EXPECT_EQ(Fails(version).code(), absl::StatusCode::kDataLoss);
}

TEST_F(TowerLoaderTest, AWorkerBeginsAnewWithTheWeightsThatWereVerified) {
  for (const char* dtype : {"float32", "int8"}) {
    const VersionRef version = Version(dtype == std::string("int8") ? 2 : 1);
    TowerOptions options{.model = version.folder.string(), .dtype = dtype, .threads = 1};
    auto tower = OpenTowerWorkers(options);
    ASSERT_TRUE(tower.ok()) << tower.status();
    EXPECT_TRUE(tower->factory(0));
    // Replaced: the mapping keeps what was verified.
    const fs::path file = version.folder / "model.safetensors";
    const std::string bytes = ReadSmallFile(file);
    WriteDurably(file, std::string(bytes.size(), '\0'));
    EXPECT_TRUE(tower->factory(0));
    WriteDurably(file, bytes);

    tower = OpenTowerWorkers(options);
    ASSERT_TRUE(tower.ok()) << tower.status();
    std::fstream(file, std::ios::in | std::ios::out) << "x";
    fs::last_write_time(file, fs::file_time_type::clock::now() + std::chrono::hours(1));
    EXPECT_THROW(tower->factory(0), std::runtime_error);
  }
}

TEST_F(TowerLoaderTest, LoadingStopsWhenTold) {
  ServableLoader::LoadOptions options;
  options.stop = [] { return true; };
  EXPECT_EQ(loader_.Load(Version(1), options).status().code(), absl::StatusCode::kCancelled);
}

TEST_F(TowerLoaderTest, StopFailsWhatWaits) {
  auto loaded = loader_.Load(Version(1), {});
  ASSERT_TRUE(loaded.ok());
  loader_.Stop();
  EXPECT_FALSE(Encodes(EngineOf(*loaded)));
}

}  // namespace
}  // namespace llava

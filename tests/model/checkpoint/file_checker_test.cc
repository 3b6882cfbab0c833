// Versions whose weights are used while they are still being checked.
#include "model/checkpoint/file_checker.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "model/checkpoint/checkpoint.h"
#include "model/checkpoint/manifest.h"
#include "model/checkpoint/mapped_file.h"
#include "model/checkpoint/tensor_file.h"
#include "model/checkpoint/verified_files.h"
#include "model/digest/sha256.h"
#include "tests/support/error_of.h"
#include "tests/support/slowdown.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class StreamedVersionTest : public testing::Test {
 protected:
  static std::string Name(int shard) { return "s" + std::to_string(shard) + ".safetensors"; }

  explicit StreamedVersionTest(int shards = 6, int64_t rows = 300) : kShards(shards) {
    Add("config.json", "{}");
    nlohmann::json map;
    for (int i = 0; i < kShards; ++i) {
      const std::string a = "a" + std::to_string(i), b = "b" + std::to_string(i);
      values_[a] = at::randn({rows + i % 5, 1000});  // of different sizes
      values_[b] = at::randn({77}).to(at::kBFloat16);
      map[a] = map[b] = Name(i);
      SaveSafetensors(folder_.path() / Name(i), {{a, values_[a]}, {b, values_[b]}});
      Add(Name(i), ReadBytes(folder_.path() / Name(i)));
    }
    Add("model.safetensors.index.json", nlohmann::json{{"weight_map", map}}.dump());
    options_.in_memory = true;
    options_.threads = 1;
  }
  void Add(const std::string& name, const std::string& bytes) {
    WriteBytes(folder_.path() / name, bytes);
    manifest_.files[name] = {bytes.size(), HashBytes(bytes)};
  }
  std::shared_ptr<const TensorFile> Open() {
    return OpenTensorFolder(folder_.path(), VerifyFiles(folder_.path(), manifest_, options_));
  }
  // Other bytes, of which the manifest says nothing.
  void Damage(int shard) {
    std::string bytes = ReadBytes(folder_.path() / Name(shard));
    bytes[bytes.size() - 1000] ^= 1;
    WriteBytes(folder_.path() / Name(shard), bytes);
  }
  void Expect(const TensorFile& file, const std::string& name) {
    EXPECT_TRUE(at::equal(file.Get(name), values_.at(name))) << name;
  }

  const int kShards;
  const TempFolder folder_;
  Manifest manifest_;
  OpenOptions options_;
  std::map<std::string, at::Tensor> values_;
};

// So many files that a thread reads them side by side where that is faster.
class ManyFilesTest : public StreamedVersionTest {
 protected:
  ManyFilesTest() : StreamedVersionTest(70, 60) {}
};

TEST_F(StreamedVersionTest, TensorsComeInAnyOrder) {
  for (const int threads : {1, 2, 7}) {
    options_.threads = threads;
    const auto file = Open();
    for (const int i : {5, 0, 3, 3, 1, 4, 2}) {
      Expect(*file, "b" + std::to_string(i));
      Expect(*file, "a" + std::to_string(i));
      file->Release("a" + std::to_string(i));
    }
    file->Finish();
    for (const auto& [name, value] : values_) Expect(*file, name);  // they stay readable
  }
}

TEST_F(StreamedVersionTest, ThoseThatNobodyAsksForAreCheckedToo) {
  const auto file = Open();
  Expect(*file, "a2");
  file->Finish();
  file->Finish();
  for (const auto& [name, value] : values_) Expect(*file, name);
}

TEST_F(StreamedVersionTest, AViewOutlivesItsRelease) {
  const auto file = Open();
  const at::Tensor view = file->Get("a0");
  file->Release("a0");
  file->Release("b0");
  file->Finish();
  EXPECT_TRUE(at::equal(view, values_.at("a0")));
}

// No more than what is needed, so that memory holds the weights about once.
TEST_F(StreamedVersionTest, ReadsAheadOnlyAsMuchAsIsGivenBack) {
  std::atomic<double> share = 0;
  options_.progress = [&](double now) { share = now; };
  const auto file = Open();
  uint64_t total = 0;
  for (const auto& [name, listed] : manifest_.files) total += listed.size_bytes;
  const auto read = [&] { return share.load() * static_cast<double>(total); };
  const auto shard = static_cast<double>(manifest_.files.at(Name(0)).size_bytes);
  const auto wait_for = [&](int shards) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60 * LLAVA_SLOWDOWN);
    while (read() < shards * shard && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_GE(read(), shards * shard);
    EXPECT_LT(read(), (shards + 1) * shard);
  };
  wait_for(3);  // one for the thread, two ahead
  Expect(*file, "a0");
  file->Release("a0");
  wait_for(4);
  file->Release("b0");
  wait_for(4);
  Expect(*file, "a5");  // who waits comes first
  wait_for(5);
  file->Finish();
  EXPECT_EQ(share, 1);
}

TEST_F(StreamedVersionTest, NothingDamagedIsGivenOut) {
  Damage(3);
  Damage(4);
  const std::string expected = folder_.path().string() +
                               ": is not what its manifest says: s3.safetensors has another "
                               "SHA-256; s4.safetensors has another SHA-256";
  EXPECT_EQ(ErrorOf([&] { Open()->Get("b3"); }), expected);
  EXPECT_EQ(ErrorOf([&] { Open()->Finish(); }), expected);
  const auto file = Open();
  try {
    Expect(*file, "a0");  // unless the others have been read already
  } catch (const std::runtime_error& error) {
    EXPECT_EQ(error.what(), expected);
  }
  EXPECT_EQ(ErrorOf([&] { file->Finish(); }), expected);
  EXPECT_EQ(ErrorOf([&] { file->Get("a1"); }), expected);
}

TEST_F(ManyFilesTest, TensorsComeInAnyOrder) {
  for (const int threads : {1, 2, 3}) {
    options_.threads = threads;
    const auto file = Open();
    for (int i = 0; i < kShards; ++i) {
      const std::string number = std::to_string(i * 43 % kShards);
      Expect(*file, "b" + number);
      const at::Tensor view = file->Get("a" + number);
      file->Release("a" + number);
      file->Release("b" + number);
      EXPECT_TRUE(at::equal(view, values_.at("a" + number)));
    }
    file->Finish();
    for (const auto& [name, value] : values_) Expect(*file, name);
  }
}

// Those who make less of the weights than they are want few of them in memory.
TEST_F(ManyFilesTest, AreReadSideBySideOnlyWhereThatIsWanted) {
  for (const bool side_by_side : {true, false}) {
    options_.side_by_side = side_by_side;
    std::atomic<double> share = 0;
    options_.progress = [&](double now) { share = now; };
    const int lanes = side_by_side ? Sha256::MostTogether() : 1;
    const int ahead = lanes + std::max(2, lanes / 2);
    const auto files = [&] { return share.load() * kShards; };  // about
    const auto file = Open();
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60 * LLAVA_SLOWDOWN);
    while (files() < ahead - 0.5 && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_NEAR(files(), ahead, 0.5);
    file->Finish();
    EXPECT_EQ(share, 1);
  }
}

TEST_F(ManyFilesTest, AllThatIsDamagedIsTold) {
  for (const int shard : {0, 31, 69}) Damage(shard);
  const std::string expected = folder_.path().string() +
                               ": is not what its manifest says: s0.safetensors has another "
                               "SHA-256; s31.safetensors has another SHA-256; s69.safetensors has "
                               "another SHA-256";
  EXPECT_EQ(ErrorOf([&] { Open()->Get("a0"); }), expected);
  EXPECT_EQ(ErrorOf([&] { Open()->Finish(); }), expected);
  options_.in_memory = false;
  EXPECT_EQ(ErrorOf([&] { Open(); }), expected);
}

TEST_F(ManyFilesTest, NumbersThatAreNoneAreFound) {
  for (const int i : {3, 64}) {
    const std::string a = "a" + std::to_string(i), b = "b" + std::to_string(i);
    values_[a][7][7] = NAN;
    SaveSafetensors(folder_.path() / Name(i), {{a, values_[a]}, {b, values_[b]}});
    Add(Name(i), ReadBytes(folder_.path() / Name(i)));
  }
  EXPECT_EQ(ErrorOf([&] { Open()->Finish(); }),
            folder_.path().string() +
                ": 1 value of tensor \"a3\", 1 value of tensor \"a64\" are NaN or infinite");
}

TEST_F(ManyFilesTest, MayBeLeftAtAnyTime) {
  for (int i = 0; i < 20; ++i) {
    const auto file = Open();
    if (i % 2 == 1) Expect(*file, "a" + std::to_string(i));
  }
}

TEST_F(StreamedVersionTest, NumbersThatAreNoneAreFound) {
  values_["a4"][7][7] = NAN;
  SaveSafetensors(folder_.path() / Name(4), {{"a4", values_["a4"]}, {"b4", values_["b4"]}});
  Add(Name(4), ReadBytes(folder_.path() / Name(4)));
  EXPECT_EQ(ErrorOf([&] { Open()->Finish(); }),
            folder_.path().string() + ": 1 value of tensor \"a4\" is NaN or infinite");
}

// The header was read before the bytes are checked: what it says must not be believed then.
TEST_F(StreamedVersionTest, ADamagedHeaderIsToldAsDamage) {
  std::string bytes = ReadBytes(folder_.path() / Name(2));
  bytes[9] = '!';
  WriteBytes(folder_.path() / Name(2), bytes);
  EXPECT_EQ(ErrorOf([&] { Open(); }),
            folder_.path().string() +
                ": is not what its manifest says: s2.safetensors has another SHA-256");
  bytes = ReadBytes(folder_.path() / Name(1));
  bytes[bytes.find("b1")] = 'c';  // another name for a tensor
  WriteBytes(folder_.path() / Name(1), bytes);
  EXPECT_THAT(ErrorOf([&] { Open()->Finish(); }), HasSubstr("s1.safetensors has another SHA-256"));
}

TEST_F(StreamedVersionTest, AHeaderThatChangedMeanwhileIsNotBelieved) {
  const std::string name = Name(0);
  const auto& listed = manifest_.files.at(name);
  FileChecker::File file{name,
                         listed.size_bytes,
                         listed.sha256,
                         std::make_shared<const MappedFile>(folder_.path() / name),
                         {8, 0, 0, 0, 0, 0, 0, 0, '{', '}', ' ', ' ', ' ', ' ', ' ', ' '}};
  FileChecker checker(folder_.path(), {file}, options_);
  EXPECT_THAT(ErrorOf([&] { checker.Await(0); }), HasSubstr(name + " changed while it was read"));
}

TEST_F(StreamedVersionTest, AFileThatGoesAwayIsTold) {
  const auto file = Open();
  fs::remove(folder_.path() / Name(5));
  EXPECT_THAT(ErrorOf([&] { file->Get("a5"); }),
              HasSubstr(Name(5) + ": cannot open: No such file or directory"));
  EXPECT_NE(ErrorOf([&] { file->Finish(); }), "");
}

TEST_F(StreamedVersionTest, CanBeStoppedAtAnyTime) {
  std::atomic<bool> stop = false;
  options_.stop = [&] { return stop.load(); };
  const auto file = Open();
  Expect(*file, "a0");
  stop = true;
  EXPECT_THROW(file->Get("a5"), OpenStopped);
  EXPECT_THROW(file->Finish(), OpenStopped);
}

TEST_F(StreamedVersionTest, MayBeLeftAtAnyTime) {
  for (int i = 0; i < 20; ++i) {
    const auto file = Open();
    if (i % 2 == 1) Expect(*file, "a" + std::to_string(i % kShards));
  }
}

TEST_F(StreamedVersionTest, NobodyIsCalledAfterTheEnd) {
  auto alive = std::make_unique<bool>(true);
  options_.progress = [&alive](double) { ASSERT_TRUE(*alive); };
  options_.stop = [&alive] { return !*alive; };
  const auto file = Open();
  file->Finish();
  alive.reset();
  for (const auto& [name, value] : values_) Expect(*file, name);
}

TEST_F(StreamedVersionTest, ManyReadersShareIt) {
  options_.threads = 3;
  const auto file = Open();
  std::vector<std::thread> readers;
  for (int r = 0; r < 3; ++r) {
    readers.emplace_back([&, r] {
      for (int i = 0; i < kShards; ++i) {
        const std::string number = std::to_string((i + r) % kShards);
        Expect(*file, "a" + number);
        file->Release("a" + number);
      }
      file->Finish();
    });
  }
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace llava

#include "model/checkpoint/verified_files.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "model/checkpoint/file_reader.h"
#include "model/checkpoint/finite.h"
#include "model/checkpoint/read_buffers.h"
#include "model/checkpoint/tensor_file.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string Bytes(size_t size) {
  std::string bytes(size, '\0');
  uint32_t state = 1;
  for (char& byte : bytes) byte = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return bytes;
}

TEST(FileReaderTest, GivesEveryByteInOrder) {
  const TempFolder folder;
  const fs::path path = folder.path() / "f";
  const auto buffers = ReadBuffers::Create();  // the same memory again and again
  for (const size_t size :
       {size_t{0}, size_t{1}, FileReader::kChunkBytes, 7 * FileReader::kChunkBytes + 4097}) {
    const std::string bytes = Bytes(size);
    WriteBytes(path, bytes);
    for (const auto into : {FileReader::Into::kWindow, FileReader::Into::kMemory}) {
      const auto memory = buffers->Take(FileReader::MemoryBytes(size, into));
      FileReader reader(path, size, into, memory);
      std::string read;
      for (;;) {
        const auto chunk = reader.Next([] {});
        if (chunk.empty()) break;
        read.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
      }
      EXPECT_TRUE(read == bytes) << size << " " << static_cast<int>(into);
      if (into == FileReader::Into::kWindow) continue;
      EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(), memory.get(),
                             [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; }));
    }
  }
}

TEST(FileReaderTest, TellsThatAFileHasAnotherSize) {
  const TempFolder folder;
  const fs::path path = folder.path() / "f";
  WriteBytes(path, Bytes(5000));
  const auto buffers = ReadBuffers::Create();
  const auto error = [&](uint64_t size, FileReader::Into into) {
    return ErrorOf([&] {
      FileReader reader(path, size, into, buffers->Take(FileReader::MemoryBytes(size, into)));
      while (!reader.Next([] {}).empty()) {
      }
    });
  };
  for (const auto into : {FileReader::Into::kWindow, FileReader::Into::kMemory}) {
    EXPECT_EQ(error(6000, into), path.string() + ": ends after 5000 bytes, expected 6000");
    EXPECT_EQ(error(4000, into),
              path.string() + ": goes on after the 4000 bytes that are expected");
  }
}

// One that nobody listens to any more ends.
TEST(FileReaderTest, MayBeLeftEarly) {
  const TempFolder folder;
  constexpr size_t kSize = 9 * FileReader::kChunkBytes;
  constexpr auto kWindow = FileReader::Into::kWindow;
  WriteBytes(folder.path() / "f", Bytes(kSize));
  FileReader reader(folder.path() / "f", kSize, kWindow,
                    ReadBuffers::Create()->Take(FileReader::MemoryBytes(kSize, kWindow)));
  EXPECT_EQ(reader.Next([] {}).size(), FileReader::kChunkBytes);
}

TEST(ReadBuffersTest, AreUsedAgainUntilNobodyWantsMore) {
  const auto buffers = ReadBuffers::Create();
  auto first = buffers->Take(5'000'000);
  const uint8_t* const place = first.get();
  first.get()[4'999'999] = 7;
  auto second = buffers->Take(1);
  EXPECT_NE(second.get(), place);
  first.reset();
  first = buffers->Take(4'500'000);
  EXPECT_EQ(first.get(), place);
  EXPECT_EQ(first.get()[4'999'999], 7);  // as it was
  second.reset();
  second = buffers->Take(9'000'000);  // what is there is too small
  std::fill_n(second.get(), 9'000'000, 1);
  first.reset();
  buffers->Keep(0);
  second.get()[8'999'999] = 2;  // still there
  second.reset();
  EXPECT_EQ(buffers->Take(5'000'000).get()[4'999'999], 0);  // new
}

TEST(ReadBuffersTest, OutliveWhereTheyComeFrom) {
  const auto memory = ReadBuffers::Create()->Take(100);
  memory.get()[99] = 1;
  EXPECT_EQ(memory.get()[99], 1);
}

class VerifiedFilesTest : public testing::Test {
 protected:
  void Add(const std::string& name, const std::string& bytes) {
    WriteBytes(folder_.path() / name, bytes);
    manifest_.files[name] = {bytes.size(), HashBytes(bytes)};
  }
  TensorFiles Verify() { return VerifyFiles(folder_.path(), manifest_, options_); }

  const TempFolder folder_;
  Manifest manifest_;
  OpenOptions options_;
};

TEST_F(VerifiedFilesTest, ListsEveryFileThatDiffers) {
  for (const char* name : {"a", "b", "c", "d", "e"}) Add(name, std::string("content of ") + name);
  EXPECT_NO_THROW(Verify());
  WriteBytes(folder_.path() / "c", "content of x");
  WriteBytes(folder_.path() / "e", "content of x");
  EXPECT_THAT(
      ErrorOf([&] { Verify(); }),
      AllOf(HasSubstr("c has another SHA-256; e has another SHA-256"), Not(HasSubstr("a has"))));
  // Sizes come first: nothing needs to be read to see them.
  WriteBytes(folder_.path() / "b", "longer than it was");
  fs::remove(folder_.path() / "d");
  EXPECT_EQ(ErrorOf([&] { Verify(); }),
            folder_.path().string() +
                ": is not what its manifest says: b has 18 bytes, expected 12; d cannot be read "
                "(No such file or directory)");
}

TEST_F(VerifiedFilesTest, KeepsTensorsInMemory) {
  const at::Tensor large = at::randn({3000, 1000}), small = at::ones({3}, at::kHalf);
  SaveSafetensors(folder_.path() / "model.safetensors", {{"large", large}, {"small", small}});
  Add("model.safetensors", ReadBytes(folder_.path() / "model.safetensors"));
  Add("config.json", "{}");
  options_.in_memory = true;
  const TensorFiles files = Verify();
  ASSERT_EQ(files.size(), 1u);
  const auto opened = OpenTensorFolder(folder_.path(), files);
  opened->Get("small");
  fs::remove(folder_.path() / "model.safetensors");  // is not opened again
  EXPECT_TRUE(at::equal(opened->Get("large"), large));
  opened->Release("large");
  EXPECT_TRUE(at::equal(opened->Get("large"), large));
  EXPECT_TRUE(at::equal(opened->Get("small"), small));
  opened->Finish();
}

TEST_F(VerifiedFilesTest, TellsHowFarItIs) {
  Add("a", Bytes(3 * FileReader::kChunkBytes + 1));
  Add("b", "");
  Add("c", "c");
  std::vector<double> shares;
  options_.progress = [&](double share) { shares.push_back(share); };
  Verify();
  ASSERT_EQ(shares.size(), 5u);
  EXPECT_TRUE(std::is_sorted(shares.begin(), shares.end()));
  EXPECT_EQ(shares.back(), 1);
}

TEST_F(VerifiedFilesTest, CanBeStopped) {
  Add("a", Bytes(3 * FileReader::kChunkBytes));
  int asked = 0;
  options_.stop = [&] { return ++asked == 2; };
  EXPECT_THROW(Verify(), OpenStopped);
  EXPECT_EQ(asked, 2);
}

TEST_F(VerifiedFilesTest, KeepsToARate) {
  Add("a", Bytes(2 * FileReader::kChunkBytes));
  options_.bytes_per_second = 10 * static_cast<double>(FileReader::kChunkBytes);
  const auto begin = std::chrono::steady_clock::now();
  Verify();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(200));
}

// Wherever they stand and however the bytes come.
TEST(FiniteCheckTest, FindsThemAcrossPieces) {
  const TempFolder folder;
  const fs::path path = folder.path() / "m";
  const double nan = NAN, infinite = INFINITY;
  at::Tensor f32 = at::randn({1000}), bf16 = at::randn({1000}).to(at::kBFloat16);
  at::Tensor f16 = at::randn({1000}).to(at::kHalf), good = at::randn({1000});
  f32[0] = nan;
  f32[999] = -infinite;
  bf16[500] = infinite;
  f16[7] = nan;
  good[1] = 3.4e38;
  SaveSafetensors(path, {{"f32", f32},
                         {"bf16", bf16},
                         {"f16", f16},
                         {"good", good},
                         {"bytes", at::full({100}, 255, at::kByte)}});
  const std::string bytes = ReadBytes(path);
  for (const size_t piece : {size_t{8}, size_t{64}, size_t{4096}, bytes.size()}) {
    FiniteCheck check(bytes.size());
    for (size_t from = 0; from < bytes.size(); from += piece) {
      const size_t size = std::min(piece, bytes.size() - from);
      check.Feed({reinterpret_cast<const uint8_t*>(bytes.data()) + from, size});
    }
    EXPECT_THAT(check.counts(),
                testing::ElementsAre(testing::Pair("bf16", 1), testing::Pair("f16", 1),
                                     testing::Pair("f32", 2)))
        << piece;
  }
  // What is no safetensors file is for others to refuse.
  FiniteCheck check(8);
  check.Feed({reinterpret_cast<const uint8_t*>("\xff\xff\xff\xff\xff\xff\xff\xff"), 8});
  EXPECT_TRUE(check.counts().empty());
  EXPECT_EQ(DescribeNonFinite({}), "");
  EXPECT_EQ(DescribeNonFinite({{"a", 1}, {"b", 2}}),
            "1 value of tensor \"a\", 2 values of tensor \"b\" are NaN or infinite");
}

}  // namespace
}  // namespace llava

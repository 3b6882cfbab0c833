#include "model/checkpoint/tensor_file.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "model/checkpoint/tensor_source.h"
#include "tests/model/checkpoint/folders.h"
#include "tests/support/error_of.h"
#include "tests/support/fixtures.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;

std::string Safetensors(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string OpenError(const std::string& bytes) {
  const TempFolder folder;
  const auto path = folder.path() / "x.safetensors";
  WriteBytes(path, bytes);
  const std::string error = ErrorOf([&] { TensorFile::Open(path); });
  EXPECT_THAT(error, HasSubstr(path.string()));
  return error;
}

TEST(SafetensorsTest, GivesBackWhatWasSaved) {
  const TempFolder folder;
  const auto path = folder.path() / "m.safetensors";
  std::map<std::string, at::Tensor> tensors;
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble, at::kLong, at::kInt,
                           at::kShort, at::kChar, at::kByte, at::kBool}) {
    tensors[at::toString(dtype)] = at::randint(0, 2, {3, 5}, at::kLong).to(dtype);
  }
  tensors["scalar"] = at::tensor(2.5f);
  tensors["empty"] = at::empty({0, 4}, at::kFloat);
  tensors["transposed \"name\""] = at::arange(6, at::kFloat).view({2, 3}).t();
  SaveSafetensors(path, tensors, {{"format", "pt"}});
  const auto file = TensorFile::Open(path);
  ASSERT_EQ(file->tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor read = file->Get(name);
    EXPECT_EQ(read.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(read.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(at::equal(read, tensor)) << name;
    EXPECT_TRUE(read.is_contiguous()) << name;
  }
  EXPECT_THROW(file->Get("absent"), std::out_of_range);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1)
      << "a temporary file was left";
}

TEST(SafetensorsTest, TensorsOutliveTheirFile) {
  const TempFolder folder;
  SaveSafetensors(folder.path() / "m", {{"x", at::arange(1000)}});
  const at::Tensor tensor = TensorFile::Open(folder.path() / "m")->Get("x");
  EXPECT_TRUE(at::equal(tensor, at::arange(1000)));
}

TEST(SafetensorsTest, CopiesWhatIsNotAligned) {
  const TempFolder folder;
  const float values[] = {1, 2};
  const std::string data(reinterpret_cast<const char*>(values), 8);
  WriteBytes(folder.path() / "m",
             Safetensors(R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                         R"("f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}} )",
                         "\7" + data));
  const auto file = TensorFile::Open(folder.path() / "m");
  EXPECT_TRUE(at::equal(file->Get("f"), at::tensor({1.f, 2.f})));
}

TEST(SafetensorsTest, RefusesHeadersThatLie) {
  const auto one = [](const std::string& entry) { return R"({"x":)" + entry + "}"; };
  const struct {
    std::string header, data;
    const char* error;
  } cases[] = {
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), "1234567", "not within"},
      {one(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), "12345678", "does not fill"},
      {one(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), "12345678", "not within"},
      {one(R"({"dtype":"F8_E5M2","shape":[8],"data_offsets":[0,8]})"), "12345678", "F8_E5M2"},
      {one(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), "12345678", "lists of sizes"},
      {one(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})"), "12345678", "lists of sizes"},
      {one(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})"), "12345678", "lists of sizes"},
      {one(R"({"dtype":"F32","shape":[2]})"), "12345678", "lacks"},
      {one(R"({"dtype":7,"shape":[2],"data_offsets":[0,8]})"), "12345678", "lacks"},
      {one("5"), "12345678", "not an object"},
      {one(R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]})"), "",
       "does not fill"},
      {one(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})"), "12345678",
       "4 bytes that belong"},
      {one(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), "12345678", "overlap, gap"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
       R"("b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "12345678", "overlap, gap"},
      {"{\"x\":", "", "not a JSON object"},
  };
  for (const auto& [header, data, error] : cases) {
    EXPECT_THAT(OpenError(Safetensors(header, data)), HasSubstr(error)) << header;
  }
  std::string huge = Safetensors("{}", "");
  huge[3] = 4;  // a header of 64 MiB that is not there
  EXPECT_THAT(OpenError(huge), HasSubstr("is cut off"));
}

TEST(TensorFileTest, NamesWhatItIsNot) {
  EXPECT_THAT(OpenError(""), HasSubstr("is empty"));
  EXPECT_THAT(OpenError("hello, world, this is text"), HasSubstr("neither"));
  EXPECT_THAT(OpenError("version https://git-lfs.github.com/spec/v1\n"), HasSubstr("git lfs pull"));
  EXPECT_THAT(OpenError("\x80\x02}q"), HasSubstr("before 1.6"));
  EXPECT_THAT(ErrorOf([] { TensorFile::Open("/nowhere/x"); }), HasSubstr("cannot open"));
  EXPECT_THAT(ErrorOf([] { TensorFile::Open("/"); }), HasSubstr("not a regular file"));
}

// The two shard formats of one model hold the same numbers (bfloat16 is rounded float32).
TEST(TensorFileTest, ReadsShardsOfBothFormats) {
  const auto pickled = OpenTensorFolder(FixturesDir() / "orig-f32");
  const auto safe = OpenTensorFolder(FixturesDir() / "orig-bf16");
  EXPECT_GT(pickled->tensors().size(), 10u);
  for (const auto& [name, info] : pickled->tensors()) {
    EXPECT_TRUE(at::equal(pickled->Get(name).to(at::kBFloat16), safe->Get(name))) << name;
  }
}

TEST(TensorFileTest, NamesMissingShardsAndTensors) {
  const TempFolder folder;
  const auto path = CopyOf("orig-bf16", folder);
  EditJson(path / "model.safetensors.index.json", [](auto& index) {
    index["weight_map"]["model.extra.weight"] = index["weight_map"]["model.norm.weight"];
  });
  EXPECT_THAT(ErrorOf([&] { OpenTensorFolder(path); }), HasSubstr("model.extra.weight in model-"));
  EditJson(path / "model.safetensors.index.json",
           [](auto& index) { index["weight_map"]["model.norm.weight"] = "../elsewhere"; });
  EXPECT_THAT(ErrorOf([&] { OpenTensorFolder(path); }), HasSubstr("not in a file of the folder"));
  EditJson(path / "model.safetensors.index.json",
           [](auto& index) { index["weight_map"]["model.norm.weight"] = "gone.safetensors"; });
  EXPECT_THAT(ErrorOf([&] { OpenTensorFolder(path); }), HasSubstr("gone.safetensors"));
  std::filesystem::remove(path / "model.safetensors.index.json");
  EXPECT_THAT(ErrorOf([&] { OpenTensorFolder(path); }), HasSubstr("has no tensors"));
}

// Two tensors, and how often it was finished.
class CountingFile : public TensorFile {
 public:
  const std::map<std::string, TensorInfo>& tensors() const override { return infos_; }
  at::Tensor Get(const std::string&) const override { return at::zeros({1}); }
  void Finish() const override { ++finished; }

  mutable int finished = 0;

 private:
  const std::map<std::string, TensorInfo> infos_ = {{"a", {at::kFloat, {1}}},
                                                    {"b", {at::kFloat, {1}}}};
};

TEST(TensorSourceTest, FinishesEachFileOnce) {
  TensorSource source;
  const auto one = std::make_shared<const CountingFile>(),
             other = std::make_shared<const CountingFile>();
  for (const char* name : {"a", "b"}) {
    source.Add(std::string("one.") + name, one, name);
    source.Add(std::string("other.") + name, other, name);
  }
  source.Finish();
  EXPECT_EQ(one->finished, 1);
  EXPECT_EQ(other->finished, 1);
}

// Every byte read, so that a bad range shows under a sanitizer.
void ReadAll(const std::filesystem::path& path) {
  try {
    const auto file = TensorFile::Open(path);
    for (const auto& [name, info] : file->tensors()) {
      const at::Tensor tensor = file->Get(name).contiguous();
      std::string copy(tensor.nbytes(), '\0');
      if (!copy.empty()) std::memcpy(copy.data(), tensor.const_data_ptr(), copy.size());
    }
  } catch (const std::runtime_error&) {
  }
}

TEST(TensorFileTest, SurvivesTruncationAndDamage) {
  const TempFolder folder;
  const auto small = folder.path() / "small.safetensors";
  SaveSafetensors(small, {{"a", at::ones({4, 3})}, {"b", at::ones({7}, at::kByte)}});
  std::mt19937 random(5);
  for (const auto& source : {small, FixturesDir() / "stage1-linear/mm_projector.bin"}) {
    const std::string whole = ReadBytes(source);
    const auto path = folder.path() / "spoiled";
    for (size_t size = 0; size < whole.size(); size += 1 + whole.size() / 150) {
      WriteBytes(path, whole.substr(0, size));
      EXPECT_THROW(TensorFile::Open(path), std::runtime_error) << source << " at " << size;
    }
    for (int i = 0; i < 1500; ++i) {
      std::string damaged = whole;
      // Most of it where the structure is: the beginning and the end.
      const size_t span = std::min<size_t>(damaged.size(), 1200);
      const size_t at = i % 2 == 0 ? random() % span : damaged.size() - 1 - random() % span;
      damaged[at] = static_cast<char>(i % 3 == 0 ? random() : damaged[at] ^ 1 << random() % 8);
      WriteBytes(path, damaged);
      ReadAll(path);
    }
  }
}

}  // namespace
}  // namespace llava

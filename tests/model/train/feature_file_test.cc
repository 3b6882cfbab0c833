#include "model/train/feature_file.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <stdexcept>

#include <ATen/ATen.h>

namespace llava {
namespace {

class FeatureFileTest : public testing::Test {
 protected:
  std::unique_ptr<FeatureFile> Open(const std::string& origin = "tower a",
                                    at::IntArrayRef shape = {3, 4},
                                    at::ScalarType dtype = at::kFloat) const {
    return std::make_unique<FeatureFile>(path_, origin, shape, dtype);
  }
  static Sha256Digest Name(int number) { return HashBytes("picture " + std::to_string(number)); }
  static at::Tensor Values(int number) { return at::full({3, 4}, number + 0.25, at::kFloat); }
  std::string Refusal(const std::string& origin, at::IntArrayRef shape, at::ScalarType dtype) {
    try {
      Open(origin, shape, dtype);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  }

  TempFolder scratch_;
  const std::filesystem::path path_ = scratch_.path() / "features";
};

TEST_F(FeatureFileTest, KeepsFeaturesForTheNextRun) {
  {
    const auto file = Open();
    EXPECT_FALSE(file->Find(Name(1)));
    file->Add(Name(1), Values(1));
    file->Add(Name(2), Values(2).t().contiguous().t());
    EXPECT_TRUE(at::equal(*file->Find(Name(1)), Values(1)));
  }
  const auto file = Open();
  EXPECT_TRUE(at::equal(*file->Find(Name(1)), Values(1)));
  EXPECT_TRUE(at::equal(*file->Find(Name(2)), Values(2)));
  EXPECT_FALSE(file->Find(Name(3)));
  file->Add(Name(3), Values(3));
  EXPECT_TRUE(at::equal(*file->Find(Name(3)), Values(3)));
}

TEST_F(FeatureFileTest, DropsWhatWasCutOff) {
  {
    const auto file = Open();
    file->Add(Name(1), Values(1));
    file->Add(Name(2), Values(2));
  }
  std::filesystem::resize_file(path_, std::filesystem::file_size(path_) - 5);
  {
    const auto file = Open();
    EXPECT_FALSE(file->Find(Name(2)));
    file->Add(Name(3), Values(3));
  }
  const auto file = Open();
  EXPECT_FALSE(file->Find(Name(2)));
  EXPECT_TRUE(at::equal(*file->Find(Name(3)), Values(3)));
  EXPECT_TRUE(at::equal(*file->Find(Name(1)), Values(1)));
}

TEST_F(FeatureFileTest, DoesNotReturnDamagedValues) {
  { Open()->Add(Name(1), Values(1)); }
  {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-3, std::ios::end);
    file.put('x');
  }
  const auto file = Open();
  EXPECT_FALSE(file->Find(Name(1)));
  file->Add(Name(1), Values(1));  // computed anew
  EXPECT_TRUE(at::equal(*file->Find(Name(1)), Values(1)));
}

TEST_F(FeatureFileTest, RefusesFeaturesOfAnotherKind) {
  { Open(); }
  for (const std::string& refusal :
       {Refusal("tower b", {3, 4}, at::kFloat), Refusal("tower a", {4, 4}, at::kFloat),
        Refusal("tower a", {3, 4}, at::kBFloat16)}) {
    EXPECT_THAT(refusal, testing::HasSubstr("is no cache of the features wanted here"));
  }
  EXPECT_EQ(Refusal("tower a", {3, 4}, at::kFloat), "");
  std::ofstream(path_) << "something else";
  EXPECT_NE(Refusal("tower a", {3, 4}, at::kFloat), "");
  std::ofstream(path_) << "LLVAF";  // killed while it began
  EXPECT_EQ(Refusal("tower a", {3, 4}, at::kFloat), "");
}

TEST_F(FeatureFileTest, IsForOneProcessAtATime) {
  const auto file = Open();
  EXPECT_THAT(Refusal("tower a", {3, 4}, at::kFloat), testing::HasSubstr("another run uses"));
}

}  // namespace
}  // namespace llava

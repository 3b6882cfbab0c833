#include "model/train/training_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

#include "model/text/labels.h"
#include "tests/model/llava/tiny_llava.h"
#include "tests/model/nn/tiny_model.h"

namespace llava {
namespace {

constexpr int32_t kImage = kImageToken;
constexpr int64_t kNone = kIgnoreLabel;

// `trained`: how many ids at the end.
EncodedSample Sample(std::vector<int32_t> ids, size_t trained) {
  EncodedSample sample;
  sample.labels.assign(ids.size(), kNone);
  for (size_t i = ids.size() - trained; i < ids.size(); ++i) sample.labels[i] = ids[i];
  sample.num_images = static_cast<int>(std::count(ids.begin(), ids.end(), kImage));
  sample.input_ids = std::move(ids);
  return sample;
}

TEST(TrainingRowsTest, SharesWhatIsEqualUpToThePicture) {
  const auto rows = MakeRows({Sample({1, 5, kImage, 7, 8}, 1), Sample({1, 5, kImage, 9}, 1),
                              Sample({1, 5, kImage, 7, 8, 10}, 2)},
                             {{TinyFeatures(1)}});
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_THAT(rows[0].input_ids, testing::ElementsAre(1, 5, kImage, 7, 8, 9, 7, 8, 10));
  EXPECT_THAT(rows[0].labels, testing::ElementsAre(kNone, kNone, kNone, kNone, 8, 9, kNone, 8, 10));
  EXPECT_EQ(rows[0].shared, 3);
  EXPECT_THAT(rows[0].branches, testing::ElementsAre(2, 1, 3));
  EXPECT_EQ(rows[0].features.size(), 1u);
}

TEST(TrainingRowsTest, KeepsApartWhatCannotBeShared) {
  // Another text in front of the picture, a picture behind the question, text alone.
  const auto rows = MakeRows({Sample({1, 5, kImage, 7}, 1), Sample({1, 6, kImage, 7}, 1),
                              Sample({1, 5, 7, kImage, 8}, 1), Sample({1, 5, kImage, 9}, 1)},
                             {{TinyFeatures(1)}});
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_THAT(rows[0].branches, testing::ElementsAre(1, 1));
  for (const size_t alone : {1, 2}) {
    EXPECT_EQ(rows[alone].shared, 0);
    EXPECT_TRUE(rows[alone].branches.empty());
  }
  const auto texts = MakeRows({Sample({1, 5, 7}, 1), Sample({1, 5, 8}, 1)}, {});
  EXPECT_EQ(texts.size(), 2u);
  // An answer in front of a later picture is trained: shared, it would count once only.
  EXPECT_EQ(MakeRows({Sample({1, kImage, 7, kImage, 8}, 3), Sample({1, kImage, 7, kImage, 9}, 3)},
                     {{TinyFeatures(1)}, {TinyFeatures(2)}})
                .size(),
            2u);
}

// Loss and gradients of all parameters.
std::map<std::string, at::Tensor> LossAndGradients(const std::vector<TrainingRow>& rows) {
  Llava model = TinyLlava();
  std::map<std::string, at::Tensor> results;
  model.VisitParameters(
      [](const std::string&, at::Tensor& parameter) { parameter.requires_grad_(); });
  std::vector<LabelledSample> samples;
  for (const TrainingRow& row : rows) samples.push_back(row.View());
  const at::Tensor loss = Predict(model, samples).Loss();
  loss.backward();
  results["loss"] = loss.detach();
  model.VisitParameters(
      [&](const std::string& name, at::Tensor& parameter) { results[name] = parameter.grad(); });
  return results;
}

TEST(TrainingRowsTest, PackedRowsLearnTheSameAsSeparateSamples) {
  const std::vector<EncodedSample> of_first = {
      Sample({1, 5, kImage, 7, 8, 12, 13}, 2), Sample({1, 5, kImage, 9}, 1),
      Sample({1, 5, kImage, 7, 8, 10}, 2), Sample({1, 7, kImage, 11, 12}, 1),
      Sample({1, 5, kImage, 14, 15, 16, 2}, 4)};
  const std::vector<EncodedSample> of_second = {Sample({1, 5, kImage, 7, 30}, 1),
                                                Sample({1, 5, kImage, 31, 2}, 1)};
  const std::vector<PictureFeatures> first = {{TinyFeatures(1)}}, second = {{TinyFeatures(2)}};
  std::vector<TrainingRow> packed = MakeRows(of_first, first), separate;
  for (TrainingRow& row : MakeRows(of_second, second)) packed.push_back(std::move(row));
  EXPECT_EQ(packed.size(), 3u);
  for (const EncodedSample& sample : of_first) separate.push_back(MakeRows({sample}, first)[0]);
  for (const EncodedSample& sample : of_second) separate.push_back(MakeRows({sample}, second)[0]);
  EXPECT_EQ(separate.size(), 7u);

  const auto expected = LossAndGradients(separate), found = LossAndGradients(packed);
  ASSERT_EQ(expected.size(), found.size());
  for (const auto& [name, value] : expected) {
    EXPECT_GT(value.abs().max().item<double>(), 1e-4) << name;
    EXPECT_LT(MaxDifference(value, found.at(name)), 1e-5) << name;
  }
}

}  // namespace
}  // namespace llava

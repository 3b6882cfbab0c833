#include "model/eval/chat_quality.h"

#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <set>
#include <stdexcept>

#include "model/checkpoint/checkpoint.h"
#include "model/nn/clip.h"
#include "tests/support/paths.h"

namespace llava {
namespace {

using testing::HasSubstr;

const std::filesystem::path kModels = SourceDir() + "/deploy/models";

// The shipped model with its tower.
struct Shipped {
  LanguageCheckpoint language = OpenLanguage(kModels / "emoji");
  TowerCheckpoint eye = OpenTower(kModels / "emoji-tower");
  Llava model{language, at::kCPU, at::kFloat};
  ClipTower tower{eye.config, eye.tensors, at::kCPU, at::kFloat};
  Eye look = TowerEye(tower, language.config.features);
};

Shipped& Model() {
  static Shipped shipped;
  return shipped;
}

QualityOptions FewQuestions() {
  QualityOptions options;
  options.exam.per_type = 6;
  options.threads = 2;
  return options;
}

PictureFeatures SeeNothing(const Scene&) {
  const VisionConfig& eye = Model().eye.config;
  return {at::zeros({eye.num_patches(), eye.hidden_size}), {}};
}

const QualityRow& RowOf(const std::vector<QualityRow>& rows, const std::string& name) {
  for (const QualityRow& row : rows) {
    if (row.name == name) return row;
  }
  throw std::out_of_range(name);
}

TEST(MeasureQualityTest, TheShippedModelSeesAndBeatsItsBaselines) {
  const Quality quality = MeasureQuality(Model().model, Model().look, FewQuestions());
  const QualityRow& naming = RowOf(quality.groups, "naming");
  EXPECT_EQ(naming.picture.asked, 12);  // what and this: no wordings for brief
  EXPECT_GT(naming.picture.value(), 0.7);
  EXPECT_LT(*naming.blind, 0.2);
  EXPECT_LT(*naming.majority, 0.3);
  EXPECT_FALSE(naming.oracle.has_value());
  EXPECT_GT(RowOf(quality.types, "exist").picture.value(), 0.7);
  EXPECT_GT(RowOf(quality.groups, "chains").picture.value(), 0.5);
  EXPECT_EQ(RowOf(quality.groups, "follow_up").picture.asked, 8 * 6);
}

TEST(MeasureQualityTest, WhoSeesNothingIsBlind) {
  const Quality quality = MeasureQuality(Model().model, SeeNothing, FewQuestions());
  for (const auto* rows : {&quality.groups, &quality.types}) {
    for (const QualityRow& row : *rows) EXPECT_EQ(row.picture.value(), row.blind) << row.name;
  }
}

TEST(MeasureQualityTest, TheOracleReadsTheTokensItIsGiven) {
  QualityOptions options = FewQuestions();
  options.blind = options.majority = false;
  const Shipped& shipped = Model();
  options.oracle = [&shipped](const Scene& scene) {
    const at::Tensor features = shipped.look(scene).rows;
    return shipped.model.Project({&features, 1})[0];
  };
  const Quality quality = MeasureQuality(shipped.model, SeeNothing, options);
  const QualityRow& naming = RowOf(quality.groups, "naming");
  EXPECT_LT(naming.picture.value(), 0.2);
  EXPECT_GT(*naming.oracle, 0.7);
  EXPECT_FALSE(naming.blind.has_value());
  EXPECT_FALSE(naming.majority.has_value());
}

TEST(MeasureQualityTest, RefusesAnEyeOfAnotherShape) {
  const Eye odd = [](const Scene&) { return PictureFeatures{at::zeros({3, 5}), {}}; };
  EXPECT_THROW(MeasureQuality(Model().model, odd, FewQuestions()), std::invalid_argument);
}

TEST(MeasureQualityTest, ShowsProgress) {
  QualityOptions options = FewQuestions();
  options.exam.per_type = 1;
  options.progress = std::tmpfile();
  MeasureQuality(Model().model, Model().look, options);
  std::rewind(options.progress);
  char line[200] = "";
  while (std::fgets(line, sizeof(line), options.progress)) {
  }
  std::fclose(options.progress);
  EXPECT_THAT(line, HasSubstr("(100 %)"));
}

Quality Made() {
  return {.groups = {{"naming", {90, 100}, 0.1, 0.2, std::nullopt}},
          .types = {{"what", {40, 50}, std::nullopt, 0.25, 1.0}}};
}

TEST(QualityJsonTest, HasTheAgreedKeys) {
  const auto json = QualityJson(Made(), {{"seed", 7}});
  const auto& naming = json["naming"];
  std::set<std::string> keys;
  for (const auto& [key, value] : naming.items()) keys.insert(key);
  EXPECT_EQ(keys,
            (std::set<std::string>{"accuracy", "low", "high", "n", "blind", "majority", "oracle"}));
  EXPECT_EQ(naming["accuracy"], 0.9);
  EXPECT_EQ(naming["n"], 100);
  EXPECT_NEAR(naming["low"].get<double>(), 0.825634, 1e-6);
  EXPECT_NEAR(naming["high"].get<double>(), 0.944771, 1e-6);
  EXPECT_EQ(naming["blind"], 0.1);
  EXPECT_TRUE(naming["oracle"].is_null());
  EXPECT_EQ(json["types"]["what"]["oracle"], 1.0);
  EXPECT_TRUE(json["types"]["what"]["blind"].is_null());
  EXPECT_EQ(json["settings"]["seed"], 7);
}

TEST(QualityTableTest, ShowsEveryRowInPerCent) {
  const std::string table = QualityTable(Made());
  EXPECT_THAT(table, testing::ContainsRegex("naming +90\\.0 +82\\.6 - +94\\.5 +100 +10\\.0 +20\\.0 "
                                            "+-\n"));
  EXPECT_THAT(table, testing::ContainsRegex("what +80\\.0 .* 50 +- +25\\.0 +100\\.0\n"));
}

}  // namespace
}  // namespace llava

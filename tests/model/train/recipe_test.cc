#include "model/train/recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace llava {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(RecipeTest, ReadsNestedSettingsAndFillsDefaults) {
  Recipe recipe = Recipe::Parse(R"({"epochs": 3, /* why */ "adam": {"beta2": 0.95}})", "test");
  recipe.Set("model.width=128");
  recipe.Set("precision=bf16");
  EXPECT_EQ(recipe.Int("epochs", 1, "rounds"), 3);
  EXPECT_EQ(recipe.Number("adam.beta1", 0.9, "first"), 0.9);
  EXPECT_EQ(recipe.Number("adam.beta2", 0.999, "second"), 0.95);
  EXPECT_EQ(recipe.Int("model.width", 64, "D"), 128);
  EXPECT_EQ(recipe.Choice<int>("precision", "fp32", {{"fp32", 4}, {"bf16", 2}}, "dtype"), 2);
  EXPECT_FALSE(recipe.Flag("skip_bad", false, "skip"));
  recipe.CheckAllRead();
  const auto resolved = recipe.Resolved();
  EXPECT_EQ(resolved.dump(),
            R"({"epochs":3,"adam":{"beta1":0.9,"beta2":0.95},"model":{"width":128},)"
            R"("precision":"bf16","skip_bad":false})");
  Recipe again = Recipe::Parse(resolved.dump(), "resolved");
  EXPECT_EQ(again.Int("epochs", 1, "rounds"), 3);
  EXPECT_TRUE(recipe.settings()[1].is_default);
  EXPECT_FALSE(recipe.settings()[2].is_default);
}

TEST(RecipeTest, NamesWithDotsAreObjectsInObjects) {
  Recipe recipe = Recipe::Parse(
      R"({"projector.learning_rate": 2e-5, "adam": {"beta1": 0.5}, "adam.beta2": 0.95,
          "a": {"b.c": 1}, "a.b": {"d": 2}, "empty": {}})",
      "test");
  recipe.Set("projector.type=linear");
  EXPECT_EQ(recipe.Number("projector.learning_rate", 1, ""), 2e-5);
  EXPECT_EQ(recipe.Text("projector.type", "", ""), "linear");
  EXPECT_EQ(recipe.Number("adam.beta1", 0.9, ""), 0.5);
  EXPECT_EQ(recipe.Number("adam.beta2", 0.999, ""), 0.95);
  EXPECT_EQ(recipe.Int("a.b.c", 0, ""), 1);
  EXPECT_EQ(recipe.Int("a.b.d", 0, ""), 2);
  EXPECT_THAT([&] { recipe.CheckAllRead(); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("\n  empty")));
  const auto refusal = [](const std::string& json) {
    try {
      Recipe::Parse(json, "my.json");
    } catch (const std::invalid_argument& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(refusal(R"({"adam.beta2": 1, "adam": {"beta2": 1}})"),
            "my.json: setting \"adam.beta2\" is given twice");
  EXPECT_EQ(refusal(R"({"adam": null, "adam.beta2": 1})"),
            "my.json: setting \"adam.beta2\" lies within \"adam\", which is no object");
  EXPECT_THAT(refusal(R"({"adam.beta2": 1, "adam": 2})"), HasSubstr("\"adam\" is given twice"));
  for (const char* name : {"", ".", "a.", ".a", "a..b"}) {
    EXPECT_THAT(refusal("{\"" + std::string(name) + "\": 1}"), HasSubstr("is no name")) << name;
  }
}

TEST(RecipeTest, NamesSettingValueAndRange) {
  Recipe recipe = Recipe::Parse(R"({"epochs": 0, "rate": "fast", "mode": "x", "skip": 1})", "test");
  EXPECT_THAT([&] { recipe.Int("epochs", 1, "", 1, 9); },
              ThrowsMessage<std::invalid_argument>(
                  HasSubstr("\"epochs\" is 0, expected a whole number of at least 1")));
  EXPECT_THAT([&] { recipe.Number("rate", 1, ""); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("\"rate\" is \"fast\"")));
  EXPECT_THAT(
      [&] {
        recipe.Choice<int>("mode", "a", {{"a", 0}, {"b", 1}}, "");
      },
      ThrowsMessage<std::invalid_argument>(HasSubstr("one of a | b")));
  EXPECT_THAT([&] { recipe.Flag("skip", false, ""); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("true or false")));
}

TEST(RecipeTest, AnOptionalNumberMayBeNull) {
  Recipe recipe = Recipe::Parse(R"({"a": null, "b": -2, "c": "x"})", "test");
  EXPECT_EQ(recipe.OptionalInt("a", "", -5, 5), std::nullopt);
  EXPECT_EQ(recipe.OptionalInt("b", "", -5, 5), -2);
  EXPECT_EQ(recipe.OptionalInt("d", "", -5, 5), std::nullopt);
  EXPECT_THROW(recipe.OptionalInt("b", "", 0, 5), std::invalid_argument);
  EXPECT_THROW(recipe.OptionalInt("c", "", 0, 5), std::invalid_argument);
  EXPECT_EQ(recipe.Resolved().dump(), R"({"a":null,"b":-2,"d":null})");
}

TEST(RecipeTest, RefusesWhatNobodyReads) {
  Recipe recipe = Recipe::Parse(R"({"learning_rat": 1, "model": {"deep": 2}})", "test");
  recipe.Number("learning_rate", 1e-3, "peak");
  recipe.Int("model.depth", 2, "layers");
  EXPECT_THAT([&] { recipe.CheckAllRead(); },
              ThrowsMessage<std::invalid_argument>(
                  testing::AllOf(HasSubstr("learning_rat (did you mean learning_rate?)"),
                                 HasSubstr("model.deep (did you mean model.depth?)"))));
}

TEST(RecipeTest, SaysWhereAFileOrAnAssignmentIsWrong) {
  EXPECT_THAT([] { Recipe::Parse("{\"a\": ", "my.json"); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("my.json")));
  EXPECT_THROW(Recipe::Parse("[1]", "my.json"), std::invalid_argument);
  EXPECT_THAT([] { Recipe::Parse("{\"a\": 1e999}", "my.json"); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("my.json: number overflow")));
  EXPECT_THAT([] { Recipe::Parse("{\"a\": " + std::string(100'000, '['), "my.json"); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("my.json: has more than 200 levels")));
  Recipe recipe;
  EXPECT_THROW(recipe.Set("novalue"), std::invalid_argument);
  EXPECT_THROW(recipe.Set("=1"), std::invalid_argument);
  recipe.Set("a=1");
  EXPECT_THROW(recipe.Set("a.b=1"), std::invalid_argument);
}

}  // namespace
}  // namespace llava

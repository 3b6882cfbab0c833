#include "model/datagen/scene_problems.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "model/data/scenes/captions.h"
#include "model/data/scenes/category.h"

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

// Categories of a scene with their numbers, by name.
std::map<std::string, int> Things(const Scene& scene) {
  std::map<std::string, int> things;
  for (const auto& [category, number] : CountCategories(scene)) {
    things[Categories()[static_cast<size_t>(category)].name] = number;
  }
  return things;
}

const Category& Named(const std::string& name) {
  return Categories()[static_cast<size_t>(FindCategory(name).value())];
}

std::string RightChoice(const Json& record) {
  return record["choices"][record["answer"].get<size_t>()].get<std::string>();
}

TEST(SceneProblemsTest, HaveTheFormOfScienceQa) {
  std::map<int64_t, int> answers;
  std::map<std::string, int> subjects;
  int pictures = 0, hints = 0;
  for (uint64_t number = 0; number < 600; ++number) {
    const SceneProblem problem = MakeSceneProblem({}, 3, number);
    const Json& record = problem.record;
    const auto choices = record["choices"].get<std::vector<std::string>>();
    EXPECT_GE(choices.size(), 2);
    EXPECT_LE(choices.size(), 4);
    EXPECT_EQ(std::set<std::string>(choices.begin(), choices.end()).size(), choices.size());
    if (record["question"].get<std::string>().starts_with("How many ")) {
      EXPECT_EQ(choices, (std::vector<std::string>{"one", "two", "three", "four"}));
    } else {
      EXPECT_TRUE(std::is_sorted(choices.begin(), choices.end())) << record.dump();
    }
    ++answers[record["answer"].get<int64_t>()];
    ++subjects[record["subject"].get<std::string>()];
    EXPECT_EQ(record["image"].is_string(), problem.scene.has_value());
    pictures += problem.scene.has_value();
    hints += !record["hint"].get<std::string>().empty();
    EXPECT_FALSE(record["solution"].get<std::string>().empty());
    // Reasons lead to the answer: they name it, but for yes and no.
    const std::string solution = record["solution"].get<std::string>();
    const std::string right = RightChoice(record);
    EXPECT_TRUE(right == "yes" || right == "no" || solution.find(right) != solution.npos)
        << record.dump();
  }
  EXPECT_EQ(pictures, 400);
  EXPECT_GT(hints, 130);
  EXPECT_EQ(subjects["social science"], 100);
  EXPECT_EQ(subjects["language science"], 100);
  EXPECT_EQ(subjects["natural science"], 400);
  EXPECT_GT(answers[0], 180);
  EXPECT_GT(answers[1], 180);
  EXPECT_GT(answers[2], 50);
}

TEST(SceneProblemsTest, AreTrueOfTheirScenes) {
  for (uint64_t number = 0; number < 300; ++number) {
    const SceneProblem problem = MakeSceneProblem({}, 8, number);
    const Json& record = problem.record;
    const std::string right = RightChoice(record);
    const std::string question = record["question"].get<std::string>();
    if (!problem.scene) {
      if (question.starts_with("What is the plural of ")) {
        const std::string name = question.substr(22, question.size() - 23);
        EXPECT_EQ(right, Named(name).plural);
      } else {
        ASSERT_TRUE(question.starts_with("What kind of thing is a")) << question;
        const size_t begin = question.rfind(' ') + 1;
        EXPECT_EQ(right, Named(question.substr(begin, question.size() - begin - 1)).group);
      }
      continue;
    }
    const auto things = Things(*problem.scene);
    const auto some = [&](bool Category::*fact) {
      return std::any_of(things.begin(), things.end(),
                         [&](const auto& thing) { return Named(thing.first).*fact; });
    };
    const auto yes_if = [](bool yes) { return yes ? "yes" : "no"; };
    if (question.ends_with("can eat?")) {
      EXPECT_EQ(right, yes_if(some(&Category::edible))) << record.dump();
    } else if (question.ends_with("can fly?")) {
      EXPECT_EQ(right, yes_if(some(&Category::flies))) << record.dump();
    } else if (question.ends_with("is alive?")) {
      EXPECT_EQ(right, yes_if(some(&Category::alive))) << record.dump();
    } else if (question.starts_with("Is there a")) {
      const std::string rest = question.substr(0, question.find(" in the picture?"));
      EXPECT_EQ(right, yes_if(things.contains(rest.substr(rest.rfind(' ') + 1)))) << record.dump();
    } else if (question.starts_with("How many ")) {
      const std::string plural = question.substr(9, question.size() - 9 - 11);
      const std::vector<std::string> words = {"no", "one", "two", "three", "four"};
      int found = 0;
      for (const auto& [name, count] : things) found += Named(name).plural == plural ? count : 0;
      EXPECT_EQ(right, words[static_cast<size_t>(found)]) << record.dump();
    } else {
      ASSERT_TRUE(question.starts_with("Is the ")) << question;
      const std::string name = question.substr(7, question.find(' ', 7) - 7);
      const size_t begin = question.rfind(' ') + 1;
      const auto object = [&](const std::string& wanted) {
        return *std::find_if(
            problem.scene->objects.begin(), problem.scene->objects.end(),
            [&](const SceneObject& one) { return one.category == FindCategory(wanted); });
      };
      const SceneObject a = object(name);
      const SceneObject b = object(question.substr(begin, question.size() - begin - 1));
      const bool across = question.find(" left ") != question.npos;
      const bool first = across ? a.x < b.x : a.y < b.y;
      EXPECT_EQ(right, across ? (first ? "left" : "right") : (first ? "above" : "below"))
          << record.dump();
    }
  }
}

TEST(SceneProblemsTest, DependOnSeedAndNumberAlone) {
  EXPECT_EQ(MakeSceneProblem({}, 1, 5).record, MakeSceneProblem({}, 1, 5).record);
  EXPECT_NE(MakeSceneProblem({}, 1, 7).record, MakeSceneProblem({}, 2, 7).record);
  SceneOptions single;
  single.max_objects = 1;
  EXPECT_THROW(MakeSceneProblem(single, 1, 1), std::invalid_argument);
}

}  // namespace
}  // namespace llava

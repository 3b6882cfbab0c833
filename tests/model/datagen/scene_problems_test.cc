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
    // Reasons lead to the answer: they name it.
    const std::string solution = record["solution"].get<std::string>();
    const std::string right = RightChoice(record);
    const auto category = FindCategory(right);
    EXPECT_TRUE(solution.find(right) != solution.npos ||
                (category && solution.find(Named(right).plural) != solution.npos))
        << record.dump();
  }
  EXPECT_EQ(pictures, 400);
  EXPECT_GT(hints, 120);
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
        EXPECT_EQ(question, "Which of them is of the kind " + Named(right).group + "?");
        for (const auto& choice : record["choices"]) {
          const auto name = choice.get<std::string>();
          EXPECT_EQ(Named(name).group == Named(right).group, name == right);
        }
      }
      continue;
    }
    const auto things = Things(*problem.scene);
    for (const auto& one : record["choices"]) {
      const auto choice = one.get<std::string>();
      if (question.find("can you eat") != question.npos) {
        EXPECT_EQ(Named(choice).edible, choice == right) << record.dump();
      } else if (question.find("can fly") != question.npos) {
        EXPECT_EQ(Named(choice).flies, choice == right) << record.dump();
      } else if (question.find("is alive") != question.npos) {
        EXPECT_EQ(Named(choice).alive, choice == right) << record.dump();
      } else if (question == "Which of these is in the picture?") {
        EXPECT_EQ(things.contains(choice), choice == right) << record.dump();
      } else if (question.starts_with("Which thing is farthest ")) {
        EXPECT_TRUE(things.contains(choice)) << record.dump();
      }
    }
    if (question.starts_with("How many ")) {
      const std::string plural = question.substr(9, question.size() - 9 - 11);
      const std::vector<std::string> words = {"no", "one", "two", "three", "four"};
      int found = 0;
      for (const auto& [name, count] : things) found += Named(name).plural == plural ? count : 0;
      EXPECT_EQ(right, words[static_cast<size_t>(found)]) << record.dump();
    }
    if (question == "Which thing is farthest on the left?") {
      EXPECT_EQ(
          right,
          Categories()[static_cast<size_t>(Outermost(*problem.scene, Side::kLeft)->category)].name);
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

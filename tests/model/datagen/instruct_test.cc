#include "model/datagen/instruct.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>
#include <stdexcept>

#include "model/data/instructions/instruction_data.h"
#include "model/datagen/question_request.h"
#include "model/openai/replay.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::map<std::string, uint64_t> CountTypes(const std::vector<InstructTask>& tasks) {
  std::map<std::string, uint64_t> counts;
  for (const InstructTask& task : tasks) ++counts[ToString(task.type)];
  return counts;
}

std::set<std::pair<uint32_t, int>> AsSet(const std::vector<InstructTask>& tasks) {
  std::set<std::pair<uint32_t, int>> set;
  for (const InstructTask& task : tasks) set.emplace(task.image, static_cast<int>(task.type));
  return set;
}

TEST(PlanTasksTest, HasThePapersProportions) {
  const auto counts = CountTypes(PlanTasks(80'000, kPaperMix, 158'000, 1));
  EXPECT_EQ(counts.at("conversation"), 58'000u);
  EXPECT_EQ(counts.at("detail"), 23'000u);
  EXPECT_EQ(counts.at("complex"), 77'000u);
}

TEST(PlanTasksTest, NoPictureHasOneTypeTwiceAndAsManyAsPossibleHaveOne) {
  for (const uint64_t count : {1u, 7u, 50u, 99u, 100u, 150u, 200u}) {
    const auto tasks = PlanTasks(100, kPaperMix, count, 3);
    EXPECT_EQ(tasks.size(), count);
    EXPECT_EQ(AsSet(tasks).size(), count);
    std::set<uint32_t> images;
    for (const InstructTask& task : tasks) images.insert(task.image);
    EXPECT_GE(images.size() + 2, std::min<uint64_t>(count, 100)) << count;  // up to rounding
  }
}

TEST(PlanTasksTest, ALargerPlanHoldsASmallerOne) {
  const auto small = AsSet(PlanTasks(1000, kPaperMix, 158, 5));
  const auto large = AsSet(PlanTasks(1000, kPaperMix, 1580, 5));
  for (const auto& task : small) EXPECT_TRUE(large.contains(task));
}

TEST(PlanTasksTest, OrderIsMixedAndDependsOnTheSeedOnly) {
  const auto order = [](uint64_t seed) {
    std::string text;
    for (const InstructTask& task : PlanTasks(200, kPaperMix, 0, seed)) {
      text += std::to_string(task.image) + ToString(task.type)[0];
    }
    return text;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
  // Whatever part has been asked when a run ends, it has the proportions.
  const auto tasks = PlanTasks(10'000, kPaperMix, 0, 1);
  const auto counts = CountTypes({tasks.begin(), tasks.begin() + 1580});
  EXPECT_NEAR(static_cast<double>(counts.at("conversation")), 580, 80);
  EXPECT_NEAR(static_cast<double>(counts.at("detail")), 230, 60);
}

TEST(PlanTasksTest, RefusesWhatCannotBe) {
  EXPECT_THROW(PlanTasks(0, kPaperMix, 5, 1), std::invalid_argument);
  EXPECT_THROW(PlanTasks(10, {0, 0, 0}, 5, 1), std::invalid_argument);
  EXPECT_THROW(PlanTasks(10, {1, -1, 0}, 5, 1), std::invalid_argument);
  EXPECT_THROW(PlanTasks(10, {1, 0, 0}, 11, 1), std::invalid_argument);
  EXPECT_EQ(CountTypes(PlanTasks(10, {0, 1, 0}, 10, 1)).at("detail"), 10u);
}

class FolderTest : public testing::Test {
 protected:
  void Write(const std::string& name, const std::string& text) const { folder_.Write(name, text); }

  const TempFolder folder_;
};

using PromptSetTest = FolderTest;

TEST_F(PromptSetTest, BuiltInIsAsThePaper) {
  const PromptSet prompts = PromptSet::Read();
  EXPECT_EQ(prompts[ResponseType::kConversation].examples.size(), 2u);
  EXPECT_EQ(prompts[ResponseType::kDetail].examples.size(), 3u);
  EXPECT_EQ(prompts[ResponseType::kComplex].examples.size(), 3u);
  const CaptionedImage image{.captions = {"A dog."}, .boxes = {{"dog", 0, 0, 0.5, 1}}};
  const auto messages = prompts.Messages(ResponseType::kConversation, image, false);
  ASSERT_EQ(messages.size(), 6u);
  EXPECT_EQ(messages[0].role, "system");
  EXPECT_EQ(messages[1].role, "user");
  EXPECT_EQ(messages[2].role, "assistant");
  EXPECT_EQ(messages[5].role, "user");
  EXPECT_EQ(messages[5].text, "A dog.");
  EXPECT_EQ(prompts.Messages(ResponseType::kDetail, image, true).back().text,
            "A dog.\n\ndog: [0.0, 0.0, 0.5, 1.0]");
  EXPECT_THAT(prompts.AskForQuestions(false, 11), HasSubstr("Write 11 different"));
}

TEST_F(PromptSetTest, FewShotContextsLookLikeQueries) {
  // Conversations have captions alone, the others boxes as SymbolicContext writes them.
  const PromptSet prompts = PromptSet::Read();
  for (const auto& [context, answer] : prompts[ResponseType::kConversation].examples) {
    EXPECT_EQ(context.find('['), context.npos);
  }
  for (const ResponseType type : {ResponseType::kDetail, ResponseType::kComplex}) {
    for (const auto& [context, answer] : prompts[type].examples) {
      EXPECT_THAT(context, AnyOf(HasSubstr("\n\nperson: ["), HasSubstr("\n\nlaptop: [")));
    }
  }
}

TEST_F(PromptSetTest, AUsersFolderReplacesWhatItHolds) {
  Write("conversation/system_message.txt", "Talk.\n");
  Write("conversation/000_caps.txt", "A cat.\n");
  Write("conversation/000_conv.txt", "Question: What?\nAnswer: A cat.\n");
  Write("leaks.txt", "# none of these\nmy words*\n");
  Write("limits.json", R"({"complex": {"turns": [1, 3]}})");
  const PromptSet prompts = PromptSet::Read(folder_.path());
  const auto& conversation = prompts[ResponseType::kConversation];
  EXPECT_EQ(conversation.system, "Talk.");
  ASSERT_EQ(conversation.examples.size(), 1u);
  EXPECT_EQ(conversation.examples[0].first, "A cat.");
  EXPECT_EQ(prompts[ResponseType::kDetail].examples.size(), 3u);
  EXPECT_THAT(prompts.leaks(), ElementsAre("my words*"));
  EXPECT_EQ(prompts[ResponseType::kComplex].turns.most, 3u);
}

TEST_F(PromptSetTest, SaysWhatIsWrong) {
  const auto error = [&]() -> std::string {
    try {
      PromptSet::Read(folder_.path());
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(error(), "");
  Write("detail_description/system_message.txt", " \n");
  EXPECT_THAT(error(), HasSubstr("detail_description/system_message.txt: is empty"));
  Write("detail_description/system_message.txt", "caf\xE9");
  EXPECT_THAT(error(), HasSubstr("no UTF-8"));
  Write("detail_description/system_message.txt", "Describe.");
  Write("detail_description/000_caps.txt", "x");
  EXPECT_THAT(error(), HasSubstr("has no detail_description/000_conv.txt"));
  fs::remove(folder_.path() / "detail_description/000_caps.txt");
  for (const char* limits : {"[]", R"({"poem": {}})", R"({"detail": {"lines": [1, 2]}})",
                             R"({"detail": {"turns": [3, 2]}})", R"({"detail": {"turns": 3}})"}) {
    Write("limits.json", limits);
    EXPECT_THAT(error(), HasSubstr("limits.json: ")) << limits;
  }
  EXPECT_THROW(PromptSet::Read(folder_.path() / "none"), std::invalid_argument);
}

using ExpansionTest = FolderTest;

TEST_F(ExpansionTest, WritesWhatTheTrainerReads) {
  std::vector<CaptionedImage> images;
  for (int i = 0; i < 200; ++i) {
    images.push_back({.id = "i" + std::to_string(i),
                      .file = "i" + std::to_string(i) + ".jpg",
                      .captions = {"First.", "Second."}});
  }
  WriteExpansion(images, {"Q1?", "Q2?"}, 7, folder_.path() / "stage1.json");
  const InstructionData data({folder_.path() / "stage1.json"}, folder_.path());
  ASSERT_EQ(data.size(), 200);
  std::map<std::string, int> texts;
  for (int64_t i = 0; i < data.size(); ++i) {
    const InstructionRecord record = data.Read(i);
    EXPECT_EQ(record.id, "i" + std::to_string(i));
    ASSERT_EQ(record.messages.size(), 2u);
    ++texts[record.messages[0].text];
    ++texts[record.messages[1].text];
  }
  EXPECT_EQ(texts.size(), 6u);  // two questions with <image> on either side, two captions
  for (const auto& [text, count] : texts) EXPECT_GT(count, 20) << text;
}

TEST(QuestionRequestTest, ReadsListsAsTeachersWriteThem) {
  EXPECT_THAT(ParseQuestions(
                  "Here are some questions:\n\n1. What does it show?\n2) **Describe it briefly.**\n"
                  "- \"Sum it up, please.\"\n* What does it show\nOk\nDescribe <image> to me.\n",
                  {"sum it up please"}),
              ElementsAre("What does it show?", "Describe it briefly."));
}

using QuestionRequestFolderTest = FolderTest;

TEST_F(QuestionRequestFolderTest, AsksAgainForWhatIsMissing) {
  Write("replay.jsonl",
        "{\"id\": \"questions-brief-0\", \"text\": \"What is shown here?\\nWhat is shown here!\"}\n"
        "{\"id\": \"questions-brief-1\", \"text\": \"Sum it up briefly.\\nAnd once more.\"}\n");
  ReplayBackend teacher(folder_.path() / "replay.jsonl");
  ChatJournal journal(folder_.path() / "journal.jsonl");
  const PromptSet prompts = PromptSet::Read();
  QuestionRequest request = {.count = 2};
  std::vector<std::string> questions;
  EXPECT_EQ(AskForQuestions(teacher, journal, prompts, request, questions),
            ChatRun::Outcome::kFinished);
  EXPECT_THAT(questions, ElementsAre("What is shown here?", "Sum it up briefly."));
  request.run.most_requests = 2;  // which the journal has
  EXPECT_EQ(AskForQuestions(teacher, journal, prompts, request, questions),
            ChatRun::Outcome::kFinished);
  request.detailed = true;
  EXPECT_EQ(AskForQuestions(teacher, journal, prompts, request, questions),
            ChatRun::Outcome::kBudget);
  request.run = {};
  EXPECT_THROW(AskForQuestions(teacher, journal, prompts, request, questions), std::runtime_error);
}

}  // namespace
}  // namespace llava

#include "model/eval/judge/tasks.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class JudgeTasksTest : public testing::Test {
 protected:
  JudgeTasksTest() {
    files_.questions = folder_.Write(
        "questions.jsonl",
        R"({"question_id": 5, "image": "a.jpg", "text": "What is it?", "category": "conv"})"
        "\n"
        R"({"question_id": 3, "image": "b.jpg", "text": "And why?", "category": "complex"})"
        "\n");
    // In another order: joined by id.
    files_.reference = folder_.Write("reference.jsonl", R"({"question_id": 3, "text": "For fun."})"
                                                        "\n"
                                                        R"({"question_id": 5, "text": "A cat."})"
                                                        "\n");
    files_.candidate = folder_.Write("candidate.jsonl",
                                     R"({"question_id": 5, "text": "A dog.", "answer_id": "x5"})"
                                     "\n"
                                     R"({"question_id": 3, "text": "No idea.", "answer_id": "x3"})"
                                     "\n");
    files_.rules =
        folder_.Write("rules.json", R"({"conv": {"role": "Helper", "prompt": "Score them."},
                          "llava_bench_conv": {"prompt": "In the wild."},
                          "default": {"role": "Assistant", "prompt": "Score all."}})");
  }

  const TempFolder folder_;
  JudgeFiles files_;
};

TEST_F(JudgeTasksTest, AreLaidOutForCoco) {
  files_.contexts = folder_.Write(
      "contexts.jsonl", R"({"id": 1, "image": "b.jpg", "captions": ["Fun."], "instances": []})"
                        "\n"
                        R"({"id": 2, "image": "a.jpg", "captions": ["A cat.", "On a mat."],)"
                        R"( "instances": [{"category": "cat", "bbox": [0.1, 0.25, 1.0, 1]},)"
                        R"( {"category": "mat", "bbox": [0.0, 0.5, 0.333, 0.999]}]})"
                        "\n");
  const std::vector<JudgeTask> tasks = JoinJudgeFiles(files_);
  ASSERT_EQ(tasks.size(), 2);
  EXPECT_EQ(tasks[0].head.dump(),
            R"({"id":1,"question_id":5,"answer1_id":5,"answer2_id":"x5","category":"conv"})");
  EXPECT_EQ(tasks[0].prompt,
            "[Context]\nA cat.\nOn a mat.\n\ncat: [0.1, 0.25, 1.0, 1]\n"
            "mat: [0.0, 0.5, 0.333, 0.999]\n\n[Question]\nWhat is it?\n\n"
            "[Helper 1]\nA cat.\n\n[End of Helper 1]\n\n[Helper 2]\nA dog.\n\n[End of Helper 2]\n\n"
            "[System]\nScore them.\n\n");
  EXPECT_EQ(tasks[1].question_id, "3");
  EXPECT_THAT(tasks[1].prompt,
              AllOf(HasSubstr("[Context]\nFun.\n\n\n\n[Question]"), HasSubstr("Score all.")));
}

TEST_F(JudgeTasksTest, AreLaidOutForTheWild) {
  files_.contexts =
      folder_.Write("contexts.jsonl", R"({"image": "a.jpg", "caption": "A cat on a mat."})"
                                      "\n"
                                      R"({"image": "b.jpg", "caption": ["One.", "Two."]})"
                                      "\n");
  const std::vector<JudgeTask> tasks = JoinJudgeFiles(files_);
  EXPECT_EQ(tasks[0].head["category"], "llava_bench_conv");
  EXPECT_THAT(tasks[0].prompt, AllOf(HasSubstr("[Context]\nA cat on a mat.\n\n[Question]\n"),
                                     HasSubstr("[Assistant 1]\n"), HasSubstr("In the wild.")));
  EXPECT_THAT(tasks[1].prompt, HasSubstr("[Context]\nOne.\nTwo.\n\n[Question]\n"));
}

TEST_F(JudgeTasksTest, NeedNoPicture) {
  const std::vector<JudgeTask> tasks = JoinJudgeFiles(files_);
  EXPECT_EQ(tasks[0].prompt.rfind("[Question]\nWhat is it?\n\n[Helper 1]\n", 0), 0);
  EXPECT_EQ(tasks[0].head["category"], "conv");
}

TEST_F(JudgeTasksTest, HaveOurOwnRules) {
  files_.rules.clear();
  for (const JudgeTask& task : JoinJudgeFiles(files_)) {
    EXPECT_THAT(task.prompt, HasSubstr("Assistant 1 and that of Assistant 2"));
  }
  const auto rules = nlohmann::json::parse(JudgeRulesJson());
  for (const char* category : {"coding", "math", "default", "conv", "detail", "complex",
                               "llava_bench_conv", "llava_bench_detail", "llava_bench_complex"}) {
    EXPECT_TRUE(rules.contains(category)) << category;
  }
}

TEST_F(JudgeTasksTest, ListWhatDoesNotBelongTogether) {
  files_.candidate = folder_.Write("candidate.jsonl", R"({"question_id": 5, "text": "A dog."})"
                                                      "\n"
                                                      R"({"question_id": 8, "text": "No idea."})"
                                                      "\n");
  EXPECT_THAT(ErrorOf([&] { JoinJudgeFiles(files_); }),
              AllOf(HasSubstr("questions.jsonl has no question_id 8"),
                    HasSubstr("reference.jsonl has no question_id 8"),
                    HasSubstr("candidate.jsonl has no question_id 3")));
}

TEST_F(JudgeTasksTest, ListPicturesWithoutContextAndCategoriesWithoutRule) {
  files_.contexts = folder_.Write("contexts.jsonl", R"({"image": "a.jpg", "caption": "A cat."})");
  EXPECT_THAT(ErrorOf([&] { JoinJudgeFiles(files_); }),
              HasSubstr("contexts.jsonl has no context for b.jpg"));
  files_.contexts.clear();
  files_.rules = folder_.Write("rules.json", R"({"conv": {"role": "A", "prompt": "P"}})");
  EXPECT_THAT(ErrorOf([&] { JoinJudgeFiles(files_); }),
              HasSubstr("rules.json has no rule, and no \"default\", for complex"));
}

}  // namespace
}  // namespace llava

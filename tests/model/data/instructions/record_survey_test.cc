#include "model/data/instructions/record_survey.h"
#include "model/progress/stop_request.h"
#include "tests/support/fixtures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

namespace llava {
namespace {

using testing::HasSubstr;
using Kind = BadRecordKind;

nlohmann::json Record(const std::string& id, const std::string& question, const std::string& answer,
                      const char* image = nullptr) {
  nlohmann::json record = {
      {"id", id},
      {"conversations",
       {{{"from", "human"}, {"value", question}}, {{"from", "gpt"}, {"value", answer}}}}};
  if (image != nullptr) record["image"] = image;
  return record;
}

class RecordSurveyTest : public testing::Test {
 protected:
  RecordSurvey Survey(const std::vector<std::string>& records) {
    std::string content = "[";
    for (const std::string& record : records) content += (content.size() > 1 ? "," : "") + record;
    file_ = scratch_.Write("data.json", content + "]");
    const InstructionData data({file_}, scratch_.path() / "images");
    return SurveyRecords(data, encoder_, options_);
  }
  int64_t Bad(const RecordSurvey& survey, Kind kind) { return survey.bad[static_cast<int>(kind)]; }

  TempFolder scratch_;
  std::filesystem::path file_;
  SurveyOptions options_;
  SampleEncoder encoder_{
      std::make_shared<Tokenizer>(Tokenizer::Load(FixturesDir() / "tiny-llava")),
      std::make_shared<ChatTemplate>(ChatTemplate::Parse(
          R"({"name": "t", "user": {"prefix": "U:"}, "assistant": {"prefix": "A:", "suffix": "</s>"}})")),
      {.max_tokens = 60, .pictures = PictureShape({}, 16)}};
};

TEST_F(RecordSurveyTest, ASignalEndsIt) {
  const StopRequest stop;
  int64_t last = 0;
  options_.on_progress = [&last](int64_t done) {
    last = done;
    raise(SIGTERM);
  };
  const std::vector<std::string> records(5, Record("0", "What?", "Text.").dump());
  EXPECT_THROW(Survey(records), StopRequest::Came);
  EXPECT_EQ(last, 1);
}

TEST_F(RecordSurveyTest, SortsOutAndCountsEveryKind) {
  scratch_.Write("images/good.png", "good");
  scratch_.Write("images/broken.png", "broken");
  options_.picture_size = [](const std::filesystem::path& path) {
    if (path.filename() == "broken.png") throw std::invalid_argument("no PNG");
    return Resolution{96, 96};
  };
  const std::vector<std::string> records = {
      Record("0", "<image> What is it?", "A cat.", "good.png").dump(),
      R"({"id": "1", "x": [})",
      R"({"id": "2"})",
      R"({"id": "3", "conversations": [{"from": "gpt", "value": "A"}]})",
      Record("4", "<image><image>", "A cat.", "good.png").dump(),
      Record("5", "What?", "").dump(),
      Record("6", "What?", std::string(400, 'x')).dump(),
      Record("7", "<image>", "A cat.", "none.png").dump(),
      Record("8", "<image>", "A cat.", "broken.png").dump(),
      Record("9", "What?", "Text alone.").dump()};
  options_.threads = 3;
  const RecordSurvey survey = Survey(records);
  EXPECT_THAT(survey.usable, testing::ElementsAre(0, 9));
  EXPECT_EQ(survey.num_bad(), 8);
  for (const Kind kind :
       {Kind::kSyntax, Kind::kKeys, Kind::kRoles, Kind::kImageMarks, Kind::kEmptyText,
        Kind::kTooLong, Kind::kMissingPicture, Kind::kBrokenPicture}) {
    EXPECT_EQ(Bad(survey, kind), 1) << ToString(kind);
  }
  ASSERT_EQ(survey.complaints.size(), 8u);
  for (int i = 0; i < 8; ++i) {
    EXPECT_THAT(survey.complaints[i],
                HasSubstr(file_.string() + " record " + std::to_string(i + 1)));
  }
  EXPECT_THAT(survey.complaints[6], HasSubstr("record 7 (\"7\"): no picture "));
  EXPECT_THAT(survey.complaints[7], HasSubstr("images/broken.png: no PNG"));

  EXPECT_EQ(survey.facts[0].words, 6);
  EXPECT_EQ(survey.facts[0].image_tokens, 16);
  EXPECT_NE(survey.facts[0].picture, 0u);
  EXPECT_EQ(survey.facts[9].picture, 0u);
  EXPECT_GT(survey.facts[9].trained_tokens, 0);
}

TEST_F(RecordSurveyTest, WithoutTheFolderOfThePicturesNoRecordIsToBlame) {
  const std::vector<std::string> records = {Record("0", "<image>", "A cat.", "a.png").dump(),
                                            Record("1", "What?", "Text alone.").dump()};
  EXPECT_THAT(ErrorOf<std::runtime_error>([&] { Survey(records); }),
              HasSubstr("images: the folder of the pictures (images=...) is not there"));
  EXPECT_EQ(Survey({records[1]}).usable.size(), 1u);
  std::filesystem::create_directory(scratch_.path() / "images");
  EXPECT_THAT(ErrorOf<std::runtime_error>([&] { Survey(records); }), HasSubstr("is empty"));
  scratch_.Write("images/b.png", "x");
  EXPECT_EQ(Bad(Survey(records), Kind::kMissingPicture), 1);
  const std::string name = "/nowhere/" + std::string(300, 'x');
  EXPECT_EQ(Bad(Survey({Record("2", "<image>", "A", name.c_str()).dump()}), Kind::kMissingPicture),
            1);
}

TEST_F(RecordSurveyTest, ADiskThatDoesNotAnswerEndsIt) {
  scratch_.Write("images/a.png", "x");
  options_.picture_size = [](const std::filesystem::path&) -> Resolution {
    throw std::runtime_error("Input/output error");
  };
  EXPECT_THAT(ErrorOf([&] { Survey({Record("0", "<image>", "A cat.", "a.png").dump()}); }),
              HasSubstr("Input/output error"));
}

TEST_F(RecordSurveyTest, TellsTheFirstBadOnesTogether) {
  std::vector<std::string> records;
  for (int i = 0; i < 50; ++i) {
    records.push_back(i % 2 == 0 ? R"({"id": "bad"})" : Record("x", "What?", "A cat.").dump());
  }
  const RecordSurvey survey = Survey(records);
  EXPECT_EQ(survey.complaints.size(), 20u);
  try {
    RequireAllUsable(survey);
    FAIL();
  } catch (const std::runtime_error& error) {
    const std::string what = error.what();
    EXPECT_THAT(what, HasSubstr("25 of 50 records cannot be used"));
    EXPECT_THAT(what, HasSubstr("data.json record 0: has no \"conversations\"\n"));
    EXPECT_THAT(what, HasSubstr("data.json record 38: "));
    EXPECT_THAT(what, testing::Not(HasSubstr("record 40: ")));
    EXPECT_TRUE(what.ends_with("and 5 more")) << what;
  }
  records = {Record("x", "What?", "A cat.").dump()};
  RequireAllUsable(Survey(records));
}

TEST_F(RecordSurveyTest, LooksAtTheFirstRecordsOnly) {
  options_.most_records = 2;
  const std::string good = Record("x", "What?", "A cat.").dump();
  EXPECT_THAT(Survey({good, good, R"({"id": "bad"})"}).usable, testing::ElementsAre(0, 1));
}

TEST_F(RecordSurveyTest, PicturesTellRecordsApart) {
  for (const char* name : {"images/a.png", "images/b.png"}) scratch_.Write(name, "x");
  const RecordSurvey survey = Survey({Record("1", "<image>", "A", "a.png").dump(),
                                      Record("2", "<image> Q", "B", "a.png").dump(),
                                      Record("3", "<image>", "A", "b.png").dump()});
  EXPECT_EQ(survey.facts[0].picture, survey.facts[1].picture);
  EXPECT_NE(survey.facts[0].picture, survey.facts[2].picture);
}

}  // namespace
}  // namespace llava

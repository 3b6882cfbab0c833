#include "model/data/instructions/record_index.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <stdexcept>

namespace llava {
namespace {

using testing::HasSubstr;

class RecordIndexTest : public testing::Test {
 protected:
  // What the scan finds: "whole: <text>" or "bad: <fault>".
  std::vector<std::string> Scan(std::string_view content) {
    const RecordIndex index(scratch_.Write("data.json", content));
    std::vector<std::string> found;
    for (int64_t i = 0; i < index.size(); ++i) {
      const std::string fault = index.FaultOf(i);
      found.push_back(fault.empty() ? index.Read(i) : "bad: " + fault);
    }
    return found;
  }
  std::string Refusal(std::string_view content) {
    try {
      RecordIndex(scratch_.Write("data.json", content));
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  }

  TempFolder scratch_;
};

TEST_F(RecordIndexTest, FindsTheElementsOfAnArray) {
  EXPECT_THAT(
      Scan(R"([{"id": "a", "n": [1, {"x": -2.5e3}]} ,
                       {"id":"]}, {\"id\": \\"},{"id": null, "t": true, "f": false}])"),
      testing::ElementsAre(R"({"id": "a", "n": [1, {"x": -2.5e3}]})", R"({"id":"]}, {\"id\": \\"})",
                           R"({"id": null, "t": true, "f": false})"));
  EXPECT_THAT(Scan("\xEF\xBB\xBF [ ] \n"), testing::IsEmpty());
  EXPECT_THAT(Scan("[1, \"two\" ]"), testing::ElementsAre("1", "\"two\""));
}

TEST_F(RecordIndexTest, ReadsLargeFilesInPieces) {
  std::string content = "[";
  std::vector<std::string> records;
  for (int i = 0; i < 5000; ++i) {  // about 3 MiB: the scan's buffer ends within records
    records.push_back(
        nlohmann::json{{"id", std::to_string(i)}, {"text", std::string(i % 997, '{')}}.dump());
    content += (i > 0 ? ",\n" : "") + records.back();
  }
  EXPECT_EQ(Scan(content + "]"), records);
}

TEST_F(RecordIndexTest, ABrokenRecordSpoilsItselfAlone) {
  const std::string a = R"({"id": "a", "conversations": []})", z = R"({"image": "z"})";
  const auto between = [&](const std::string& broken) {
    const auto found = Scan("[" + a + "," + broken + "," + z + "]");
    EXPECT_EQ(found.size(), 3u) << broken;
    EXPECT_EQ(found.front(), a);
    EXPECT_EQ(found.back(), z);
    return found.size() == 3 ? found[1] : "";
  };
  EXPECT_THAT(between(R"({"id": "b", "conversations": [{"from": "human", "value": "x"})"),
              HasSubstr("bad: "));
  EXPECT_THAT(between(R"({"id": "b", "conversations": [{"from": "human"}})"),
              HasSubstr("bad: '}' without its partner (at byte "));
  EXPECT_THAT(between(R"({"id": "b})"), HasSubstr("within the record"));
  EXPECT_THAT(between("{\"id\": \"a\nb\"}"), HasSubstr("control character 10 within a text"));
  EXPECT_THAT(between(R"({"id": bare})"), HasSubstr("'b' within the record"));
}

TEST_F(RecordIndexTest, TellsWhatIsWrongBetweenRecords) {
  const std::string a = R"({"id": "a"})", z = R"({"id": "z"})";
  EXPECT_THAT(
      Scan("[" + a + " " + z + "]"),
      testing::ElementsAre(HasSubstr("'{' behind the record, where ',' or ']' belongs"), z));
  EXPECT_THAT(Scan("[" + a + "," + z),
              testing::ElementsAre(a, z, HasSubstr("the file ends without the array's ']'")));
  EXPECT_THAT(Scan("[" + a + "," + z.substr(0, 6)),
              testing::ElementsAre(a, HasSubstr("the end of the file within")));
  EXPECT_THAT(Scan("[" + a + "] [" + z + "]"),
              testing::ElementsAre(a, HasSubstr("behind the array"), z));
  EXPECT_THAT(Scan("[" + a + "]}"), testing::ElementsAre(a, HasSubstr("behind the array")));
  EXPECT_THAT(Scan("[" + a + ",]"), testing::ElementsAre(a, ""));  // no JSON: the parser's business
}

TEST_F(RecordIndexTest, RefusesWhatIsNoArray) {
  EXPECT_THAT(Refusal(R"({"id": 1})"), HasSubstr("data.json: expected a JSON array"));
  EXPECT_THAT(Refusal(""), HasSubstr("found the end of the file"));
  EXPECT_THROW(RecordIndex(scratch_.path() / "none.json"), std::runtime_error);
}

TEST_F(RecordIndexTest, NoticesAFileThatShrank) {
  const auto file = scratch_.Write("data.json", R"([{"id": "a"}, {"id": "b"}])");
  const RecordIndex index(file);
  std::filesystem::resize_file(file, 16);
  EXPECT_EQ(index.Read(0), R"({"id": "a"})");
  EXPECT_THROW(index.Read(1), std::runtime_error);
}

}  // namespace
}  // namespace llava

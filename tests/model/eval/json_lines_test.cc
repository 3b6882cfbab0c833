#include "model/eval/json_lines.h"
#include "tests/support/error_of.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace llava {
namespace {

using testing::HasSubstr;
using Json = nlohmann::ordered_json;

TEST(JsonLinesTest, ReadsObjectsAndIds) {
  const TempFolder folder;
  const std::string path =
      folder.Write("a.jsonl", "\xEF\xBB\xBF{\"question_id\": 7}\r\n\n  \n{\"question_id\": \"x\"}");
  const std::vector<JsonObject> lines = ReadJsonLines(path);
  ASSERT_EQ(lines.size(), 2);
  EXPECT_EQ(IdOf(lines[0]), "7");
  EXPECT_EQ(IdOf(lines[1]), "x");
}

TEST(JsonLinesTest, TellsFileAndLine) {
  const TempFolder folder;
  const std::string path = folder.Write("a.jsonl", "{\"id\": 1}\n\n{\"id\": 2\n");
  EXPECT_THAT(ErrorOf([&] { ReadJsonLines(path); }), HasSubstr("a.jsonl:3: no JSON"));
  const std::string large = folder.Write("a.jsonl", "{\"id\": 1}\n{\"id\": 1e999}\n");
  EXPECT_THAT(ErrorOf([&] { ReadJsonLines(large); }), HasSubstr("a.jsonl:2: no JSON: number over"));
  const std::string list = folder.Write("b.jsonl", "[1]\n");
  EXPECT_THAT(ErrorOf([&] { ReadJsonLines(list); }), HasSubstr("b.jsonl:1: is a JSON array"));
  EXPECT_THAT(ErrorOf([&] { ReadJsonLines(folder.At("none")); }), HasSubstr("none: cannot read"));
  const std::string ids = folder.Write("c.jsonl", "{\"id\": 1}\n{\"id\": 1.5}\n");
  const std::vector<JsonObject> lines = ReadJsonLines(ids);
  EXPECT_THAT(ErrorOf([&] { IdOf(lines[0]); }), HasSubstr("c.jsonl:1: \"question_id\" is missing"));
  EXPECT_THAT(ErrorOf([&] { IdOf(lines[1], "id"); }), HasSubstr("c.jsonl:2: \"id\" is 1.5"));
}

TEST(JsonLinesTest, JoinsByIdAndNoticesRepeatedOnes) {
  const TempFolder folder;
  const std::string path = folder.Write(
      "a.jsonl", "{\"id\": 1, \"text\": \"old\"}\n{\"id\": \"1\", \"text\": \"new\"}\n");
  EXPECT_THAT(ErrorOf([&] { ById(ReadJsonLines(path), "id"); }),
              HasSubstr("a.jsonl:2: \"id\" is 1 for the second time"));
  int64_t twice = 0;
  EXPECT_EQ(ById(ReadJsonLines(path), "id", &twice).at("1").Text("text"), "new");
  EXPECT_EQ(twice, 1);
}

TEST(JsonLinesTest, AppendsBehindWhatIsWhole) {
  const TempFolder folder;
  const std::string torn(10'000, 'x');  // longer than the pieces in which it looks for the end
  const std::string path = folder.Write("a.jsonl", "{\"id\":1}\n{\"text\":\"" + torn);
  {
    JsonLinesFile file(path, "id");
    EXPECT_THAT(ErrorOf([&] { JsonLinesFile second(path, "id"); }), HasSubstr("another program"));
    file.Append({{"id", 2}});
    EXPECT_EQ(folder.Read("a.jsonl"), "{\"id\":1}\n{\"id\":2}\n");
    file.Append({{"text", "broken \xFF"}});
  }
  JsonLinesFile(path, "id").Append({{"id", 3}});
  EXPECT_EQ(folder.Read("a.jsonl"),
            "{\"id\":1}\n{\"id\":2}\n{\"text\":\"broken \xEF\xBF\xBD\"}\n{\"id\":3}\n");
  JsonLinesFile(folder.At("new.jsonl"), "id").Append({{"id", 1}});
  EXPECT_EQ(folder.Read("new.jsonl"), "{\"id\":1}\n");
}

TEST(JsonLinesTest, AnotherKindOfFileKeepsItsContent) {
  const TempFolder folder;
  const std::string line = "{\"id\":1,\"text\":\"a\"}\n";
  for (size_t size = 0; size < line.size(); ++size) {
    JsonLinesFile(folder.Write("a.jsonl", line.substr(0, size)), "id").Append({{"id", 2}});
    EXPECT_EQ(folder.Read("a.jsonl"), "{\"id\":2}\n") << size;
  }
  for (const char* text : {"my notes", "my notes\n", "my notes\nmore", "[1]", "{\"name\": 1}",
                           "{\"name\": 1}\n", "{\"name\": 1}\n{\"id\":"}) {
    const std::string path = folder.Write("b.jsonl", text);
    EXPECT_THAT(ErrorOf([&] { JsonLinesFile file(path, "id"); }),
                HasSubstr("b.jsonl: has no records with \"id\""));
    EXPECT_EQ(folder.Read("b.jsonl"), text);
  }
}

TEST(JsonLinesTest, PutsLinesInOrder) {
  const TempFolder folder;
  const std::string path =
      folder.Write("a.jsonl", "{\"id\":9}\n{\"id\":\"b\",\"a\":0}\n{\"id\":8}\n{\"id\":1}\n");
  JsonLinesFile(path, "id").Order({"1", "2", "b"}, [](const JsonObject& line) {
    return IdOf(line, "id");
  });
  EXPECT_EQ(folder.Read("a.jsonl"), "{\"id\":1}\n{\"id\":\"b\",\"a\":0}\n{\"id\":9}\n{\"id\":8}\n");
}

TEST(JsonLinesTest, TellsAFullDisk) {
  JsonLinesFile file("/dev/full", "id");
  EXPECT_THAT(ErrorOf([&] {
                file.Append({{"id", 1}});
              }),
              HasSubstr("/dev/full: cannot write: No space left"));
}

}  // namespace
}  // namespace llava

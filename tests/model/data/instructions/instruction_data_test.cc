#include "model/data/instructions/instruction_data.h"
#include "tests/support/temp_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace llava {
namespace {

std::string Record(const std::string& id) {
  return R"({"id": ")" + id +
         R"(", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]})";
}

TEST(InstructionDataTest, FilesAreOneListBehindTheOther) {
  const TempFolder scratch;
  const auto first = scratch.Write("first.json", "[" + Record("a") + "," + Record("b") + "]");
  const auto empty = scratch.Write("empty.json", "[]");
  const auto last = scratch.Write("last.json", "[" + Record("c") + R"(, {"id": "d"})" + "]");
  const InstructionData data({first, empty, last}, "/pictures");
  ASSERT_EQ(data.size(), 4);
  EXPECT_EQ(data.Read(1).id, "b");
  EXPECT_EQ(data.Read(2).id, "c");
  EXPECT_EQ(data.Name(2), last + " record 0");
  EXPECT_EQ(data.Names(std::vector<int64_t>{1, 0, 3}),
            first + " records 1, 0; " + last + " records 1");
  EXPECT_EQ(data.PicturePath("x/a.png"), "/pictures/x/a.png");
  EXPECT_THROW(data.Read(4), std::out_of_range);
  try {
    data.Read(3);
    FAIL();
  } catch (const BadRecord& bad) {
    EXPECT_EQ(bad.kind(), BadRecordKind::kKeys);
    EXPECT_EQ(std::string(bad.what()), last + " record 1: has no \"conversations\"");
  }
  EXPECT_THROW(InstructionData({}, ""), std::invalid_argument);
}

TEST(InstructionDataTest, NamesRecordsWhoseSyntaxIsBroken) {
  const TempFolder scratch;
  const auto file =
      scratch.Write("a.json", "[" + Record("a") + R"(, {"id": "b", "x": [}, )" + Record("c") + "]");
  const InstructionData data({file}, "");
  ASSERT_EQ(data.size(), 3);
  EXPECT_EQ(data.Read(2).id, "c");
  try {
    data.Read(1);
    FAIL();
  } catch (const BadRecord& bad) {
    EXPECT_EQ(bad.kind(), BadRecordKind::kSyntax);
    EXPECT_THAT(bad.what(), testing::StartsWith(file + " record 1: '}' without"));
  }
}

}  // namespace
}  // namespace llava

#include "server/gateway/raw_json.h"

#include <gtest/gtest.h>

#include <string_view>
#include <vector>

namespace llava {
namespace {

std::string_view Raw(std::string_view json, std::vector<std::string_view> path) {
  return RawMember(json, path).value_or("none");
}

TEST(RawJsonTest, ValuesAsTheyStand) {
  constexpr std::string_view kJson =
      R"( {"a": 1.50 , "b":[{"x":"]}"},2], "c" :{ "d\"e": "\\", "f":{ "z":1, "y" : 2 } },"g":null,"h":"",)"
      R"("\u0061a":true})";
  EXPECT_EQ(Raw(kJson, {"a"}), "1.50");
  EXPECT_EQ(Raw(kJson, {"b"}), R"([{"x":"]}"},2])");
  EXPECT_EQ(Raw(kJson, {"c", "d\"e"}), R"("\\")");
  EXPECT_EQ(Raw(kJson, {"c", "f"}), R"({ "z":1, "y" : 2 })");
  EXPECT_EQ(Raw(kJson, {"c", "f", "y"}), "2");
  EXPECT_EQ(Raw(kJson, {"g"}), "null");
  EXPECT_EQ(Raw(kJson, {"h"}), R"("")");
  EXPECT_EQ(Raw(kJson, {"aa"}), "true") << "however it is spelled";
  EXPECT_EQ(Raw(kJson, {"z"}), "none");
  EXPECT_EQ(Raw(kJson, {"a", "z"}), "none");
  EXPECT_EQ(Raw("\xEF\xBB\xBF{\"a\":1}", {"a"}), "1");
  EXPECT_EQ(Raw("{}", {"a"}), "none");
  EXPECT_EQ(Raw("[1]", {"a"}), "none");
  EXPECT_EQ(Raw(R"({"a":1,"a":{"b":2}})", {"a"}), R"({"b":2})") << "the last counts";
}

}  // namespace
}  // namespace llava
